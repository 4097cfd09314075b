"""The model card of a compressed model: that of an export, with what compression did and what it costs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lowrank_speech.exporting import card as cards
from lowrank_speech.exporting.about import About, Score
from lowrank_speech.exporting.snippets import transformers
from lowrank_speech.models.speech import SpeechModel


def card(report: dict[str, Any], known: About, model: SpeechModel, out: Path) -> str:
    """The text of README.md for a ``report`` of ``compressing.compress``.

    ``known``: about the source; ``model``: the compressed model, in the folder ``out``.
    """
    ranks, divergence = [row["rank"] for row in report["layers"]], report["divergence"]
    facts = {
        "family": report["family"],
        "task": report["task"],
        "parameters": report["parameters_after"],
        "dense": report["parameters_before"],
        "layers": len(ranks),
        "ranks": (min(ranks), max(ranks)),
        "bytes": sum(path.stat().st_size for path in out.iterdir() if path.is_file()),
        "compared": {} if divergence is None else {"divergence": divergence["loss"]},
    }
    revision = f" (revision {report['revision']})" if report["revision"] else ""
    found = replace(
        known,
        name=out.name,
        base=f"{report['source']}{revision}" + (f", made from {known.base}" if known.base else ""),
        method=[*known.method, *_method(report)],
        data=[*known.data, *_data(report)],
        scores=_scores(report),
    )
    return cards.card("hf", facts, found, transformers(model, out))


def _method(report: dict[str, Any]) -> list[str]:
    recipe = report["recipe"]
    layers = recipe["layers"] if isinstance(recipe["layers"], str) else ", ".join(recipe["layers"])
    ranks = "ranks by what they cost" if recipe["allocate"] else "uniform ranks"
    version = report["versions"].get("lowrank-speech", "")
    said = f"factorised without training by lowrank-speech {version}: {layers}; init {recipe['init']}; {ranks}"
    return [said, *report["verdict"], "compress.json lists every layer"]


def _data(report: dict[str, Any]) -> list[str]:
    seen, evaluation = report["calibration"], report["evaluation"]
    found = [f"calibrated on {seen['utterances']} utterances ({seen['seconds'] / 60:.1f} minutes), without transcripts"]
    if seen["held_out"]:
        found.append(f"{seen['held_out']} further ones measured the loss")
    if evaluation is not None:
        found.append(
            f"error rates: {evaluation['utterances']} utterances ({evaluation['seconds'] / 60:.1f} minutes) that "
            f"calibration has not seen, normaliser {evaluation['normaliser']}"
        )
    return found


def _scores(report: dict[str, Any]) -> list[Score]:
    evaluation = report["evaluation"]
    if evaluation is None:
        return []
    test, found = Path(evaluation["path"]).name, []
    for name in ("wer", "cer"):
        for side, shown in (("before", f"{test}, before compression"), ("after", test)):
            rate = evaluation[side][name]
            interval = (evaluation[side]["interval"] or {}).get(name)
            if rate is not None:
                found.append(Score("greedy", shown, name, rate, tuple(interval) if interval else None))
    return found
