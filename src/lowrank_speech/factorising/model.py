"""Factorise a dense model into the folder of a low-rank one; the stage and the command ``factorise`` share this code.

Without ``allocate`` and ``sequential``, the weights stay memory-mapped (except for a ``pytorch_model.bin``) and the
result is written layer by layer, so memory holds only one layer at a time.
"""

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.factorising.depth import warnings_of
from lowrank_speech.factorising.trial import Reference, Trial
from lowrank_speech.factorising.utterances import Example
from lowrank_speech.lowrank.factorise import spectra, write_factorised
from lowrank_speech.lowrank.layer_factors import Statistics, check_seen
from lowrank_speech.lowrank.moments import MomentsFile
from lowrank_speech.lowrank.plan import plan_ranks
from lowrank_speech.lowrank.recipe import CALIBRATED, Factorise
from lowrank_speech.lowrank.select import shapes_of
from lowrank_speech.lowrank.structure import Plan, Shape, dense_size, factored_size, full_rank
from lowrank_speech.models.build import stored
from lowrank_speech.models.folder import load_model, model_folder
from lowrank_speech.models.layers import dense_layers
from lowrank_speech.models.speech import SpeechModel

log = logging.getLogger(__name__)


def save_factorised(
    model: SpeechModel,
    plan: Mapping[str, int],
    folder: str | Path,
    copy_from: str | Path | None = None,
    exact: Sequence[int] = (),
    target: Mapping[str, int] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Factorise the dense ``model`` by ``plan`` and write it layer by layer, without changing ``model``.

    ``target``: the ranks that a training has to reach from those of ``plan``; the folder notes them. ``exact``,
    ``options`` (``init``, ``seen``, ``seed``) and the returned rows: see ``lowrank.factorise``. The folder is the same
    as after factorising in memory and ``save_model``.
    """
    noted, exact_rows = dict(target) if target else None, len(exact) if model.EMBEDDING in plan else 0
    meta = dataclasses.replace(model.meta, plan=dict(plan), target=noted, exact=exact_rows)
    state, prefix, body = model.state_dict(), model.body_prefix, set(model.body.state_dict())
    names = {name: model.disk_name(name) for name in stored(model)}
    others = {theirs: state[own] for own, theirs in names.items() if theirs.removeprefix(prefix) not in body}
    with model_folder(model, meta, folder, copy_from) as weights:
        return write_factorised(weights, model.body, plan, prefix=prefix, others=others, exact=exact, **options)


def factorise_model(
    model: SpeechModel,
    recipe: Factorise,
    out: Path,
    copy_from: Path,
    moments: Path | None = None,
    seed: int = 0,
    trial: Sequence[Example] = (),
    calibration: Sequence[Example] = (),
    start: float | None = None,
) -> dict[str, Any]:
    """Factorise ``model`` by ``recipe`` into the folder ``out``, without changing ``model``.

    ``copy_from``: the folder of ``model``. ``moments``: file of second moments; `init: activation` and `two-sided` need
    it, and with any init it adds the output error of each layer to the report. ``trial``: utterances that
    calibration has not seen; `allocate` needs them, and with any recipe they add the divergence. ``calibration``: those
    that it has seen, for `sequential`. ``seed`` is for `init: random` and for the labels of `two-sided`.

    ``start``: give the linear layers at least this share of their full rank, and note the ranks of ``recipe`` as the
    target of a training that truncates them; the rows are then those of the larger ranks, with the target as
    ``final_rank``, and the divergence is not measured.

    Returns ``parameters_before``, ``parameters_after``, ``reduction`` (share), ``layers`` (one row each, see
    ``lowrank.factorise``), ``left_dense`` (name -> reason), ``divergence`` (``factorising.trial``; ``loss``,
    ``agreement``, and ``seen``, how many utterances calibration had seen, if any; None without trial), ``warnings``
    (lines, see ``factorising.depth``) and ``allocation`` (None without `allocate`). Raises UserError or ValueError if
    the recipe does not fit the model.
    """
    if recipe.init in CALIBRATED and moments is None:
        raise UserError(f"init: {recipe.init} needs the second moments of the layers' inputs (calibration)")
    for wish, speech in (("allocate", trial), ("sequential", calibration)):
        if getattr(recipe, wish) and not speech:
            raise UserError(f"{wish} needs calibration speech")
    before = model.parameters_total()
    chosen = dense_layers(model, recipe.layers)
    file = MomentsFile(moments) if moments is not None else None
    seen = Statistics.of(file)
    check_seen(chosen, recipe.init, seen)
    exact = exact_rows(model, recipe.exact_rows, file) if model.EMBEDDING in chosen else []
    shapes = shapes_of(chosen, len(exact))
    values = spectra(chosen, recipe.init, seen, exact) if recipe.energy is not None else None
    plan = plan_ranks(shapes, before, **recipe.ranks(), spectra=values)
    if not plan:
        raise UserError(f"all {len(chosen)} layers would stay dense; set a lower rank")
    # A start at larger ranks is not measured, so it needs the dense outputs only for the allocation.
    reference = Reference(model, trial) if trial and (recipe.allocate or start is None) else None
    allocation = None
    if recipe.allocate:
        plan, allocation = allocated(recipe, shapes, plan, Trial(reference, chosen, recipe.init, seen, exact))
    with contextlib.ExitStack() as until_written:
        if recipe.sequential:
            from lowrank_speech.factorising.sequential import sequential_statistics

            out.parent.mkdir(parents=True, exist_ok=True)
            scratch = tempfile.TemporaryDirectory(dir=out.parent, prefix=".moments-")
            folder = Path(until_written.enter_context(scratch))
            seen = sequential_statistics(model, chosen, plan, recipe.init, calibration, folder, seed, exact)
        options = {"init": recipe.init, "seen": seen, "seed": seed, "exact": exact}
        if start is None:
            rows = save_factorised(model, plan, out, copy_from, **options)
        else:
            larger = _start(plan, shapes, start)
            rows = save_factorised(model, larger, out, copy_from, target=plan, **options)
            rows = [{**row, "final_rank": plan[row["name"]]} for row in rows]
    found = None
    if reference is not None and start is None:
        found = reference.divergence(load_model(out).to(next(model.parameters()).device))
    after = before - plan.saving(shapes)
    known = sum(example.seen for example in trial)
    warnings = warnings_of(rows, found)
    if known:
        warnings.append(
            f"{known} of the {len(trial)} utterances that measured the loss had also been calibrated on, because there "
            f"is too little speech: it looks too small"
        )
    return {
        "parameters_before": before,
        "parameters_after": after,
        "reduction": 1 - after / before,
        "layers": rows,
        "left_dense": dict(plan.left_dense),
        "divergence": found and found._asdict() | ({"seen": known} if known else {}),
        "warnings": warnings,
        "allocation": allocation,
    }


def exact_rows(model: SpeechModel, number: int, file: MomentsFile | None) -> list[int]:
    """Sorted ids of the rows of the embedding that are kept: special tokens, and the ``number`` most frequent others.

    Frequent tokens are those in the transcripts of the calibration, then those with the lowest ids: byte-level
    vocabularies list tokens by their frequency in the text from which they were learnt.
    """
    key, special = f"{model.EMBEDDING}.tokens", set(model.special_tokens())
    size = model.config.vocab_size
    counts = file.read(key).tolist() if file is not None and file.has(key) else [0] * size
    others = sorted((i for i in range(size) if i not in special), key=lambda i: (-counts[i], i))
    return sorted(special | set(others[:number]))


def allocated(
    recipe: Factorise, shapes: Mapping[str, Shape], uniform: Plan, trial: Trial
) -> tuple[Plan, dict[str, Any]]:
    """The plan with the budget of ``uniform`` that diverges least, and how it was found; see ``lowrank.allocate``.

    The uniform plan is kept if it diverges less. The report: ``curves`` (name -> [[rank, divergence], ...]),
    ``uniform`` and ``allocated`` (the divergence of both plans), ``kept`` (which of them).
    """
    from lowrank_speech.lowrank.allocate import allocate_ranks, curves

    measured = curves(shapes, lambda ranks: trial.divergence(ranks).loss, recipe.floor, recipe.multiple_of)
    budget = sum(factored_size(s, uniform[n]) if n in uniform else dense_size(s) for n, s in shapes.items())
    ranks = allocate_ranks(shapes, measured, budget, recipe.multiple_of)
    reasons = {
        name: uniform.left_dense.get(name, "the allocation keeps it dense") for name, r in ranks.items() if r is None
    }
    plan = Plan({name: rank for name, rank in ranks.items() if rank is not None}, reasons)
    found = {"uniform": trial.divergence(uniform), "allocated": trial.divergence(plan)}
    kept = "allocated" if found["allocated"].loss < found["uniform"].loss else "uniform"
    log.info(
        "divergence from the dense model: %.4f with uniform ranks, %.4f with allocated ranks; keeping the %s ones",
        found["uniform"].loss, found["allocated"].loss, kept,
    )  # fmt: skip
    report = {"curves": {name: [list(p) for p in curve] for name, curve in measured.items()}, "kept": kept}
    return plan if kept == "allocated" else uniform, report | {name: d._asdict() for name, d in found.items()}


def _start(plan: Mapping[str, int], shapes: Mapping[str, Shape], share: float) -> dict[str, int]:
    """The ranks of ``plan``, those of linear layers raised to ``share`` of the full ranks.

    Raises UserError if none is raised.
    """
    linear = {name for name, shape in shapes.items() if len(shape) == 2}
    larger = {n: max(r, round(share * full_rank(shapes[n]))) if n in linear else r for n, r in plan.items()}
    if larger == dict(plan):
        raise UserError(
            f"progressive.start: {share:g} of the full ranks is below the ranks of factorise, so nothing would be "
            f"truncated; raise it (1: full rank), or remove progressive"
        )
    return larger
