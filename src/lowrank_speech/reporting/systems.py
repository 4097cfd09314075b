"""Systems and their numbers, gathered from the manifests that the stages left.

A system is one point of the grid: a base, adapted to a task by a method. Inputs, under the experiment's folder:
train/, decode/ and score/{base}/{task}/{method}/{train,decode,score}.json, metrics.jsonl beside train.json, and
factorise/{base}/{factorisation}/factorise.json where the method factorises. Output: one `System` each, whose `numbers`
are the raw figures (fractions, bytes, seconds) by the column names of results.csv; None where no manifest holds one.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import read_manifest
from lowrank_speech.errors import UserError

METRICS = {
    "asr": ("wer", "cer"),
    "lid": ("accuracy", "macro_accuracy", "act_cprimary", "min_cprimary", "eer"),
}
"""Measures of a task's type, the one that leads first; each comes with _low and _high where it has an interval."""

# What is taken from each manifest, by its name there.
_FROM_SCORE = ("words", "substitutions", "deletions", "insertions")
_CHANCE = ("accuracy", "majority_accuracy", "act_cprimary", "min_cprimary", "eer")
_FROM_TRAIN = (
    *("parameters_total", "parameters_dense", "parameters_trained"),
    *("seconds_train", "speech_seconds_per_second", "steps", "epochs", "dev_metric", "deviation"),
)
_FROM_DECODE = ("utterances", "speech_seconds", "seconds", "rtf", "frontend_rtf")
COLUMNS = (
    *("task", "type", "base", "method", "adapt"),
    *(f"{metric}{end}" for metrics in METRICS.values() for metric in metrics for end in ("", "_low", "_high")),
    *_FROM_SCORE,
    *(f"chance_{key}" for key in _CHANCE),
    *("parameters_total", "parameters_dense", "parameters_trained", "reduction", "trained_share"),
    *("peak_bytes", "device", *_FROM_TRAIN[3:]),
    *("utterances", "speech_seconds", "seconds_decode", "rtf", "frontend_rtf", "rtf_total", "peak_bytes_decode"),
    *("set_aside_train", "set_aside_decode"),
)
"""Header of results.csv; the names and their order are stable."""


@dataclass(frozen=True)
class SystemName:
    """One point of the grid. ``type``: asr or lid.

    ``factorisation``: folder of its low-rank model below factorise/{base}/ (methods may share one); None: a folder of
    the method's name, if there is one.
    """

    base: str
    task: str
    method: str
    type: str
    factorisation: str | None = None

    def __post_init__(self) -> None:
        if self.type not in METRICS:
            raise ValueError(f"the type {self.type!r} of {self} is none of {', '.join(METRICS)}")

    def __str__(self) -> str:
        return f"{self.base}/{self.task}/{self.method}"


@dataclass(frozen=True)
class System:
    """A system with what was measured.

    ``numbers``: by the names of `COLUMNS`, None where unknown. ``score``: all numbers of score.json (confusions are
    there). ``history``: rows of metrics.jsonl. ``manifests``: train, decode, score, and factorise where there is one.
    """

    name: SystemName
    numbers: dict[str, Any]
    score: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def unadapted(self) -> bool:
        """True for the base as it came (at most a head that it lacked was trained)."""
        return self.numbers["adapt"] == "none"

    @property
    def metric(self) -> str:
        """The measure that leads: wer, accuracy."""
        return METRICS[self.name.type][0]

    @property
    def error(self) -> float | None:
        """Share that is wrong, by the leading measure: the word error rate, or 1 - accuracy."""
        value = self.numbers[self.metric]
        return value if value is None or self.name.type == "asr" else 1.0 - value

    @property
    def confidence(self) -> float:
        """Mass of the intervals, as the stage score says."""
        return self.score.get("confidence", 0.95)

    @property
    def error_interval(self) -> tuple[float, float] | None:
        """Low and high end of the interval of `error`, None where the score has none."""
        low, high = self.numbers[f"{self.metric}_low"], self.numbers[f"{self.metric}_high"]
        if low is None or high is None:
            return None
        return (low, high) if self.name.type == "asr" else (1.0 - high, 1.0 - low)


def read_systems(root: Path, names: Sequence[SystemName]) -> list[System]:
    """Read every system's manifests under ``root``; unadapted bases come first within their task and base.

    The order of tasks, bases and methods is that of ``names``. UserError where a manifest is absent or unreadable,
    naming it and the command that makes it.
    """
    systems = [read_system(root, name) for name in names]
    tasks = list(dict.fromkeys(name.task for name in names))
    bases = list(dict.fromkeys(name.base for name in names))
    return sorted(systems, key=lambda s: (tasks.index(s.name.task), bases.index(s.name.base), not s.unadapted))


def read_system(root: Path, name: SystemName) -> System:
    """Read one system's manifests; see `read_systems`."""
    folders = {stage: root / stage / name.base / name.task / name.method for stage in ("train", "decode", "score")}
    manifests = {stage: load_manifest(folder / f"{stage}.json", stage) for stage, folder in folders.items()}
    factorise = root / "factorise" / name.base / (name.factorisation or name.method) / "factorise.json"
    if name.factorisation is not None or factorise.is_file():
        manifests["factorise"] = load_manifest(factorise, "factorise")
    numbers: dict[str, Any] = dict.fromkeys(COLUMNS)
    numbers.update(task=name.task, type=name.type, base=name.base, method=name.method)
    train, decode, score = (manifests[stage]["numbers"] for stage in ("train", "decode", "score"))
    for source, keys in ((score, _FROM_SCORE), (train, _FROM_TRAIN), (decode, _FROM_DECODE)):
        for key in keys:
            numbers["seconds_decode" if key == "seconds" else key] = number(source.get(key))
    for metric in METRICS[name.type]:
        low, high = (score.get("interval") or {}).get(metric) or (None, None)
        numbers |= {metric: number(score.get(metric)), f"{metric}_low": number(low), f"{metric}_high": number(high)}
    for key in _CHANCE:
        numbers[f"chance_{key}"] = number((score.get("chance") or {}).get(key))
    # A method named `base` is the unadapted one by the configs' convention; the manifest's own word goes first.
    adapt = train.get("adapt", "none" if name.method == "base" else None)
    numbers.update(
        adapt=adapt,
        peak_bytes=number(manifests["train"].get("peak_bytes")),
        device=manifests["train"].get("device"),
        peak_bytes_decode=number(manifests["decode"].get("peak_bytes")),
        set_aside_train=set_aside(train),
        set_aside_decode=set_aside(decode),
    )
    total, dense, trained = (numbers[f"parameters_{which}"] for which in ("total", "dense", "trained"))
    if total is not None and dense:
        numbers["reduction"] = 1.0 - total / dense
    if trained is not None and total:
        numbers["trained_share"] = trained / total
    if numbers["rtf"] is not None and numbers["frontend_rtf"] is not None:
        numbers["rtf_total"] = numbers["rtf"] + numbers["frontend_rtf"]
    return System(name, numbers, score, read_history(folders["train"] / "metrics.jsonl"), manifests)


def load_manifest(path: Path, stage: str) -> dict[str, Any]:
    """A stage's manifest; UserError with the command that makes it where it is absent, or what is wrong with it."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: snakemake --cores all {path}")
    try:
        manifest = read_manifest(path, stage)
    except (ValueError, AttributeError) as error:  # no JSON, another stage's, or no mapping at all
        raise UserError(f"{path} is no manifest: {error}; remove it and run: snakemake --cores all {path}") from error
    if not isinstance(manifest.get("numbers"), dict):
        raise UserError(f"{path} holds no `numbers`; remove it and run: snakemake --cores all {path}")
    return manifest


def read_history(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl ({step, epoch, loss, lr, dev_loss?, dev_metric?}); [] where nothing was trained."""
    if not path.is_file():
        return []
    rows = []
    for count, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {count}: no valid JSON: {error}") from error
    return rows


def number(value: Any) -> Any:
    """``value`` if it is a finite number, else None: what cannot be computed with is shown as a dash."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def set_aside(numbers: dict[str, Any]) -> int | None:
    """How many utterances a stage set aside: its ``set_aside`` is a count, or counts by split or reason."""
    value = numbers.get("set_aside")
    if isinstance(value, dict):
        counts = [set_aside({"set_aside": part}) for part in value.values()]
        return None if None in counts else sum(counts)
    return number(value)
