"""Count parameters before and after a factorisation, without factorising.

``count(preset="xls-r-300m", layers="ffn", rank=512)`` or ``count(model="exp/default/base/xlsr/model",
reduction=0.24)``. Models are built on the meta device, only from their config; a folder that is already factorised is
counted as it is. Layer names are relative to the body, so they are the same in a preset, a folder and a factorisation.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.counts import count_parameters
from lowrank_speech.lowrank.plan import plan_ranks
from lowrank_speech.lowrank.recipe import Factorise
from lowrank_speech.lowrank.select import shapes_of
from lowrank_speech.lowrank.structure import Dense, Plan, Shape, dense_size, factored_size
from lowrank_speech.models.build import skeleton
from lowrank_speech.models.files import KEY
from lowrank_speech.models.folder import structure_of
from lowrank_speech.models.layers import dense_layers
from lowrank_speech.models.presets import PRESETS, build_meta
from lowrank_speech.models.registry import family_class, family_of
from lowrank_speech.models.sources import config_folder
from lowrank_speech.models.speech import SpeechModel


def count(
    model: str | None = None,
    preset: str | None = None,
    layers: str = "ffn",
    rank: int | None = None,
    reduction: float | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Parameters of a model before and after its ``layers`` get ``rank``, or the rank that ``reduction`` needs.

    Give either ``model``, a model folder, hub name (at ``revision``) or preset, or ``preset``, a name of
    ``presets.PRESETS``. Only config.json is fetched from the hub. Without ``rank`` and ``reduction`` nothing is
    factorised; a factorised folder is counted with its own plan.

    Returns ``model``, ``class`` (of transformers), ``total_before``, ``total_after``, ``reduction`` (share of
    ``total_before``), ``groups`` (name -> parameters before; the first two parts of layer names), ``layers`` (a list of
    {name, d_out, d_in, rank, before, after}; parameters include the bias; rank None: dense) and ``left_dense`` (name ->
    reason). Raises UserError if a folder, preset, pattern, rank or reduction is not valid.
    """
    if (model is None) == (preset is None):
        raise UserError("count: give either a model or a preset")
    if model in PRESETS and not Path(model).is_dir():
        model, preset = None, model
    if preset is not None:
        dense, own, exact = build_meta(preset), None, 0
    else:
        dense, own, exact = _from_folder(config_folder(model, revision))
    if own and (rank is not None or reduction is not None):
        raise UserError(f"{model} is already factorised ({len(own)} layers); count it without rank and reduction")
    total = dense.parameters_total()
    try:
        chosen = dense_layers(dense, tuple(own) if own else layers)
        shapes = shapes_of(chosen, exact if own else len(dense.special_tokens()) + Factorise.exact_rows)
        if own:
            plan = Plan.from_json(own)
        elif rank is None and reduction is None:
            plan = Plan({})
        else:
            plan = plan_ranks(shapes, total, rank=rank, reduction=reduction)
    except ValueError as error:
        raise UserError(f"count: {error}") from error
    after = total - plan.saving(shapes)
    return {
        "model": preset or str(model),
        "class": dense.architecture,
        "total_before": total,
        "total_after": after,
        "reduction": 1 - after / total,
        "groups": _groups(dense),
        "layers": [_row(name, layer, shapes[name], plan.get(name)) for name, layer in chosen.items()],
        "left_dense": dict(plan.left_dense),
    }


def _groups(model: SpeechModel) -> dict[str, int]:
    """Parameter counts by the first two parts of names relative to the body, then of parameters outside the body."""
    found = {name: group["total"] for name, group in count_parameters(model.body, depth=2)["groups"].items()}
    inside = set(map(id, model.body.parameters()))
    for name, parameter in model.named_parameters():
        if id(parameter) not in inside:
            group = ".".join(name.removeprefix("hf.").split(".")[:2])
            found[group] = found.get(group, 0) + parameter.numel()
    return found


def _row(name: str, layer: Dense, shape: Shape, rank: int | None) -> dict[str, Any]:
    bias = shape[0] if getattr(layer, "bias", None) is not None else 0
    before = dense_size(shape) + bias
    after = before if rank is None else factored_size(shape, rank) + bias
    return {"name": name, "d_out": shape[0], "d_in": shape[1], "rank": rank, "before": before, "after": after}


def _from_folder(folder: Path) -> tuple[SpeechModel, dict[str, int] | None, int]:
    """The dense model on the meta device, the plan, and the number of exact rows, of a folder of ours or of the hub."""
    from transformers import AutoConfig

    file = folder / "config.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    if KEY in raw:
        low = structure_of(raw, file)
        head = None if low.head is None else low.head.settings
        meta = dataclasses.replace(low.meta, plan=None)
        return skeleton(low.task, low.config, head=head, meta=meta), low.plan, low.meta.exact
    kind = raw.pop("model_type", None)
    task = family_class(family_of(kind, str(file))).task_of((raw.get("architectures") or [""])[0])
    return skeleton(task, AutoConfig.for_model(kind, **raw)), None, 0
