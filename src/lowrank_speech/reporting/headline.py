"""Summary of an experiment: three sentences (what was compared, with which results), and a card for each task and base.

The reference is the first system of a task and base that fully fine-tunes the dense model. Each difference says whether
the two intervals overlap, so that nobody mistakes noise for a result. The summary compares only the first decoder of a
task; the tables have the others.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lowrank_speech.reporting import units
from lowrank_speech.reporting.blocks import TYPES
from lowrank_speech.reporting.data import Table
from lowrank_speech.reporting.systems import Result, System, confidence_level

_NAMES = {"wer": "WER", "accuracy": "accuracy"}
PERCENT = "\N{NO-BREAK SPACE}%"
WITHIN, BETTER, WORSE, EQUAL, UNKNOWN = "within the intervals", "better", "worse", "equal", "intervals not known"
ORDER = (WITHIN, EQUAL, BETTER, WORSE, f"{BETTER} ({UNKNOWN})", f"{WORSE} ({UNKNOWN})")


@dataclass(frozen=True)
class Headline:
    """``lead``: a sentence about one task and base; ``comparison``: the other methods against full fine-tuning."""

    task: str
    base: str
    lead: str
    comparison: Table | None = None


# -- three sentences ---------------------------------------------------------------------------------------------------


def summary(systems: Sequence[System]) -> list[str]:
    """Three sentences: what was compared, the lowest errors, and the other methods against full fine-tuning."""
    return [_compared(systems), _best(systems), _methods(systems)]


def _compared(systems: Sequence[System]) -> str:
    unique = {key: list(dict.fromkeys(getattr(s.name, key) for s in systems)) for key in ("method", "base", "task")}
    types = {s.name.task: TYPES[s.name.type] for s in systems}
    number = f"{len(systems)} systems are" if len(systems) > 1 else "One system is"
    text = (
        f"{number} compared: {_counted('method', unique['method'])} on {_counted('base', unique['base'])}, for "
        f"{_listed(f'{types[task]} ({task})' for task in unique['task'])}"
    )
    for what, verb in (("decoders", "decoded by"), ("tests", "tested on")):
        used = {s.name.task: getattr(s, what) for s in systems}
        several = [f"{_listed(names)} ({task})" for task, names in used.items() if len(names) > 1]
        text += f", {verb} {', '.join(several)}" if several else ""
    return f"{text}."


def _counted(what: str, names: Sequence[str]) -> str:
    """``2 bases (wav2vec2, whisper)``, or ``the base whisper``."""
    return f"{len(names)} {what}s ({', '.join(names)})" if len(names) > 1 else f"the {what} {names[0]}"


def _best(systems: Sequence[System]) -> str:
    """The lowest error of each task on its first test set, and how many other systems are within the intervals (without
    intervals: equal)."""
    parts = []
    for task in dict.fromkeys(s.name.task for s in systems):
        members = [s for s in systems if s.name.task == task]
        test = members[0].tests[0]
        found = [r for s in members if not s.unadapted and (r := s.result(test)) is not None and r.error is not None]
        if not found:
            continue
        best = min(found, key=lambda r: r.error)
        where = f"{task} on {test}" if len(members[0].tests) > 1 else task
        text = f"in {where}, {best.system.method} on {best.system.base} has the lowest error: {_value(best, True)}"
        if len(found) > 1:
            same = WITHIN if best.error_interval else EQUAL
            near = sum(outcome(r, best) == same for r in found if r is not best)
            verb = "is" if near == 1 else "are"
            text += f", and {near} of the {len(found) - 1} other adapted systems {verb} {same}"
            text += "" if best.error_interval else f" ({UNKNOWN})"
        parts.append(text)
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else "No adapted system was scored."


def _methods(systems: Sequence[System]) -> str:
    """How often each method is within the intervals of full fine-tuning, better, or worse, and what it saves."""
    found: dict[str, Counter[str]] = {}
    members_of: dict[str, list[System]] = {}
    for members in _groups(systems):
        reference = _reference(members)
        if reference is None:
            continue
        for system in members:
            if system is reference or system.unadapted:
                continue
            members_of.setdefault(system.name.method, []).append(system)
            for test in system.tests:
                mine, theirs = system.result(test), reference.result(test)
                if mine and theirs and mine.error is not None and theirs.error is not None:
                    found.setdefault(system.name.method, Counter())[outcome(mine, theirs)] += 1
    if not found:
        return "No dense model was fully fine-tuned, so there is no reference to compare the methods with."
    parts = []
    for method, outcomes in found.items():
        counts = [f"{what} in {outcomes[what]}" for what in ORDER if outcomes[what]]
        parts.append(f"{method}{_saving(members_of[method])} is {_listed(counts)}")
    most = max(outcomes.total() for outcomes in found.values())
    comparisons = "one comparison" if most == 1 else f"{most} comparisons"
    return f"Compared with full fine-tuning of the dense model ({comparisons} for each method), {'; '.join(parts)}."


def _saving(systems: Sequence[System]) -> str:
    """`` (24 % fewer parameters, 2.1 % of them trained)`` for the systems of a method, or the part that applies."""
    fewer = [s.metrics["reduction"] for s in systems if (s.metrics["reduction"] or 0.0) >= 5e-3]
    share = [s.metrics["trained_share"] for s in systems if (s.metrics["trained_share"] or 1.0) < 0.5]
    parts = [f"{_range(fewer, 0)} fewer parameters"] if fewer else []
    if share:
        parts.append(f"{_range(share, 1)} of {'them' if parts else 'the parameters'} trained")
    return f" ({', '.join(parts)})" if parts else ""


def _range(shares: Sequence[float], digits: int) -> str:
    """``2.1 %``, or ``2.1…2.4 %`` if the systems differ."""
    ends = dict.fromkeys(units.percent(share, digits) for share in (min(shares), max(shares)))
    return "…".join(ends) + PERCENT


def outcome(one: Result, other: Result) -> str:
    """Whether ``one`` is better or worse than ``other``, or their intervals overlap."""
    mine, theirs = one.error_interval, other.error_interval
    if mine and theirs:
        overlap = mine[0] <= theirs[1] and theirs[0] <= mine[1]
        return WITHIN if overlap else BETTER if one.error < other.error else WORSE
    return EQUAL if one.error == other.error else f"{BETTER if one.error < other.error else WORSE} ({UNKNOWN})"


def _listed(names: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


# -- cards -------------------------------------------------------------------------------------------------------------


def headlines(systems: Sequence[System]) -> list[Headline]:
    """One headline per task and base, in the order of the systems."""
    return [_headline(members) for members in _groups(systems)]


def _groups(systems: Sequence[System]) -> list[list[System]]:
    """The systems of each task and base."""
    groups: dict[tuple[str, str], list[System]] = {}
    for system in systems:
        groups.setdefault((system.name.task, system.name.base), []).append(system)
    return list(groups.values())


def _reference(members: Sequence[System]) -> System | None:
    """Full fine-tuning of the dense model."""
    full = (s for s in members if s.metrics["adapt"] == "full" and not s.low_rank)
    return next((s for s in full if any(r.error is not None for r in s.results)), None)


def _headline(members: Sequence[System]) -> Headline:
    task, base = members[0].name.task, members[0].name.base
    tests = list(dict.fromkeys(test for system in members for test in system.tests))
    leads = [text for test in tests if (text := _lead(members, test, len(tests) > 1))]
    lead = "; ".join(leads)
    return Headline(task, base, f"{lead}." if lead else "Nothing was scored.", _against(members, tests))


def _lead(members: Sequence[System], test: str, several: bool) -> str:
    """The best system on a test set, and the baselines."""
    scored = [(s, r) for s in members if (r := s.result(test)) is not None and r.error is not None]
    unadapted = next((r for s, r in scored if s.unadapted), None)
    adapted = [r for s, r in scored if not s.unadapted]
    where = f" on {test}" if several else ""
    if not adapted:
        return f"Only the unadapted base{where}: {_value(unadapted)}" if unadapted else ""
    best = min(adapted, key=lambda r: r.error)
    lead = f"{best.system.method} is best{where}: {_value(best)}"
    if unadapted is not None:
        lead += f"; the base before adaptation: {_value(unadapted)}"
    chance = best.metrics["chance_accuracy"]
    return lead if chance is None else f"{lead}; chance: {units.percent(chance)}{PERCENT}"


def _value(result: Result, whole: bool = False) -> str:
    """``WER 12.3 % (11.0…13.6)``; ``whole``: with the confidence level of the interval."""
    text = f"{_NAMES[result.metric]} {units.percent(result.metrics[result.metric])}{PERCENT}"
    low, high = result.metrics[f"{result.metric}_low"], result.metrics[f"{result.metric}_high"]
    if low is None or high is None:
        return text
    name = f"{confidence_level([result])} interval " if whole and result.confidence is not None else ""
    return f"{text} ({name}{units.interval(low, high)})"


_COSTS = {
    "parameters_total": "parameters",
    "parameters_trained": "trained",
    "peak_bytes": "memory",
    "seconds_train": "time",
}


def _against(members: Sequence[System], tests: Sequence[str]) -> Table | None:
    """Changes in error and cost from full fine-tuning to the other adapted systems; None if there are none."""
    reference, rows = _reference(members), []
    if reference is None:
        return None
    for system in members:
        pairs = [(system.result(test), reference.result(test)) for test in tests]
        if system is reference or system.unadapted or all(mine is None or mine.error is None for mine, _ in pairs):
            continue
        errors = [cell for mine, theirs in pairs for cell in _difference(mine, theirs)]
        rows.append((system.name.method, *errors, *(_change(system, reference, key) for key in _COSTS)))
    metric = _NAMES[reference.results[0].metric]
    titles = (
        [(f"{metric}, points", "intervals")]
        if len(tests) == 1
        else [(f"{t}: {metric}, points", "intervals") for t in tests]
    )
    header = (f"against {reference.name.method}", *(title for pair in titles for title in pair))
    return Table("", (*header, *(f"{name} %" for name in _COSTS.values())), tuple(rows)) if rows else None


def _difference(mine: Result | None, theirs: Result | None) -> tuple[str, str]:
    """Difference of the primary metric in points, and whether the intervals overlap or are apart."""
    if mine is None or theirs is None or mine.error is None or theirs.error is None:
        return units.DASH, units.DASH
    difference = units.signed(mine.metrics[mine.metric] - theirs.metrics[theirs.metric])
    if not (mine.error_interval and theirs.error_interval):
        return difference, units.DASH
    (low, high), (low_2, high_2) = mine.error_interval, theirs.error_interval
    return difference, "overlap" if low <= high_2 and low_2 <= high else "apart"


def _change(system: System, reference: System, key: str) -> str:
    mine, theirs = system.metrics[key], reference.metrics[key]
    return units.DASH if mine is None or not theirs else units.signed(mine / theirs - 1)
