"""Factorise a dense model into the folder of a low-rank one; the stage and the command ``factorise`` share this code.

The weights stay memory-mapped (except for a ``pytorch_model.bin``), and the result is written layer by layer, so memory
holds only one layer at a time.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.factorise import spectra, write_factorised
from lowrank_speech.lowrank.moments import MomentsFile
from lowrank_speech.lowrank.plan import plan_ranks
from lowrank_speech.lowrank.recipe import Factorise
from lowrank_speech.lowrank.select import shapes_of
from lowrank_speech.models.build import stored
from lowrank_speech.models.folder import model_folder
from lowrank_speech.models.layers import dense_layers
from lowrank_speech.models.speech import SpeechModel


def save_factorised(
    model: SpeechModel,
    plan: Mapping[str, int],
    folder: str | Path,
    copy_from: str | Path | None = None,
    target: Mapping[str, int] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Factorise the dense ``model`` by ``plan`` and write it layer by layer, without changing ``model``.

    ``target``: the ranks that a training has to reach from those of ``plan``; the folder notes them.
    ``options`` (``init``, ``moments``, ``seed``, ``means``) and the returned rows: see ``lowrank.factorise``. The
    folder is the same as after factorising in memory and ``save_model``.
    """
    meta = dataclasses.replace(model.meta, plan=dict(plan), target=dict(target) if target else None)
    state, prefix, body = model.state_dict(), model.body_prefix, set(model.body.state_dict())
    names = {name: model.disk_name(name) for name in stored(model)}
    others = {theirs: state[own] for own, theirs in names.items() if theirs.removeprefix(prefix) not in body}
    with model_folder(model, meta, folder, copy_from) as weights:
        return write_factorised(weights, model.body, plan, prefix=prefix, others=others, **options)


def factorise_model(
    model: SpeechModel,
    recipe: Factorise,
    out: Path,
    copy_from: Path,
    moments: Path | None = None,
    seed: int = 0,
    start: float | None = None,
) -> dict[str, Any]:
    """Factorise ``model`` by ``recipe`` into the folder ``out``, without changing ``model``.

    ``start``: give the layers at least this share of their full rank, and note the ranks of ``recipe`` as the target of
    a training that truncates them; the rows are then those of the larger ranks, with the target as ``final_rank``.

    ``copy_from``: the folder of ``model``. ``moments``: file of second moments; `init: activation` needs it, and with
    any init it adds the output error of each layer to the report. ``seed`` is for `init: random`. Returns
    ``parameters_before``, ``parameters_after``, ``reduction`` (share), ``layers`` (one row each, see
    ``lowrank.factorise``) and ``left_dense`` (name -> reason). Raises UserError or ValueError if the recipe does not
    fit the model.
    """
    if recipe.init == "activation" and moments is None:
        raise UserError("init: activation needs the second moments of the layers' inputs (calibration)")
    before = model.parameters_total()
    chosen = dense_layers(model, recipe.layers)
    seen = MomentsFile(moments) if moments is not None else None
    means = seen.means if seen is not None else None
    values = None
    if recipe.energy is not None or recipe.allocate:
        # The loss of an activation-aware cut is that of the whitened weight's spectrum.
        values = spectra(chosen, seen, means) if recipe.init == "activation" else spectra(chosen)
    shapes = shapes_of(chosen)
    plan = plan_ranks(shapes, before, **recipe.ranks(), spectra=values)
    if not plan:
        raise UserError(f"all {len(chosen)} layers would stay dense; set a lower rank")
    options = {"init": recipe.init, "moments": seen, "seed": seed, "means": means}
    if start is None:
        rows = save_factorised(model, plan, out, copy_from, **options)
    else:
        larger = _start(plan, shapes, start)
        rows = save_factorised(model, larger, out, copy_from, target=plan, **options)
        rows = [{**row, "final_rank": plan[row["name"]]} for row in rows]
    after = before - plan.saving(shapes)
    return {
        "parameters_before": before,
        "parameters_after": after,
        "reduction": 1 - after / before,
        "layers": rows,
        "left_dense": dict(plan.left_dense),
    }


def _start(plan: Mapping[str, int], shapes: Mapping[str, tuple[int, int]], share: float) -> dict[str, int]:
    """The ranks of ``plan``, raised to ``share`` of the full ranks. Raises UserError if none is raised."""
    larger = {name: max(rank, round(share * min(shapes[name]))) for name, rank in plan.items()}
    if larger == dict(plan):
        raise UserError(
            f"progressive.start: {share:g} of the full ranks is below the ranks of factorise, so nothing would be "
            f"truncated; raise it (1: full rank), or remove progressive"
        )
    return larger
