"""What came out: the best system of each task and base in a sentence, and every method against full fine-tuning.

The comparison is with the dense model under full fine-tuning, the first such system of the block; a difference is named
together with whether the two intervals overlap, so that nobody reads noise as a result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lowrank_speech.reporting import units
from lowrank_speech.reporting.data import Table
from lowrank_speech.reporting.results import least_error
from lowrank_speech.reporting.systems import System

_NAMES = {"wer": "WER", "accuracy": "accuracy"}


@dataclass(frozen=True)
class Headline:
    """``lead``: the sentence of one task and base; ``comparison``: the other methods against full fine-tuning."""

    task: str
    base: str
    lead: str
    comparison: Table | None = None


def headlines(systems: Sequence[System]) -> list[Headline]:
    """One headline per task and base, in the order of the systems."""
    groups: dict[tuple[str, str], list[System]] = {}
    for system in systems:
        groups.setdefault((system.name.task, system.name.base), []).append(system)
    return [_headline(task, base, members) for (task, base), members in groups.items()]


def _headline(task: str, base: str, members: Sequence[System]) -> Headline:
    unadapted = next((s for s in members if s.unadapted and s.error is not None), None)
    adapted = [s for s in members if not s.unadapted and s.error is not None]
    best = least_error(adapted)
    if best is None:
        return Headline(
            task, base, f"Only the unadapted base: {_value(unadapted)}." if unadapted else "Nothing was scored."
        )
    lead = f"{best.name.method} is best: {_value(best)}"
    if unadapted is not None:
        lead += f"; the base before adaptation: {_value(unadapted)}"
    chance = best.numbers["chance_accuracy"]
    if chance is not None:
        lead += f"; chance: {units.percent(chance)}\N{NO-BREAK SPACE}%"
    reference = next((s for s in adapted if _dense(s) and s.numbers["adapt"] == "full"), None)
    if reference is None:
        return Headline(task, base, f"{lead}.")
    return Headline(task, base, f"{lead}.", _against([s for s in adapted if s is not reference], reference))


def _value(system: System) -> str:
    text = f"{_NAMES[system.metric]} {units.percent(system.numbers[system.metric])}\N{NO-BREAK SPACE}%"
    low, high = system.numbers[f"{system.metric}_low"], system.numbers[f"{system.metric}_high"]
    return text if low is None or high is None else f"{text} ({units.interval(low, high)})"


def _dense(system: System) -> bool:
    return "factorise" not in system.manifests and abs(system.numbers["reduction"] or 0.0) < 5e-3


_COSTS = {
    "parameters_total": "parameters",
    "parameters_trained": "trained",
    "peak_bytes": "memory",
    "seconds_train": "time",
}


def _against(systems: Sequence[System], reference: System) -> Table | None:
    """Changes of error and costs from ``reference`` to ``systems``, which all have an error; None without any."""
    rows = []
    for system in systems:
        difference = system.numbers[system.metric] - reference.numbers[system.metric]
        intervals = units.DASH
        if system.error_interval and reference.error_interval:
            (low, high), (low_2, high_2) = system.error_interval, reference.error_interval
            intervals = "overlap" if low <= high_2 and low_2 <= high else "apart"
        rows.append(
            (system.name.method, units.signed(difference), intervals, *(_change(system, reference, k) for k in _COSTS))
        )
    header = (f"against {reference.name.method}", f"{_NAMES[reference.metric]}, points", "intervals")
    return Table("", (*header, *(f"{name} %" for name in _COSTS.values())), tuple(rows)) if rows else None


def _change(system: System, reference: System, key: str) -> str:
    mine, theirs = system.numbers[key], reference.numbers[key]
    return units.DASH if mine is None or not theirs else units.signed(mine / theirs - 1)
