"""From a dense model to the folder of a low-rank one: what the stage and the command ``factorise`` share.

A model is opened from a folder of ours, a folder in the hub's layout, or the hub. Its weights stay memory-mapped (but
for a ``pytorch_model.bin``), and the result is written layer by layer: beside one layer nothing is held in memory.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.apply import spectra
from lowrank_speech.lowrank.counts import count_parameters
from lowrank_speech.lowrank.moments import MomentsFile
from lowrank_speech.lowrank.plan import plan_ranks
from lowrank_speech.lowrank.recipe import Factorise
from lowrank_speech.lowrank.select import select
from lowrank_speech.models.classes import family_of
from lowrank_speech.models.families import kept_out, layer_patterns
from lowrank_speech.models.folder import save_factorised
from lowrank_speech.models.sources import import_model, resolve
from lowrank_speech.models.speech import SpeechModel


def open_dense(source: str | Path, revision: str | None = None) -> tuple[SpeechModel, Path]:
    """The dense model of a folder (ours or in the hub's layout) or hub name, and the folder where its files are.

    UserError when there is none, or it is factorised already.
    """
    found = resolve(str(source), revision)
    file = found.folder / "config.json"
    model_type = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    model = import_model(found, family_of(model_type, str(file)))
    if model.plan:
        raise UserError(f"{source} is factorised already ({len(model.plan)} layers); give the dense model")
    return model, found.folder


def dense_layers(model: SpeechModel, layers: str | tuple[str, ...]) -> dict[str, nn.Linear]:
    """Name -> layer of what ``layers`` (a group, a pattern, or several) means in the model's family."""
    return select(model.hf, layer_patterns(model.family, layers), exclude=kept_out(model.family))


def factorise_model(
    model: SpeechModel, recipe: Factorise, out: Path, copy_from: Path, moments: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Write the folder ``out`` of the low-rank model that ``recipe`` makes of ``model``; ``model`` stays as it is.

    ``copy_from``: the folder of ``model``. ``moments``: file of second moments, needed by `init: activation`; with any
    init the report then has the output error of each layer. ``seed`` decides `init: random`. Returns
    ``parameters_before``, ``parameters_after``, ``reduction`` (share), ``layers`` (a row each, see
    ``lowrank.apply.factorise``) and ``left_dense`` (name -> why). UserError or ValueError where it does not fit.
    """
    if recipe.init == "activation" and moments is None:
        raise UserError("init: activation needs the second moments of the layers' inputs (calibration)")
    before = count_parameters(model.hf)["total"]
    chosen = dense_layers(model, recipe.layers)
    stored = MomentsFile(moments) if moments is not None else None
    means = stored.means if stored is not None else None
    values = None
    if recipe.energy is not None or recipe.allocate:
        # What an activation-aware cut loses is the spectrum of the whitened weight.
        values = spectra(chosen, stored, means) if recipe.init == "activation" else spectra(chosen)
    shapes = {name: (layer.out_features, layer.in_features) for name, layer in chosen.items()}
    plan = plan_ranks(shapes, before, **recipe.ranks(), spectra=values)
    if not plan:
        raise UserError(f"all {len(chosen)} layers would stay dense: ask for a lower rank")
    rows = save_factorised(model, plan, out, copy_from, init=recipe.init, moments=stored, seed=seed, means=means)
    after = before - plan.saving(shapes)
    return {
        "parameters_before": before,
        "parameters_after": after,
        "reduction": 1 - after / before,
        "layers": rows,
        "left_dense": dict(plan.left_dense),
    }
