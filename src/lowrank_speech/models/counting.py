"""What a factorisation does to a model's size, before any weight is touched.

``count(preset="xls-r-300m", layers="ffn", rank=512)`` or ``count(model="exp/default/base/xlsr/model",
reduction=0.24)``. Models are built on the meta device from their config alone; a folder that is factorised already is
counted as it is.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.counts import count_parameters
from lowrank_speech.lowrank.plan import Plan, plan_ranks
from lowrank_speech.lowrank.select import select
from lowrank_speech.models.classes import family_of, task_of
from lowrank_speech.models.families import kept_out, layer_patterns
from lowrank_speech.models.folder import KEY
from lowrank_speech.models.presets import build_meta, on_meta, preset_named


def count(
    model: str | None = None,
    preset: str | None = None,
    layers: str = "ffn",
    rank: int | None = None,
    reduction: float | None = None,
) -> dict[str, Any]:
    """Parameters of a model before and after its ``layers`` get ``rank``, or the rank that ``reduction`` asks for.

    ``model`` is a model folder, ``preset`` a name of ``presets.PRESETS``: one of the two. Without ``rank`` and
    ``reduction`` nothing is factorised; a factorised folder is counted with its own plan.

    Returns ``model``, ``class`` (of transformers), ``total_before``, ``total_after``, ``reduction`` (share of
    ``total_before``), ``groups`` (name -> parameters before, two name parts deep), ``layers`` (a list of {name, d_out,
    d_in, rank, before, after}, parameters with the bias; rank None: dense) and ``left_dense`` (name -> why). UserError
    on a folder, preset, pattern, rank or reduction that does not work.
    """
    if (model is None) == (preset is None):
        raise UserError("count: give either a model folder or a preset")
    if preset is not None:
        family, hf, own = preset_named(preset).family, build_meta(preset), None
    else:
        family, hf, own = _from_folder(Path(model))
    if own and (rank is not None or reduction is not None):
        raise UserError(f"{model} is factorised already ({len(own)} layers): count it without rank and reduction")
    counts = count_parameters(hf, depth=2)
    try:
        patterns = tuple(own) if own else layer_patterns(family, layers)
        chosen = select(hf, patterns, exclude=kept_out(family))
        shapes = {name: (layer.out_features, layer.in_features) for name, layer in chosen.items()}
        if own:
            plan = Plan.from_json(own)
        elif rank is None and reduction is None:
            plan = Plan({})
        else:
            plan = plan_ranks(shapes, counts["total"], rank=rank, reduction=reduction)
    except ValueError as error:
        raise UserError(f"count: {error}") from error
    rows = [_row(name, layer, plan.get(name)) for name, layer in chosen.items()]
    after = counts["total"] - plan.saving(shapes)
    return {
        "model": preset or str(model),
        "class": type(hf).__name__,
        "total_before": counts["total"],
        "total_after": after,
        "reduction": 1 - after / counts["total"],
        "groups": {name: group["total"] for name, group in counts["groups"].items()},
        "layers": rows,
        "left_dense": dict(plan.left_dense),
    }


def _row(name: str, layer: nn.Linear, rank: int | None) -> dict[str, Any]:
    d_out, d_in = layer.out_features, layer.in_features
    bias = d_out if layer.bias is not None else 0
    before = d_out * d_in + bias
    after = before if rank is None else rank * (d_out + d_in) + bias
    return {"name": name, "d_out": d_out, "d_in": d_in, "rank": rank, "before": before, "after": after}


def _from_folder(folder: Path) -> tuple[str, nn.Module, dict[str, int] | None]:
    """Family, dense model on the meta device, and the plan of a folder of ours or of plain transformers."""
    from transformers import AutoConfig

    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} is no model folder: config.json is missing")
    raw = json.loads(file.read_text(encoding="utf-8"))
    meta = raw.pop(KEY, None) or {}
    kind = raw.pop("model_type", None)
    family = family_of(kind, str(file))
    task = meta.get("task") or task_of(kind, (raw.get("architectures") or [""])[0])
    return family, on_meta(task, AutoConfig.for_model(kind, **raw)), meta.get("plan")
