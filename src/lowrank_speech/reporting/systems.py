"""Systems and their results, gathered from what the stages left.

A system is one point of the grid: a base, adapted to a task by a method. Each decoder on each test set gives a result.
Inputs, under the experiment's folder, each with a ``.cost.json`` beside it:

    train/{base}/{task}/{method}/train.json, and metrics.jsonl beside it
    decode/{base}/{task}/{method}/{decoder}/{test}/decode.json
    score/{base}/{task}/{method}/{decoder}/{test}/score.json
    factorise/{base}/{factorisation}/factorise.json    where the method factorises

Output: one `System` each with its `Result`s, whose `numbers` are the raw figures (fractions, bytes, seconds) by the
column names of results.csv; None where no file holds one.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrank_speech.reporting.manifests import load_cost, load_manifest, number, read_history, total

METRICS = {
    "asr": ("wer", "cer"),
    "lid": ("accuracy", "macro_accuracy", "act_cprimary", "min_cprimary", "eer"),
}
"""Measures of a task's type, the one that leads first; each comes with _low and _high where it has an interval."""

# What is taken from each stage, by its name there.
_FROM_SCORE = ("words", "substitutions", "deletions", "insertions")
_CHANCE = ("accuracy", "majority_accuracy", "act_cprimary", "min_cprimary", "eer")
_FROM_TRAIN = (
    *("parameters_total", "parameters_dense", "parameters_trained"),
    *("seconds_train", "speech_seconds_per_second", "steps", "epochs", "dev_metric", "deviation"),
)
_FROM_DECODE = ("utterances", "speech_seconds", "seconds_decode", "rtf", "frontend_rtf", "network_rtf")
COLUMNS = (
    *("task", "type", "base", "method", "adapt", "decoder", "test"),
    *(f"{metric}{end}" for metrics in METRICS.values() for metric in metrics for end in ("", "_low", "_high")),
    *_FROM_SCORE,
    *(f"chance_{key}" for key in _CHANCE),
    *("parameters_total", "parameters_dense", "parameters_trained", "reduction", "trained_share"),
    *("peak_bytes", "device", *_FROM_TRAIN[3:]),
    *(*_FROM_DECODE, "rtf_total", "peak_bytes_decode"),
    *("set_aside_train", "set_aside_decode", "stopped"),
)
"""Header of results.csv; the names and their order are stable."""


@dataclass(frozen=True)
class SystemName:
    """One point of the grid. ``type``: asr or lid.

    ``factorisation``: folder of its low-rank model below factorise/{base}/, which methods may share; None: a folder of
    the method's name, if there is one.
    """

    base: str
    task: str
    method: str
    type: str
    factorisation: str | None = None

    def __str__(self) -> str:
        return f"{self.base}/{self.task}/{self.method}"


@dataclass(frozen=True)
class Result:
    """What came out for a system with one decoder on one test set.

    ``numbers``: by the names of `COLUMNS`, None where unknown. ``score``: all metrics of score.json. ``manifests``,
    ``costs``: of decode and score.
    """

    system: SystemName
    decoder: str
    test: str
    numbers: dict[str, Any]
    score: dict[str, Any] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.system}/{self.decoder}/{self.test}"

    @property
    def metric(self) -> str:
        """The measure that leads: wer, accuracy."""
        return METRICS[self.system.type][0]

    @property
    def error(self) -> float | None:
        """Share that is wrong, by the leading measure: the word error rate, or 1 - accuracy."""
        value = self.numbers[self.metric]
        return value if value is None or self.system.type == "asr" else 1.0 - value

    @property
    def confidence(self) -> float | None:
        """Mass of the intervals, as the stage score says; None where it computed none."""
        return number(self.score.get("confidence")) if self.error_interval else None

    @property
    def error_interval(self) -> tuple[float, float] | None:
        """Low and high end of the interval of `error`, None where the score has none."""
        low, high = self.numbers[f"{self.metric}_low"], self.numbers[f"{self.metric}_high"]
        if low is None or high is None:
            return None
        return (low, high) if self.system.type == "asr" else (1.0 - high, 1.0 - low)


@dataclass(frozen=True)
class System:
    """A system with what was measured.

    ``numbers``: of its training, by the names of `COLUMNS`. ``results``: the first is that of the task's first decoder
    on its first test set. ``history``: rows of metrics.jsonl. ``manifests``, ``costs``: of train, and of factorise
    where there is one.
    """

    name: SystemName
    numbers: dict[str, Any]
    results: tuple[Result, ...]
    history: list[dict[str, Any]] = field(default_factory=list)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def unadapted(self) -> bool:
        """True for the base as it came (at most a head that it lacked was trained)."""
        return self.numbers["adapt"] == "none"

    @property
    def low_rank(self) -> bool:
        """Whether it has fewer parameters than the same model with dense layers."""
        return "factorise" in self.manifests or abs(self.numbers["reduction"] or 0.0) >= 5e-3

    @property
    def tests(self) -> list[str]:
        """Its test sets, in the order of the config."""
        return list(dict.fromkeys(result.test for result in self.results))

    @property
    def decoders(self) -> list[str]:
        """Its decoders, in the order of the config."""
        return list(dict.fromkeys(result.decoder for result in self.results))

    def result(self, test: str, decoder: str | None = None) -> Result | None:
        """The result on a test set with a decoder (None: the first); None where there is none."""
        decoder = self.decoders[0] if decoder is None else decoder
        return next((r for r in self.results if (r.test, r.decoder) == (test, decoder)), None)


def mass(results: Iterable[Result]) -> str:
    """The mass of the results' intervals, as the stage score says: 95 %. Empty where none has an interval."""
    found = sorted({result.confidence for result in results if result.confidence is not None})
    return " and ".join(f"{100 * share:g}\N{NO-BREAK SPACE}%" for share in found)


def read_systems(root: Path, names: Mapping[SystemName, tuple[Sequence[str], Sequence[str]]]) -> list[System]:
    """Read what every system left under ``root``; ``names``: system -> its test sets and its decoders.

    Unadapted bases come first within their task and base; otherwise the order of tasks, bases and methods is that of
    ``names``. UserError where a manifest does not exist or cannot be read, with the command that makes it.
    """
    systems = [read_system(root, name, tests, decoders) for name, (tests, decoders) in names.items()]
    tasks = list(dict.fromkeys(name.task for name in names))
    bases = list(dict.fromkeys(name.base for name in names))
    return sorted(systems, key=lambda s: (tasks.index(s.name.task), bases.index(s.name.base), not s.unadapted))


def read_system(root: Path, name: SystemName, tests: Sequence[str], decoders: Sequence[str]) -> System:
    """Read what one system left; see `read_systems`."""
    folder = root / "train" / str(name)
    path, factorise = folder / "train.json", root / "factorise" / name.base / (name.factorisation or name.method)
    manifests, costs = {"train": load_manifest(path, "train")}, {"train": load_cost(path)}
    if name.factorisation is not None or (factorise / "factorise.json").is_file():
        manifests["factorise"] = load_manifest(factorise / "factorise.json", "factorise")
        costs["factorise"] = load_cost(factorise / "factorise.json")
    metrics = manifests["train"]["metrics"]
    known = metrics | costs["train"]
    numbers: dict[str, Any] = {"task": name.task, "type": name.type, "base": name.base, "method": name.method}
    numbers |= {key: number(known.get(key)) for key in (*_FROM_TRAIN, "peak_bytes")}
    numbers |= {
        # A method named `base` is the unadapted one by the configs' convention; the manifest's own word goes first.
        "adapt": metrics.get("adapt", "none" if name.method == "base" else None),
        "device": manifests["train"].get("device"),
        "set_aside_train": total(metrics.get("set_aside")),
        "reduction": None,
        "trained_share": None,
    }
    parameters, dense, trained = (numbers[f"parameters_{which}"] for which in ("total", "dense", "trained"))
    if parameters is not None and dense:
        numbers["reduction"] = 1.0 - parameters / dense
    if trained is not None and parameters:
        numbers["trained_share"] = trained / parameters
    results = tuple(read_result(root, name, numbers, decoder, test) for decoder in decoders for test in tests)
    return System(name, numbers, results, read_history(folder / "metrics.jsonl"), manifests, costs)


def read_result(root: Path, name: SystemName, system: Mapping[str, Any], decoder: str, test: str) -> Result:
    """Read one result of a system, whose own numbers are ``system``."""
    paths = {stage: root / stage / str(name) / decoder / test / f"{stage}.json" for stage in ("decode", "score")}
    manifests = {stage: load_manifest(path, stage) for stage, path in paths.items()}
    costs = {stage: load_cost(path) for stage, path in paths.items()}
    score, decode = manifests["score"]["metrics"], manifests["decode"]["metrics"] | costs["decode"]
    numbers: dict[str, Any] = dict.fromkeys(COLUMNS) | dict(system) | {"decoder": decoder, "test": test}
    numbers |= {key: number(score.get(key)) for key in _FROM_SCORE}
    numbers |= {key: number(decode.get(key)) for key in _FROM_DECODE}
    for metric in METRICS[name.type]:
        low, high = (score.get("interval") or {}).get(metric) or (None, None)
        numbers |= {metric: number(score.get(metric)), f"{metric}_low": number(low), f"{metric}_high": number(high)}
    for key in _CHANCE:
        numbers[f"chance_{key}"] = number((score.get("chance") or {}).get(key))
    numbers["peak_bytes_decode"] = number(costs["decode"].get("peak_bytes"))
    numbers["set_aside_decode"] = total(decode.get("set_aside"))
    numbers["stopped"] = total(decode.get("stopped"))
    if numbers["rtf"] is not None and numbers["frontend_rtf"] is not None:
        numbers["rtf_total"] = numbers["rtf"] + numbers["frontend_rtf"] + (numbers["network_rtf"] or 0.0)
    return Result(name, decoder, test, numbers, score, manifests, costs)
