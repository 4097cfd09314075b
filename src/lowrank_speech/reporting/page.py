"""report.html: one self-contained page. Images and styles are inlined, and the page loads nothing else.

Names of systems, ids of utterances and transcripts come from data. jinja2 escapes them (autoescape is on, and only our
own stylesheet is marked safe), and the page's content policy forbids scripts and network access.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from lowrank_speech.artefact import write_text
from lowrank_speech.reporting.blocks import TYPES, Block
from lowrank_speech.reporting.data import Table
from lowrank_speech.reporting.headline import Headline
from lowrank_speech.reporting.plots import Plot
from lowrank_speech.reporting.systems import System


@dataclass(frozen=True)
class Page:
    """Contents of the page, in order."""

    title: str
    summary: Sequence[str]
    headlines: Sequence[Headline]
    flagged: Table | None
    compared: Sequence[tuple[str, str]]
    blocks: Sequence[Block]
    sentences: Sequence[str]
    seeds: Table | None
    plots: Sequence[Plot]
    mistakes: Sequence[tuple[str, Sequence[Table]]]
    layers: Sequence[Table]
    data: Sequence[Table]
    configs: Sequence[tuple[str, str]]
    provenance: Sequence[tuple[str, str]]
    versions: Sequence[tuple[str, str]]
    measured: Sequence[tuple[str, str]]


def write_page(path: Path, page: Page) -> None:
    """Render page.html.j2 with page.css (both beside this module) to ``path``."""
    folder = resources.files("lowrank_speech.reporting")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["data_uri"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    template = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8"))
    style = markupsafe.Markup((folder / "page.css").read_text(encoding="utf-8"))
    write_text(path, template.render(page=page, style=style))


def compared(systems: Sequence[System]) -> list[tuple[str, str]]:
    """The tasks, bases, test sets and decoders that are compared, and how each method adapts the base."""
    unique = {key: list(dict.fromkeys(getattr(s.name, key) for s in systems)) for key in ("task", "base", "method")}
    types = {s.name.task: s.name.type for s in systems}
    how = {method: _how([s for s in systems if s.name.method == method]) for method in unique["method"]}
    used = {
        what: {
            task: list(dict.fromkeys(n for s in systems if s.name.task == task for n in getattr(s, what)))
            for task in unique["task"]
        }
        for what in ("tests", "decoders")
    }
    return [
        ("systems", str(len(systems))),
        ("tasks", ", ".join(f"{task} ({TYPES[types[task]]})" for task in unique["task"])),
        ("bases", ", ".join(unique["base"])),
        ("test sets", "; ".join(f"{task}: {', '.join(names)}" for task, names in used["tests"].items())),
        ("decoders", "; ".join(f"{task}: {', '.join(names)}" for task, names in used["decoders"].items())),
        *((f"method {method}", how[method]) for method in unique["method"]),
    ]


def _how(systems: Sequence[System]) -> str:
    """How a method adapts, from the manifests of its systems (the factorised layers depend on the base)."""
    system = systems[0]
    words = {
        "none": "the base is not adapted; if it lacks the head of the task, only the head is trained",
        "head": "only the head is trained",
        "full": "all weights except the front end are trained",
        "lora": "low-rank adapters are trained beside frozen weights, then merged",
    }
    adapt = system.metrics["adapt"]
    if system.control == "mean-logmel":
        return "control: a linear classifier on the mean log-mel of each utterance, without the base"
    parts = [words.get(adapt, f"adapt: {adapt}" if adapt else "adaptation unknown")]
    train = system.manifests["train"].get("cfg", {})
    if system.control is not None:
        parts.insert(0, "control: the labels of the training utterances are shuffled")
    if adapt == "lora" and isinstance(train.get("lora"), dict) and "rank" in train["lora"]:
        parts.append(f"LoRA rank {train['lora']['rank']}")
    if "factorise" in system.manifests:
        layers = {s.name.base: len(s.manifests["factorise"]["metrics"].get("layers") or ()) for s in systems}
        counts = [f"{n} layers of {base}" for base, n in layers.items() if n]
        parts.insert(0, f"{', '.join(counts)} factorised first" if counts else "factorised first")
    elif (system.metrics["reduction"] or 0) > 5e-3:
        parts.insert(0, "a low-rank model")
    return "; ".join(parts)


def configs(systems: Sequence[System], corpora: Mapping[str, dict[str, Any]]) -> list[tuple[str, str]]:
    """(what, JSON) of the settings of each stage, in the order of the stages; equal settings appear once.

    ``corpora``: corpus/split -> its manifest.
    """
    places = [("corpus", name, {"corpus": manifest}) for name, manifest in corpora.items()]
    places += [("base", s.name.base, s.manifests) for s in systems]
    places += [("factorise", f"{s.name.base}/{s.name.method}", s.manifests) for s in systems]
    places += [("train", str(s.name), s.manifests) for s in systems]
    places += [
        (stage, str(r), r.manifests) for stage in ("decode", "backend", "score") for s in systems for r in s.results
    ]
    found: dict[tuple[str, str], list[str]] = {}
    for stage, place, manifests in places:
        cfg = manifests.get(stage, {}).get("cfg")
        if cfg is not None:
            text = json.dumps(cfg, indent=2, sort_keys=True, ensure_ascii=False)
            found.setdefault((stage, text), []).append(place)
    return [(f"{stage}: {', '.join(dict.fromkeys(names))}", text) for (stage, text), names in found.items()]


def versions(systems: Sequence[System]) -> list[tuple[str, str]]:
    """(package, version) from the cost files; if versions differ between runs, all of them are listed."""
    costs = [cost for s in systems for holder in (s, *s.results) for cost in holder.costs.values()]
    found: dict[str, list[str]] = {}
    for cost in costs:
        for name, version in (cost.get("versions") or {}).items():
            found.setdefault(name, []).append(str(version))
    return [(name, ", ".join(dict.fromkeys(several))) for name, several in found.items()]


def measured(systems: Sequence[System]) -> list[tuple[str, str]]:
    """How each value was measured, for the devices and metrics in the table."""
    devices = {str(s.metrics["device"]).split(":")[0] for s in systems}
    memory = []
    if devices - {"cuda"}:
        memory.append(
            "On a CPU: peak resident memory of the training process, including libraries; Python and torch take about "
            "0.75 GB, whatever the model."
        )
    if "cuda" in devices:
        memory.append("On a GPU: CUDA's peak of allocated memory, for weights and activations, without libraries.")
    results = [result for system in systems for result in system.results]
    types = {result.system.type: result.score for result in results}
    rows = [("intervals", _intervals([result.score for result in results if result.error_interval]))]
    if any(result.resampled is not None for result in results):
        rows.append(("paired tests", PAIRED))
    if "asr" in types:
        spaces = "counted" if types["asr"].get("character_counting") == "with-spaces" else "not counted"
        note = f"; the space between words is {spaces} as a character" if "character_counting" in types["asr"] else ""
        rows.append(
            (
                "WER, CER",
                "Substitutions, deletions and insertions of the minimum-cost alignment, divided by the number of words "
                f"(characters) in the references; {_normalised(types['asr'])}{note}.",
            )
        )
    if "lid" in types:
        rows.append(
            (
                "accuracy, C primary",
                "Accuracy is the share of segments for which the true language has the highest score; chance is the "
                "accuracy of guessing. C primary averages the detection cost over target priors (NIST LRE17/22: 0.5 "
                "and 0.1): actual with the thresholds that the priors imply, minimum with the best thresholds; 0 is "
                f"perfect, 1 is the cost of rejecting everything{_variants(types['lid'])}.",
            )
        )
    return [
        *rows,
        ("parameters", "Of the whole model with its head, as used in decoding; merged LoRA adapters add none."),
        ("against dense", "Change in parameters relative to the same model with dense layers."),
        ("trained", "Parameters with a gradient; with LoRA, the adapters and the head."),
        ("peak memory", " ".join(memory)),
        (
            "training time",
            "Time in training steps (forward, backward, optimiser, constraint) on this device, without loading data "
            "and without evaluation on dev.",
        ),
        (
            "decoding",
            "Seconds of work per second of speech, over all test sets: forward pass and search, after a warm-up batch, "
            "plus the frozen front end or the network if their outputs were stored beforehand. Without reading data.",
        ),
    ]


PAIRED = (
    "Two systems are computed on the same resamples, and the interval is that of their difference (percentile method). "
    "p is two-sided: 2 (1 + min(k, l)) / (B + 1), where k of B differences are <= 0 and l are >= 0. Systems are not "
    "told apart if the interval covers 0, which does not mean that they are equally good: the interval says how much "
    "worse one may be. p is not corrected for the number of comparisons. With fewer than 20 speakers or utterances to "
    "draw from, intervals are too narrow and p too small."
)

NORMALISERS = {
    "house": "in lower case without punctuation",
    "whisper-basic": "as by Whisper's normaliser for any language: in lower case without punctuation and symbols",
    "whisper-english": "as by Whisper's normaliser for English (other languages: its basic one): in lower case without "
    "punctuation and fillers, with American spelling and numbers as digits",
}
"""Normaliser of scoring -> how its text is written."""


def _normalised(score: dict[str, Any]) -> str:
    """How references and hypotheses were normalised."""
    kind = score.get("normaliser") or "none"
    if kind == "none":
        return "references and hypotheses are normalised in the same way"
    numbers = ", after digits were spelt out" if score.get("numbers") == "words" else ""
    return f"references and hypotheses are compared {NORMALISERS.get(kind, f'as by {kind}')}{numbers}"


def _variants(score: dict[str, Any]) -> str:
    """Which minimum and which EER, according to score.json."""
    minimum = {"common": "one threshold for all languages", "per-language": "one threshold per language"}
    eer = {"rocch": "on the convex hull of the ROC", "nearest": "at its nearest point"}
    over = {"pooled": "pooled over the languages", "languages": "averaged over the languages"}
    parts = []
    if score.get("minimum") in minimum:
        parts.append(f"the minimum has {minimum[score['minimum']]}")
    if score.get("eer_kind") in eer and score.get("eer_over") in over:
        parts.append(f"the EER is computed {eer[score['eer_kind']]}, {over[score['eer_over']]}")
    return "".join(f"; {part}" for part in parts)


def _intervals(scores: Sequence[dict[str, Any]]) -> str:
    texts = []
    for score in scores:
        known = {"units", "resampled", "confidence", "bootstrap"} <= score.keys()
        texts += [
            f"{100 * score['confidence']:g} % percentile intervals over {score['bootstrap']} resamples of "
            f"{score['units']} {score['resampled']}"
        ] * known
    note = (
        "They cover the choice of test data, not the training seed. Two systems on the same test set are compared by "
        "paired tests, not by whether their intervals overlap."
    )
    return f"{'; '.join(dict.fromkeys(texts))}. {note}" if texts else "None were computed."
