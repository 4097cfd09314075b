"""Paired comparisons: each adapted system against its reference, with a test on the same utterances.

The reference of a task and base is the method named by the config (``report.against``), else the first system that
fully fine-tunes the dense model. Systems are compared with the same decoder on the same test set. ``scoring.paired``
has the test; it reads the table of utterances beside each score.json.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from lowrank_speech.reporting import units
from lowrank_speech.reporting.systems import METRICS, Result, System
from lowrank_speech.scoring import paired
from lowrank_speech.scoring.paired import Difference
from lowrank_speech.scoring.text import FEW

TIE, BETTER, WORSE, EQUAL, UNTESTED = "not told apart", "better", "worse", "equal", "not tested"
ORDER = (TIE, EQUAL, BETTER, WORSE, f"{BETTER} ({UNTESTED})", f"{WORSE} ({UNTESTED})")
POINTS = {"wer": "points of WER", "cer": "points of CER", "ter": "points of TER", "accuracy": "points of accuracy"}
COLUMNS = (
    *("task", "type", "base", "decoder", "test", "method", "against", "metric", "value", "value_against", "difference"),
    *("low", "high", "p", "confidence", "bootstrap", "resampled", "units", "utterances", "not_tested"),
)
"""Columns of comparisons.csv; names and order are stable."""


@dataclass(frozen=True)
class Comparison:
    """``mine`` against ``theirs``. ``refused``: why there is no test; empty if there is one."""

    mine: Result
    theirs: Result
    differences: dict[str, Difference]
    refused: str = ""

    @property
    def difference(self) -> Difference | None:
        """That of the primary metric, with an interval; None if there is none."""
        found = self.differences.get(self.mine.metric)
        return found if found is not None and found.interval is not None else None

    @property
    def outcome(self) -> str:
        """One of ``ORDER``, by the primary metric."""
        found = self.difference
        if found is None or found.decided is None:
            if self.mine.error == self.theirs.error:
                return EQUAL
            return f"{BETTER if self.mine.error < self.theirs.error else WORSE} ({UNTESTED})"
        return TIE if not found.decided else BETTER if found.better else WORSE


@functools.cache
def _compared(mine: "_Key", theirs: "_Key") -> Comparison:
    one, other = mine.result, theirs.result
    if one.resampled is None or other.resampled is None:
        absent = one if one.resampled is None else other
        return Comparison(one, other, {}, f"{absent} has no utterances.tsv; score it again")
    try:
        return Comparison(one, other, paired.differences(one.resampled, other.resampled, (str(one), str(other))))
    except ValueError as error:
        return Comparison(one, other, {}, str(error))


class _Key:
    """A result by identity, for the cache: results hold dicts, which have no hash."""

    def __init__(self, result: Result):
        self.result = result

    def __hash__(self) -> int:
        return id(self.result)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and other.result is self.result


def compare(mine: Result, theirs: Result) -> Comparison:
    """Compare two results of a task on a test set."""
    return _compared(_Key(mine), _Key(theirs))


def groups(systems: Sequence[System]) -> list[list[System]]:
    """The systems of each task and base, in order."""
    found: dict[tuple[str, str], list[System]] = {}
    for system in systems:
        found.setdefault((system.name.task, system.name.base), []).append(system)
    return list(found.values())


def reference(members: Sequence[System], against: str | None = None) -> System | None:
    """The system of a group that the others are compared with; None if there is none with a result."""
    if against is None:
        found = (s for s in members if s.metrics["adapt"] == "full" and not s.low_rank and not s.baseline)
    else:
        found = (s for s in members if s.name.method == against)
    return next((s for s in found if any(r.error is not None for r in s.results)), None)


def comparisons(systems: Sequence[System], against: str | None = None) -> list[Comparison]:
    """Every adapted system against its reference, for each decoder and test set that both have."""
    found = []
    for members in groups(systems):
        whom = reference(members, against)
        for system in members if whom is not None else ():
            if system is whom or system.baseline:
                continue
            for mine in system.results:
                theirs = whom.result(mine.test, mine.decoder)
                if theirs is not None and mine.error is not None and theirs.error is not None:
                    found.append(compare(mine, theirs))
    return found


def ties(results: Iterable[Result]) -> list[Result]:
    """The result with the lowest error and all that are not told apart from it; [] if none has an error."""
    scored = [result for result in results if result.error is not None]
    best = min(scored, key=lambda result: result.error, default=None)
    return [r for r in scored if r is best or compare(r, best).outcome in (TIE, EQUAL)]


def amount(found: Difference, than: str = "") -> str:
    """``0.3 points of WER worse than full (95 % −0.2…0.8, p = 0.21)``; the interval is that of "worse" or "better"."""
    sign = paired.BETTER[found.metric] * (1 if found.better else -1)
    word = BETTER if found.better else WORSE
    low, high = sorted(sign * end for end in found.interval)
    scale, show = (100, units.percent) if found.metric in POINTS else (1, units.cost)
    size = f"{show(abs(found.difference))} {POINTS.get(found.metric, 'of C_primary')}"
    if found.difference == 0:
        size, word = "exactly as good", ""
    ends = units.interval(low, high, 1 if scale == 100 else 3, scale)
    level = f"{100 * found.confidence:g}\N{NO-BREAK SPACE}%"
    if than:
        word += f"{' than' if word else 'as'} {than}"
    few = f", only {found.units} {found.unit}" if found.units < FEW else ""
    return f"{' '.join(filter(None, (size, word)))} ({level} {ends}, {probability(found.p)}{few})"


def probability(p: float) -> str:
    """``p = 0.21``; small ones have one digit."""
    return f"p = {p:.2f}" if p >= 0.095 else f"p = {p:.1g}"


def sentence(one: Comparison, where: bool) -> str:
    """A sentence for the terminal and the page; ``where``: with decoder and test set."""
    mine, theirs = one.mine, one.theirs
    place = f"{mine.decoder}, {mine.test}: " if where else ""
    if one.difference is None:
        than = "to" if one.outcome == EQUAL else "than"
        why = one.refused or "the test set has too few units to draw from, or score.bootstrap is too low"
        outcome = one.outcome.removesuffix(f" ({UNTESTED})")
        return f"{place}{mine.system.method} is {outcome} {than} {theirs.system.method}, {UNTESTED}: {why}"
    end = f": {TIE}" if one.outcome == TIE else ""
    return f"{place}{mine.system.method} is {amount(one.difference, theirs.system.method)}{end}"


def placed(one: Comparison) -> str:
    """The sentence for the page, with task and base."""
    name = one.mine.system
    return f"{name.task} on {name.base}: {sentence(one, True)}"


def as_frame(found: Sequence[Comparison]) -> pd.DataFrame:
    """comparisons.csv: a row per comparison and metric, as fractions; ``not_tested`` says why there is no test."""
    rows = []
    for one in found:
        name = one.mine.system
        place = {"task": name.task, "type": name.type, "base": name.base, "decoder": one.mine.decoder}
        place |= {"test": one.mine.test, "method": name.method, "against": one.theirs.system.method}
        for metric in one.differences or METRICS[name.type][:1]:
            d = one.differences.get(metric)
            if d is None:
                values = [result.metrics[metric] for result in (one.mine, one.theirs)]
                rows.append(place | {"metric": metric, "value": values[0], "value_against": values[1]})
                rows[-1] |= {"difference": values[0] - values[1], "not_tested": one.refused}
                continue
            low, high = d.interval or (None, None)
            rows.append(
                place | {"metric": metric, "value": d.first, "value_against": d.second, "low": low, "high": high}
            )
            rows[-1] |= {"difference": d.difference, "p": d.p, "confidence": d.confidence, "bootstrap": d.bootstrap}
            rows[-1] |= {"resampled": d.unit, "units": d.units, "utterances": d.utterances}
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(("bootstrap", "units", "utterances"), "Int64"))
