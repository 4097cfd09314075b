"""report.html: one self-contained page. Images and style are inlined, nothing is loaded from anywhere.

Names of systems, ids of utterances and transcripts come from data: jinja2 escapes all of it (autoescape is on, and
nothing but our own stylesheet is marked safe), and the page's content policy forbids scripts and the network besides.
"""

import base64
import json
from collections.abc import Sequence
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
    """All that the page shows, in its order."""

    title: str
    summary: Sequence[str]
    headlines: Sequence[Headline]
    compared: Sequence[tuple[str, str]]
    blocks: Sequence[Block]
    plots: Sequence[Plot]
    mistakes: Sequence[tuple[str, Sequence[Table]]]
    layers: Sequence[Table]
    data: Sequence[Table]
    configs: Sequence[tuple[str, str]]
    versions: Sequence[tuple[str, str]]
    measured: Sequence[tuple[str, str]]


def write_page(path: Path, page: Page) -> None:
    """Render the template (page.html.j2, page.css beside this module) to ``path``."""
    folder = resources.files("lowrank_speech.reporting")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["data_uri"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    template = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8"))
    style = markupsafe.Markup((folder / "page.css").read_text(encoding="utf-8"))
    write_text(path, template.render(page=page, style=style))


def compared(systems: Sequence[System]) -> list[tuple[str, str]]:
    """What is compared with what: tasks, bases, test sets, decoders, and each method with how it adapts."""
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
    """How a method adapts, from the manifests of its systems; the layers that were factorised differ by base."""
    system = systems[0]
    words = {
        "none": "the base as it came; only a head that the task needs and the base lacks is trained",
        "head": "only the head is trained",
        "full": "all weights are trained (the front end apart)",
        "lora": "low-rank adapters beside frozen weights are trained, and merged",
    }
    adapt = system.numbers["adapt"]
    parts = [words.get(adapt, f"adapt: {adapt}" if adapt else "adaptation not stated")]
    train = system.manifests["train"].get("cfg", {})
    if adapt == "lora" and isinstance(train.get("lora"), dict) and "rank" in train["lora"]:
        parts.append(f"LoRA rank {train['lora']['rank']}")
    if "factorise" in system.manifests:
        layers = {s.name.base: len(s.manifests["factorise"]["metrics"].get("layers") or ()) for s in systems}
        counts = [f"{n} layers of {base}" for base, n in layers.items() if n]
        parts.insert(0, f"{', '.join(counts)} factorised first" if counts else "factorised first")
    elif (system.numbers["reduction"] or 0) > 5e-3:
        parts.insert(0, "a low-rank model")
    return "; ".join(parts)


def configs(systems: Sequence[System]) -> list[tuple[str, str]]:
    """(what, JSON) of the settings that each stage ran with, equal ones once, in the order of the stages."""
    places = [("factorise", f"{s.name.base}/{s.name.method}", s.manifests) for s in systems]
    places += [("train", str(s.name), s.manifests) for s in systems]
    places += [(stage, str(r), r.manifests) for stage in ("decode", "score") for s in systems for r in s.results]
    found: dict[tuple[str, str], list[str]] = {}
    for stage, place, manifests in places:
        cfg = manifests.get(stage, {}).get("cfg")
        if cfg is not None:
            text = json.dumps(cfg, indent=2, sort_keys=True, ensure_ascii=False)
            found.setdefault((stage, text), []).append(place)
    return [(f"{stage}: {', '.join(dict.fromkeys(names))}", text) for (stage, text), names in found.items()]


def versions(systems: Sequence[System]) -> list[tuple[str, str]]:
    """(package, version) from what the runs cost; versions that differ between them are listed side by side."""
    costs = [cost for s in systems for holder in (s, *s.results) for cost in holder.costs.values()]
    found: dict[str, list[str]] = {}
    for cost in costs:
        for name, version in (cost.get("versions") or {}).items():
            found.setdefault(name, []).append(str(version))
    return [(name, ", ".join(dict.fromkeys(several))) for name, several in found.items()]


def measured(systems: Sequence[System]) -> list[tuple[str, str]]:
    """How each figure came about, for those devices and scores that are in the table."""
    devices = {str(s.numbers["device"]).split(":")[0] for s in systems}
    memory = []
    if devices - {"cuda"}:
        memory.append(
            "On a CPU, the peak of the training process's resident memory, libraries included: about 0.75 GB of it is "
            "Python and torch, whatever the model."
        )
    if "cuda" in devices:
        memory.append("On a GPU, CUDA's own peak of allocated memory, weights and activations alike, no libraries.")
    results = [result for system in systems for result in system.results]
    types = {result.system.type: result.score for result in results}
    rows = [("intervals", _intervals([result.score for result in results if result.error_interval]))]
    if "asr" in types:
        spaces = "counted" if types["asr"].get("character_counting") == "with-spaces" else "not counted"
        note = f"; the space between words is {spaces} as a character" if "character_counting" in types["asr"] else ""
        rows.append(
            (
                "WER, CER",
                "Substitutions, deletions and insertions by least-cost alignment, divided by the words (characters) of "
                f"the references, both sides normalised alike{note}.",
            )
        )
    if "lid" in types:
        rows.append(
            (
                "accuracy, C primary",
                "Accuracy is the share of segments whose best-scored language is the true one; chance is what guessing "
                "gives. C primary averages the detection cost over target priors (NIST LRE17/22: 0.5 and 0.1): "
                "actual with the thresholds that the priors imply, minimum with the best ones; 0 is perfect, 1 is what "
                f"rejecting everything costs{_variants(types['lid'])}.",
            )
        )
    return [
        *rows,
        ("parameters", "Of the whole model with its head, as it is decoded; LoRA is merged, so it adds none."),
        ("against dense", "Change in parameters against the same model with dense layers."),
        ("trained", "Parameters with a gradient: with LoRA the adapters and the head."),
        ("peak memory", " ".join(memory)),
        (
            "training time",
            "Inside training steps (forward, backward, optimiser, constraint) on this device; loading and evaluation "
            "on dev are not in it.",
        ),
        (
            "decoding",
            "Seconds of work per second of speech, over the test sets: forward pass and search, after one warm-up "
            "batch, plus the frozen front end and the network where their outputs were stored beforehand. Reading is "
            "not in it.",
        ),
    ]


def _variants(score: dict[str, Any]) -> str:
    """Which minimum and which EER, where score.json says so."""
    minimum = {"common": "one threshold for all languages", "per-language": "one threshold per language"}
    eer = {"rocch": "on the convex hull of the ROC", "nearest": "at its nearest point"}
    over = {"pooled": "pooled over the languages", "languages": "averaged over the languages"}
    parts = []
    if score.get("minimum") in minimum:
        parts.append(f"the minimum has {minimum[score['minimum']]}")
    if score.get("eer_kind") in eer and score.get("eer_over") in over:
        parts.append(f"the EER is read {eer[score['eer_kind']]}, {over[score['eer_over']]}")
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
        "They cover the choice of the test data, not another training seed. Two that are apart differ beyond that "
        "choice; two that overlap may differ all the same."
    )
    return f"{'; '.join(dict.fromkeys(texts))}. {note}" if texts else "None were computed."
