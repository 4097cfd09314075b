"""Paired bootstrap: is one system better than another on the same utterances, or does the choice of these explain it?

Both systems are computed again on the same resamples, and their difference is taken in each. An utterance that is hard
for both then moves neither side, so the test sees smaller differences than two separate intervals do.

- Units (utterances, or all utterances of a speaker) are drawn with replacement, as for the intervals of one system
  (``scoring.bootstrap``); in language recognition separately within each language.
- The p-value is two-sided: 2 (1 + min(k, l)) / (B + 1), at most 1, where k of B resampled differences are <= 0 and l
  are >= 0. Equal systems have p = 1.
- The interval of the difference is the central part of the resampled differences (percentile method), between two of
  them, chosen so that a 95 % interval excludes 0 exactly if p <= 0.05. It takes 39 resamples for 95 %, 199 for 99 %.
- It covers the choice of test data. It does not cover the training seed, nor that several systems were compared.

Metrics: wer, cer, and ter if both have the same token set; accuracy and act_cprimary. The minimum C_primary and the EER
are not sums over segments, so they are not compared.

Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from lowrank_speech.scoring import bootstrap
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.scoring.utterances import CHARACTERS, TOKENS, WORDS

SUMS = {"wer": WORDS, "cer": CHARACTERS, "ter": TOKENS}
BETTER = {"wer": -1, "cer": -1, "ter": -1, "accuracy": 1, "act_cprimary": -1}
"""Metric -> 1 if higher is better, else -1."""
REFERENCES = {"asr": (WORDS[0], CHARACTERS[0]), "lid": ()}
"""Type of task -> columns that only the reference decides."""


@dataclass(frozen=True)
class Resampled:
    """A system on its test set: the ``values`` of its metrics, and their values in each resample (B,), ``draws``.

    ``unit``: speakers or utterances. Resamples of two systems are the same if ``table`` has the same units in the same
    order, and ``options`` and ``seed`` are equal.
    """

    table: pd.DataFrame
    values: Mapping[str, float]
    draws: Mapping[str, np.ndarray]
    unit: str
    units: int
    options: ScoreOptions
    seed: int

    @property
    def type(self) -> str:
        """Type of the task: asr or lid."""
        return "lid" if "right" in self.table else "asr"


@dataclass(frozen=True)
class Difference:
    """``first`` - ``second`` of a metric, with its interval ([low, high] or None) and p-value (None without one)."""

    metric: str
    first: float
    second: float
    difference: float
    interval: list[float] | None
    p: float | None
    confidence: float
    bootstrap: int
    unit: str
    units: int
    utterances: int

    @property
    def decided(self) -> bool | None:
        """Whether the interval excludes 0; None without an interval."""
        return None if self.interval is None else not self.interval[0] <= 0.0 <= self.interval[1]

    @property
    def better(self) -> bool:
        """Whether the first system is better; False if both are equal."""
        return self.difference * BETTER[self.metric] > 0

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def resample(table: pd.DataFrame, options: ScoreOptions, seed: int) -> Resampled:
    """Compute a system's metrics on the resamples; ``table`` from ``utterances.read``."""
    known = bool((table["speaker"] != "").all())
    units, unit = bootstrap.units_of(list(table.index), table["speaker"].to_dict() if known else None, options.resample)
    strata = np.unique(table["language"], return_inverse=True)[1] if "right" in table else None
    ones = np.ones((1, len(table)))
    values = {name: float(value[0]) for name, value in _metrics(table, strata, ones).items()}
    draws: dict[str, list[np.ndarray]] = {name: [] for name in values}
    if options.bootstrap and bootstrap.varies(units, strata):
        for block in bootstrap.weights(units, options.bootstrap, seed, strata):
            for name, value in _metrics(table, strata, block).items():
                draws[name].append(value)
    found = {name: np.concatenate(blocks) if blocks else np.empty(0) for name, blocks in draws.items()}
    number = len(np.unique(units)) if strata is None else np.unique(np.stack([strata, units]), axis=1).shape[1]
    return Resampled(table, values, found, unit, number, options, seed)


def _metrics(table: pd.DataFrame, strata: np.ndarray | None, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric (B,) under ``weights`` (B, S); NaN where it is not defined."""
    if strata is not None:
        onehot = np.eye(int(strata.max()) + 1)[strata]
        costs = (weights @ (onehot * table[["cost"]].to_numpy())) / (weights @ onehot)
        right = weights @ table["right"].to_numpy() / weights.sum(axis=1)
        return {"accuracy": right, "act_cprimary": costs.mean(axis=1)}
    found = {}
    for name, columns in SUMS.items():
        if columns[0] in table:
            sums = weights @ table[list(columns)].to_numpy(np.float64)
            total = sums[:, 0]
            found[name] = np.divide(sums[:, 1:].sum(1), total, out=np.full(len(total), np.nan), where=total > 0)
    return found


def check(one: Resampled, other: Resampled, names: tuple[str, str] = ("the first system", "the second")) -> None:
    """ValueError: the systems decoded different utterances, against different references, or the resamples differ."""
    if one.type != other.type:
        raise ValueError(f"{names[0]} and {names[1]} are systems for different types of task")
    for mine, theirs, (has, lacks) in ((one, other, names), (other, one, names[::-1])):
        extra = mine.table.index.difference(theirs.table.index, sort=False)
        if len(extra):
            shown = ", ".join(map(repr, extra[:3])) + (f" and {len(extra) - 3} more" if len(extra) > 3 else "")
            raise ValueError(
                f"{has} decoded {len(extra)} utterances that {lacks} did not: {shown}; a paired test needs the same "
                f"utterances: see set_aside.tsv of both"
            )
    for column in (*REFERENCES[one.type], "language", "speaker"):
        theirs = other.table[column].reindex(one.table.index)
        wrong = one.table.index[(one.table[column] != theirs).to_numpy()]
        if len(wrong):
            name = wrong[0]
            raise ValueError(
                f"utterance {name!r} has {column} {one.table[column][name]} in {names[0]}, but {theirs[name]} in "
                f"{names[1]}; score both against the same references, with the same normaliser"
            )
    if not one.table.index.equals(other.table.index):
        raise ValueError(f"{names[0]} and {names[1]} have the same utterances in different orders; score both again")
    for name in ("bootstrap", "confidence", "resample"):
        if getattr(one.options, name) != getattr(other.options, name):
            mine, theirs = (getattr(system.options, name) for system in (one, other))
            raise ValueError(f"score.{name} is {mine} for {names[0]}, but {theirs} for {names[1]}; score both alike")
    if one.seed != other.seed:
        raise ValueError(f"{names[0]} was scored with seed {one.seed}, {names[1]} with {other.seed}; score both alike")


def differences(
    one: Resampled, other: Resampled, names: tuple[str, str] = ("the first system", "the second")
) -> dict[str, Difference]:
    """Metric -> ``one`` - ``other``. ValueError as for :func:`check`."""
    check(one, other, names)
    shared = [name for name in one.values if name in other.values]
    if "ter" in shared and not one.table["tokens"].equals(other.table["tokens"]):
        shared.remove("ter")  # other token sets
    return {name: _difference(name, one, other) for name in shared}


def central(drawn: np.ndarray, confidence: float) -> list[float] | None:
    """[low, high] of the resampled differences ``drawn`` (B,), which excludes 0 exactly if p <= 1 - ``confidence``.

    None if there are too few of them for any p that small.
    """
    tail = int((1 - confidence) / 2 * (len(drawn) + 1) + 1e-9)
    if tail < 1:
        return None
    ordered = np.sort(drawn)
    return [float(ordered[tail - 1]), float(ordered[-tail])]


def _difference(metric: str, one: Resampled, other: Resampled) -> Difference:
    drawn = one.draws[metric] - other.draws[metric]
    drawn = drawn[np.isfinite(drawn)]
    interval, p = central(drawn, one.options.confidence), None
    if interval is not None:
        tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p = min(1.0, 2 * (1 + tail) / (len(drawn) + 1))
    return Difference(
        metric,
        one.values[metric],
        other.values[metric],
        one.values[metric] - other.values[metric],
        interval,
        p,
        one.options.confidence,
        len(drawn),
        one.unit,
        one.units,
        len(one.table),
    )
