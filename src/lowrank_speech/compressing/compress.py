"""Compress a fine-tuned model without training: calibrate, choose ranks, factorise, evaluate before and after.

    result = compress(find("openai/whisper-small"), Path("small"), recipe, calibration, test)

The folder ``small`` then holds the model, ``compress.json`` (this result) and ``README.md`` (the model card).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import versions, write_json, write_text
from lowrank_speech.compressing.card import card
from lowrank_speech.compressing.evaluation import Recogniser, TestSet, compared, normaliser_for
from lowrank_speech.errors import UserError
from lowrank_speech.exporting.about import About, about
from lowrank_speech.factorising.model import exact_rows
from lowrank_speech.factorising.on_speech import Calibration, factorise_on
from lowrank_speech.inference.naming import Found, find
from lowrank_speech.lowrank.plan import plan_ranks
from lowrank_speech.lowrank.recipe import Factorise
from lowrank_speech.lowrank.select import shapes_of
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.folder import load_model
from lowrank_speech.models.layers import dense_layers
from lowrank_speech.models.sources import open_dense
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.settings import resolved

REPORT, CARD = "compress.json", "README.md"
LAYERS = {"whisper": ("ffn", "embedding")}
"""Family -> layers that a training-free cut spreads over; other families: ffn. Whisper's embedding is a large part of
small models, and bears a cut best: frequent tokens keep their rows."""


def compress(
    found: Found,
    out: Path,
    recipe: dict[str, Any],
    calibration: Calibration,
    test: TestSet | None = None,
    normaliser: str | None = None,
    bootstrap: int = 1000,
    seed: int = 1,
    device: str = "auto",
) -> dict[str, Any]:
    """Write the folder ``out``; returns the report.

    ``recipe``: keys of ``Factorise``; without ``layers``, those that suit the family. ``normaliser``: of both texts
    before they are compared (None: ``evaluation.normaliser_for``).

    The report: that of ``factorising.model.factorise_model``, with ``source``, ``family``, ``task``, ``recipe``,
    ``calibration`` (path, number of utterances, seconds), ``evaluation`` (``evaluation.compared``, or None),
    ``verdict`` (sentences) and ``versions``. UserError: the model is factorised already, does not fit the recipe, or
    writes no text although there is a ``test``.
    """
    model, folder = open_dense(found.folder)
    if "layers" not in recipe:
        recipe = recipe | {"layers": LAYERS.get(model.family, ("ffn",))}
    chosen = Factorise(**recipe)
    _check(model, chosen, found.name)
    texts = None if test is None else Recogniser(found, device).texts(test)
    model.to(pick_device(device))
    made = factorise_on(model, folder, chosen, out, calibration, None, seed, found.name)
    own = made.pop("calibration")
    report = {
        "source": found.name,
        "revision": found.revision,
        "family": model.family,
        "task": model.task,
        "recipe": resolved(chosen),
        "calibration": {
            "path": str(calibration.path),
            "utterances": len(own["utterances"]),
            "seconds": own["seconds_speech"],
            "held_out": len(set(own["trial"]) - set(own["utterances"])),
            "set_aside": own["set_aside"],
        },
        **made,
        "evaluation": None,
        "versions": versions(),
    }
    known = about(found.folder, found.name)
    _write(out, report, known)  # if the evaluation is interrupted, the folder is complete
    if test is not None:
        how = normaliser or normaliser_for(model, test.cuts)
        del model
        seen = {*own["utterances"], *own["trial"]}
        test.without([cut for cut in calibration.cuts if cut.id in seen])
        small = replace(find(out.resolve()), lang=found.lang)  # the same tokens
        after = Recogniser(small, device).texts(test)
        report["evaluation"] = {"path": str(test.path)} | compared(test, texts, after, how, bootstrap, seed)
        _write(out, report, known)
    return report


def _check(model: SpeechModel, recipe: Factorise, name: str) -> None:
    """Raise UserError if the recipe does not fit the model, before anything is decoded."""
    try:
        chosen = dense_layers(model, recipe.layers)
        if recipe.energy is None:
            exact = exact_rows(model, recipe.exact_rows, None) if model.EMBEDDING in chosen else []
            plan_ranks(shapes_of(chosen, len(exact)), model.parameters_total(), **recipe.ranks())
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def _write(out: Path, report: dict[str, Any], known: About) -> None:
    report["verdict"] = verdict(report)
    write_json(out / REPORT, report)
    write_text(out / CARD, card(report, known, load_model(out), out))


def verdict(report: dict[str, Any]) -> list[str]:
    """What the numbers mean, in sentences."""
    said = [f"{line[0].upper()}{line[1:]}." for line in report["warnings"]]
    evaluation = report["evaluation"]
    if evaluation is not None:
        wer = evaluation["difference"]["wer"]
        change = f"WER {100 * wer['second']:.2f} % -> {100 * wer['first']:.2f} %"
        if wer["interval"] is None:
            said.append(f"{change}; not tested: there are too few utterances or resamples.")
        elif wer["interval"][0] <= 0 <= wer["interval"][1]:
            said.append(f"{change}: not told apart on {evaluation['utterances']} utterances (p = {wer['p']:.3f}).")
        elif wer["difference"] < 0:
            said.append(f"{change}: the compressed model is better on this test set (p = {wer['p']:.3f}).")
        else:
            said.append(
                f"{change}: worse (p = {wer['p']:.3f}); save less, calibrate on more speech, or fine-tune the result."
            )
    elif not report["warnings"]:
        said.append("No sign that this cut needs fine-tuning; --evaluate TABLE measures error rates before and after.")
    return said
