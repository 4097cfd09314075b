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
    model: SpeechModel, plan: Mapping[str, int], folder: str | Path, copy_from: str | Path | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Factorise the dense ``model`` by ``plan`` and write it layer by layer, without changing ``model``.

    ``options`` (``init``, ``moments``, ``seed``, ``means``) and the returned rows: see ``lowrank.factorise``. The
    folder is the same as after factorising in memory and ``save_model``.
    """
    meta = dataclasses.replace(model.meta, plan=dict(plan))
    state, prefix, body = model.state_dict(), model.body_prefix, set(model.body.state_dict())
    names = {name: model.disk_name(name) for name in stored(model)}
    others = {theirs: state[own] for own, theirs in names.items() if theirs.removeprefix(prefix) not in body}
    with model_folder(model, meta, folder, copy_from) as weights:
        return write_factorised(weights, model.body, plan, prefix=prefix, others=others, **options)


def factorise_model(
    model: SpeechModel, recipe: Factorise, out: Path, copy_from: Path, moments: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Factorise ``model`` by ``recipe`` into the folder ``out``, without changing ``model``.

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
    rows = save_factorised(model, plan, out, copy_from, init=recipe.init, moments=seen, seed=seed, means=means)
    after = before - plan.saving(shapes)
    return {
        "parameters_before": before,
        "parameters_after": after,
        "reduction": 1 - after / before,
        "layers": rows,
        "left_dense": dict(plan.left_dense),
    }
