"""Read systems and their results from the files of the stages.

A system is one point of the grid: a base, adapted to a task by a method. Each decoder and test set gives a result.
Inputs, under the experiment's folder, each with a ``.cost.json`` beside it:

    train/{base}/{task}/{method}/train.json, and metrics.jsonl beside it
    decode/{base}/{task}/{method}/{decoder}/{test}/decode.json
    score/{base}/{task}/{method}/{decoder}/{test}/score.json, and utterances.tsv beside it
    backend/{base}/{task}/{method}/{backend}/backend.json   for back ends, which have the decoder's place in score/
    factorise/{base}/{factorisation}/factorise.json    if the method factorises
    base/{base}/base.json                              if it exists

Output: `System`s with their `Result`s. Their `metrics` map column names of results.csv to raw values (fractions, bytes,
seconds), or to None if no file has the value.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_speech.errors import UserError
from lowrank_speech.reporting.manifests import finite, load_cost, load_manifest, read_history, total
from lowrank_speech.scoring import paired, utterances
from lowrank_speech.scoring.options import ScoreOptions

if TYPE_CHECKING:
    import pandas as pd

METRICS = {
    "asr": ("wer", "cer"),
    "lid": ("accuracy", "macro_accuracy", "act_cprimary", "min_cprimary", "eer"),
}
"""Metrics of each type of task, the primary metric first; those with an interval have _low and _high as well."""

# Values from each stage, by their names there.
_FROM_SCORE = ("words", "substitutions", "deletions", "insertions")
_CHANCE = ("accuracy", "majority_accuracy", "act_cprimary", "min_cprimary", "eer")
_FROM_TRAIN = (
    *("parameters_total", "parameters_dense", "parameters_trained"),
    *("seconds_train", "speech_seconds_per_second", "steps", "epochs", "dev_metric", "deviation"),
)
_ADDED = ("parameters_total", "parameters_dense", "parameters_trained", "seconds_train")
"""Costs of the systems that a back end fuses which add up."""
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
    *("normaliser", "numbers"),
    *("seed", "ter", "ter_low", "ter_high", "oracle_wer", "oracle_n", "empty_hypotheses"),
    *("cllr", "cllr_low", "cllr_high", "chance_cllr", "systems"),
)
"""Columns of results.csv; names and order are stable."""


@dataclass(frozen=True)
class SystemName:
    """One point of the grid. ``type``: asr or lid.

    ``factorisation``: folder of its low-rank model below factorise/{base}/, which methods may share; None: the folder
    named after the method, if it exists.
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
    """Result of a system with one decoder on one test set.

    ``metrics``: values by the names in `COLUMNS`, None if unknown. ``score``: all metrics of score.json. ``manifests``,
    ``costs``: those of decode and score. ``table``: its utterances.tsv. ``decoder`` may be a back end; then decode and
    the costs are those of its system, or of all systems that it fuses (``systems``) together.
    """

    system: SystemName
    decoder: str
    test: str
    metrics: dict[str, Any]
    score: dict[str, Any] = field(default_factory=dict)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)
    table: "pd.DataFrame | None" = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.system}/{self.decoder}/{self.test}"

    @cached_property
    def resampled(self) -> paired.Resampled | None:
        """The metrics on the resamples of its test set, drawn as the stage score did; None without ``table``."""
        if self.table is None or not {"bootstrap", "confidence", "resampled"} <= self.score.keys():
            return None
        known = {name: self.score[name] for name in ("bootstrap", "confidence")}
        seed = self.manifests.get("score", {}).get("seed")
        return paired.resample(self.table, ScoreOptions(**known, resample=self.score["resampled"]), seed or 0)

    @property
    def metric(self) -> str:
        """The primary metric: wer or accuracy."""
        return METRICS[self.system.type][0]

    @property
    def error(self) -> float | None:
        """Error by the primary metric: the word error rate, or 1 - accuracy."""
        value = self.metrics[self.metric]
        return value if value is None or self.system.type == "asr" else 1.0 - value

    @property
    def normaliser(self) -> str:
        """What both sides of a recognition result went through before their words were compared."""
        numbers = ", numbers: words" if self.metrics["numbers"] == "words" else ""
        return f"normaliser: {self.metrics['normaliser'] or 'none'}{numbers}"

    @property
    def confidence(self) -> float | None:
        """Confidence level of the intervals; None if the stage score computed none."""
        return finite(self.score.get("confidence")) if self.error_interval else None

    @property
    def error_interval(self) -> tuple[float, float] | None:
        """Low and high end of the interval of `error`; None if there is none."""
        low, high = self.metrics[f"{self.metric}_low"], self.metrics[f"{self.metric}_high"]
        if low is None or high is None:
            return None
        return (low, high) if self.system.type == "asr" else (1.0 - high, 1.0 - low)


@dataclass(frozen=True)
class System:
    """A system with its measurements.

    ``metrics``: values of its training, by the names in `COLUMNS`. ``results``: the first one is that of the task's
    first decoder on its first test set. ``history``: rows of metrics.jsonl. ``manifests``, ``costs``: those of train,
    and of factorise and the base if there are any.
    """

    name: SystemName
    metrics: dict[str, Any]
    results: tuple[Result, ...]
    history: list[dict[str, Any]] = field(default_factory=list)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def unadapted(self) -> bool:
        """Whether this is the base without adaptation (at most a head that it lacked was trained)."""
        return self.metrics["adapt"] == "none" and self.control is None

    @property
    def control(self) -> str | None:
        """What kind of control this is, if it is one: a system that cannot know what it should recognise."""
        return (self.manifests.get("train", {}).get("cfg") or {}).get("control")

    @property
    def baseline(self) -> bool:
        """Whether others are compared with it: the base before adaptation, or a control."""
        return self.unadapted or self.control is not None

    @property
    def low_rank(self) -> bool:
        """Whether it has fewer parameters than the same model with dense layers."""
        return "factorise" in self.manifests or abs(self.metrics["reduction"] or 0.0) >= 5e-3

    @property
    def tests(self) -> list[str]:
        """Test sets, in the order of the config."""
        return list(dict.fromkeys(result.test for result in self.results))

    @property
    def decoders(self) -> list[str]:
        """Decoders, in the order of the config."""
        return list(dict.fromkeys(result.decoder for result in self.results))

    def result(self, test: str, decoder: str | None = None) -> Result | None:
        """The result on a test set with a decoder (None: the first one); None if there is none."""
        decoder = self.decoders[0] if decoder is None else decoder
        return next((r for r in self.results if (r.test, r.decoder) == (test, decoder)), None)


def confidence_level(results: Iterable[Result]) -> str:
    """Confidence level of the results' intervals, such as ``95 %``; empty if no result has an interval."""
    found = sorted({result.confidence for result in results if result.confidence is not None})
    return " and ".join(f"{100 * share:g}\N{NO-BREAK SPACE}%" for share in found)


def read_systems(
    root: Path,
    names: Mapping[SystemName, tuple[Sequence[str], Sequence[str]]],
    backends: Mapping[SystemName, Mapping[str, str]] | None = None,
) -> list[System]:
    """Read all systems under ``root``; ``names``: system -> its test sets and its decoders.

    ``backends``: system -> back end -> the decoder that it reads.

    Unadapted bases come first within their task and base; otherwise the order of tasks, bases and methods is that of
    ``names``. UserError: a manifest does not exist or is not valid (the message has the command that makes it), or
    results of a task were scored with different normalisers.
    """
    own = backends or {}
    systems = [read_system(root, name, *of, own.get(name) or {}) for name, of in names.items()]
    tasks = list(dict.fromkeys(name.task for name in names))
    bases = list(dict.fromkeys(name.base for name in names))
    _check_alike(root, systems)
    return sorted(systems, key=lambda s: (tasks.index(s.name.task), bases.index(s.name.base), not s.unadapted))


def _check_alike(root: Path, systems: Iterable[System]) -> None:
    """Raise UserError if results of a task were scored with different normalisers: their error rates would share a
    column, although they count different words."""
    first: dict[str, Result] = {}
    for result in (result for system in systems for result in system.results):
        other = first.setdefault(result.system.task, result)
        if result.normaliser != other.normaliser:
            mine, theirs = (root / "score" / str(one) / "score.json" for one in (result, other))
            raise UserError(
                f"{mine} was scored with {result.normaliser}, but {theirs} with {other.normaliser}; score both "
                f"with the same normaliser"
            )


def read_system(
    root: Path,
    name: SystemName,
    tests: Sequence[str],
    decoders: Sequence[str],
    backends: Mapping[str, str] | None = None,
) -> System:
    """Read one system; see `read_systems`."""
    folder = root / "train" / str(name)
    path, factorise = folder / "train.json", root / "factorise" / name.base / (name.factorisation or name.method)
    manifests, costs = {"train": load_manifest(path, "train")}, {"train": load_cost(path)}
    if name.factorisation is not None or (factorise / "factorise.json").is_file():
        manifests["factorise"] = load_manifest(factorise / "factorise.json", "factorise")
        costs["factorise"] = load_cost(factorise / "factorise.json")
    base = root / "base" / name.base / "base.json"
    if base.is_file():
        manifests["base"], costs["base"] = load_manifest(base, "base"), load_cost(base)
    trained_metrics = manifests["train"]["metrics"]
    known = trained_metrics | costs["train"]
    metrics: dict[str, Any] = {"task": name.task, "type": name.type, "base": name.base, "method": name.method}
    metrics |= {key: finite(known.get(key)) for key in (*_FROM_TRAIN, "peak_bytes")}
    metrics |= {
        # By convention, a method named `base` is the unadapted base. The manifest takes precedence.
        "adapt": trained_metrics.get("adapt", "none" if name.method == "base" else None),
        "device": manifests["train"].get("device"),
        "seed": finite(manifests["train"].get("seed")),
        "set_aside_train": total(trained_metrics.get("set_aside")),
        "reduction": None,
        "trained_share": None,
    }
    parameters, dense, trained = (metrics[f"parameters_{which}"] for which in ("total", "dense", "trained"))
    if parameters is not None and dense:
        metrics["reduction"] = 1.0 - parameters / dense
    if trained is not None and parameters:
        metrics["trained_share"] = trained / parameters
    results = [read_result(root, name, metrics, decoder, test) for decoder in decoders for test in tests]
    for backend, decoder in (backends or {}).items():
        results += [read_result(root, name, metrics, backend, test, decoder) for test in tests]
    return System(name, metrics, tuple(results), read_history(folder / "metrics.jsonl"), manifests, costs)


def read_result(
    root: Path, name: SystemName, system: Mapping[str, Any], decoder: str, test: str, backs: str | None = None
) -> Result:
    """Read one result of a system with the metrics ``system``; ``backs``: ``decoder`` is a back end of this decoder."""
    places = {"decode": backs or decoder, "score": decoder}
    paths = {stage: root / stage / str(name) / own / test / f"{stage}.json" for stage, own in places.items()}
    manifests = {stage: load_manifest(path, stage) for stage, path in paths.items()}
    costs = {stage: load_cost(path) for stage, path in paths.items()}
    if backs is not None:
        path = root / "backend" / str(name) / decoder / "backend.json"
        manifests["backend"], costs["backend"] = load_manifest(path, "backend"), load_cost(path)
    score, decode = manifests["score"]["metrics"], manifests["decode"]["metrics"] | costs["decode"]
    metrics: dict[str, Any] = dict.fromkeys(COLUMNS) | dict(system) | {"decoder": decoder, "test": test}
    metrics |= {key: finite(score.get(key)) for key in _FROM_SCORE}
    metrics |= {key: finite(decode.get(key)) for key in _FROM_DECODE}
    for metric in METRICS[name.type]:
        low, high = (score.get("interval") or {}).get(metric) or (None, None)
        metrics |= {metric: finite(score.get(metric)), f"{metric}_low": finite(low), f"{metric}_high": finite(high)}
    metrics |= {key: score.get(key) for key in ("normaliser", "numbers")}
    metrics |= _beside_words(score)
    low, high = (score.get("interval") or {}).get("cllr") or (None, None)
    metrics |= {"cllr": finite(score.get("cllr")), "cllr_low": finite(low), "cllr_high": finite(high)}
    for key in (*_CHANCE, "cllr"):
        metrics[f"chance_{key}"] = finite((score.get("chance") or {}).get(key))
    metrics["peak_bytes_decode"] = finite(costs["decode"].get("peak_bytes"))
    metrics["set_aside_decode"] = total(decode.get("set_aside"))
    metrics["stopped"] = total(decode.get("stopped"))
    if metrics["rtf"] is not None and metrics["frontend_rtf"] is not None:
        metrics["rtf_total"] = metrics["rtf"] + metrics["frontend_rtf"] + (metrics["network_rtf"] or 0.0)
    if backs is not None:
        metrics |= _together(root, manifests["backend"], metrics, backs, test)
    return Result(name, decoder, test, metrics, score, manifests, costs, _table(paths["score"], name.type))


def _together(
    root: Path, backend: Mapping[str, Any], metrics: Mapping[str, Any], decoder: str, test: str
) -> dict[str, Any]:
    """The costs of all systems that a back end fuses: each runs on its own, so they add up."""
    systems = [one["system"] for one in backend["metrics"]["backend"]["inputs"]]
    found: dict[str, Any] = {"systems": len(systems)}
    if len(systems) == 1:
        return found
    trains = [root / "train" / one / "train.json" for one in systems]
    decodes = [root / "decode" / one / decoder / test / "decode.json" for one in systems]
    for paths, stage, keys in ((trains, "train", _ADDED), (decodes, "decode", ("seconds_decode", "rtf"))):
        read = [load_manifest(path, stage)["metrics"] | load_cost(path) for path in paths]
        for key in keys:
            values = [finite(one.get(key)) for one in read]
            found[key] = None if None in values else sum(values)
    total, dense, trained = (found[f"parameters_{which}"] for which in ("total", "dense", "trained"))
    found["reduction"] = 1.0 - total / dense if total is not None and dense else None
    found["trained_share"] = trained / total if trained is not None and total else None
    if found["rtf"] is not None and metrics["frontend_rtf"] is not None:
        found["rtf_total"] = found["rtf"] + metrics["frontend_rtf"]
    return found


def _beside_words(score: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of recognition beside those of words and characters; None where score.json does not have them."""
    low, high = (score.get("interval") or {}).get("ter") or (None, None)
    rates = (score.get("oracle") or {}).get("wer") or [None]
    found = {"ter": score.get("ter"), "ter_low": low, "ter_high": high, "oracle_wer": rates[-1]}
    found |= {
        "oracle_n": len(rates) if rates[-1] is not None else None,
        "empty_hypotheses": score.get("empty_hypotheses"),
    }
    return {key: finite(value) for key, value in found.items()}


def _table(score: Path, kind: str) -> "pd.DataFrame | None":
    """The table of utterances beside score.json; None if an older version of the stage wrote none."""
    path = score.with_name(utterances.NAME)
    if not path.is_file():
        return None
    try:
        return utterances.read(path, kind)
    except ValueError as error:
        raise UserError(str(error)) from error
