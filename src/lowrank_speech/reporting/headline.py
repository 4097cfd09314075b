"""Summary of an experiment: three sentences (what was compared, with which results), and a card for each task and base.

The reference is the system that `comparisons.reference` names: by default full fine-tuning of the dense model. Each
difference comes with a paired test, so that nobody mistakes noise for a result. The summary compares systems with the
first decoder of a task, and says which one if there are several; the tables have the others.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lowrank_speech.reporting import units
from lowrank_speech.reporting.blocks import TYPES
from lowrank_speech.reporting.comparisons import (
    EQUAL,
    ORDER,
    TIE,
    WORSE,
    Comparison,
    amount,
    compare,
    groups,
    reference,
)
from lowrank_speech.reporting.data import Table
from lowrank_speech.reporting.systems import Result, System, confidence_level

_NAMES = {"wer": "WER", "accuracy": "accuracy"}
PERCENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Headline:
    """``lead``: a sentence about one task and base; ``comparison``: the other methods against full fine-tuning."""

    task: str
    base: str
    lead: str
    comparison: Table | None = None


# -- three sentences ---------------------------------------------------------------------------------------------------


def summary(systems: Sequence[System], against: str | None = None) -> list[str]:
    """Three sentences: what was compared, the lowest errors, and the other methods against the reference.

    ``against``: the method of the reference; None: full fine-tuning of the dense model.
    """
    return [_compared(systems), _best(systems), _methods(systems, against)]


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
    """The lowest error of each task on its first test set, and how many systems a paired test does not tell apart from
    it."""
    parts = []
    for task in dict.fromkeys(s.name.task for s in systems):
        members = [s for s in systems if s.name.task == task]
        test = members[0].tests[0]
        several = any(len(s.decoders) > 1 for s in members)
        found = [r for s in members if not s.baseline and (r := s.result(test)) is not None and r.error is not None]
        if not found:
            continue
        best = min(found, key=lambda r: r.error)
        where = f"{task} on {test}" if len(members[0].tests) > 1 else task
        text = f"in {where}, {_named(best, several)} has the lowest error: {_value(best, True)}"
        others = [compare(r, best) for r in found if r is not best]
        tested = [one for one in others if one.difference is not None]
        if tested:
            worse = sum(one.outcome == WORSE for one in tested)
            text += f"; by a paired test it is better than {worse} of {_others(len(tested))}"
        if untested := [one for one in others if one.difference is None]:
            near = sum(one.outcome == EQUAL for one in untested)
            text += (
                f"; without a test, {near} of {_others(len(untested))} {'has' if near == 1 else 'have'} the same error"
            )
        every = [r for s in members if not s.baseline for r in s.results if r.test == test and r.error is not None]
        lowest = min(every, key=lambda r: r.error)
        if lowest.error < best.error:
            text += f"; the lowest with any decoder has {_named(lowest, several)}: {_value(lowest, True)}"
        free = [r for s in members if s.unadapted and (r := s.result(test)) is not None and r.error is not None]
        if free and (untrained := min(free, key=lambda r: r.error)).error < best.error:
            text += f"; without adaptation {_named(untrained, several)} is better: {_value(untrained, True)}"
        parts.append(f"{text[0].upper()}{text[1:]}.")
    return " ".join(parts) or "No adapted system was scored."


def _named(result: Result, several: bool) -> str:
    return f"{result.system.method} on {result.system.base}{_by(result.decoder, several)}"


def _by(decoder: str, several: bool) -> str:
    """The decoder, if the task has ``several``."""
    return f" with the decoder {decoder}" if several else ""


def _others(number: int) -> str:
    return f"{number} other adapted system{'s' if number > 1 else ''}"


def _methods(systems: Sequence[System], against: str | None) -> str:
    """Each method against the reference: the difference, or how often it is better or worse, and what it saves."""
    found: dict[str, list[Comparison]] = {}
    members_of: dict[str, list[System]] = {}
    for members in groups(systems):
        whom = reference(members, against)
        if whom is None:
            continue
        for system in members:
            if system is whom or system.baseline:
                continue
            members_of.setdefault(system.name.method, []).append(system)
            for test in system.tests:
                mine, theirs = system.result(test), whom.result(test, system.decoders[0])
                if mine and theirs and mine.error is not None and theirs.error is not None:
                    found.setdefault(system.name.method, []).append(compare(mine, theirs))
    what = "full fine-tuning of the dense model" if against is None else against
    if not found:
        alone = next((whom for members in groups(systems) if (whom := reference(members, against)) is not None), None)
        if alone is not None:
            return f"No other adapted system was scored beside {alone.name.method}, so nothing can be compared with it."
        lacking = "No dense model was fully fine-tuned" if against is None else f"No other system ran beside {against}"
        return f"{lacking}, so there is no reference to compare the methods with."
    parts = [f"{method}{_saving(members_of[method])} is {_outcomes(found[method])}" for method in found]
    most = max(map(len, found.values()))
    comparisons = "one comparison" if most == 1 else f"{most} comparisons"
    first = dict.fromkeys(s.decoders[0] for s in systems if len(s.decoders) > 1)
    by = f", with the decoder {_listed(first)}" if first else ""
    return f"Compared with {what}{by} ({comparisons} for each method), {'; '.join(parts)}."


def _outcomes(found: Sequence[Comparison]) -> str:
    """The difference with its interval if there is one comparison, else how many ended in which way."""
    if len(found) == 1 and found[0].difference is not None:
        only = found[0]
        return f"{amount(only.difference)}{', so they are not told apart' if only.outcome == TIE else ''}"
    outcomes = Counter(one.outcome for one in found)
    return _listed(f"{what} in {outcomes[what]}" for what in ORDER if outcomes[what])


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


def _listed(names: Iterable[str]) -> str:
    """``a, b and c``."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


# -- cards -------------------------------------------------------------------------------------------------------------


def headlines(systems: Sequence[System], against: str | None = None) -> list[Headline]:
    """One headline per task and base, in the order of the systems."""
    return [_headline(members, against) for members in groups(systems)]


def _headline(members: Sequence[System], against: str | None) -> Headline:
    task, base = members[0].name.task, members[0].name.base
    tests = list(dict.fromkeys(test for system in members for test in system.tests))
    leads = [text for test in tests if (text := _lead(members, test, len(tests) > 1))]
    lead = "; ".join(leads)
    return Headline(task, base, f"{lead}." if lead else "Nothing was scored.", _against(members, tests, against))


def _lead(members: Sequence[System], test: str, several: bool) -> str:
    """The best system on a test set, and the baselines."""
    scored = [(s, r) for s in members if (r := s.result(test)) is not None and r.error is not None]
    unadapted = next((r for s, r in scored if s.unadapted), None)
    adapted = [r for s, r in scored if not s.baseline]
    where = f" on {test}" if several else ""
    where += _by(members[0].decoders[0], any(len(s.decoders) > 1 for s in members))
    if not adapted:
        return f"Only the unadapted base{where}: {_value(unadapted)}" if unadapted else ""
    best = min(adapted, key=lambda r: r.error)
    near = [compare(r, best) for r in adapted if r is not best]
    names = [one.mine.system.method for one in near if one.outcome in (TIE, EQUAL)]
    if names:
        tied = _listed(names) if len(names) < 4 else f"{len(names)} others"
        lead = f"{best.system.method} has the lowest error{where}, {_value(best)}, and is not told apart from {tied}"
    else:
        lead = f"{best.system.method} is best{where}: {_value(best)}"
    if unadapted is not None:
        lead += f"; the base before adaptation{' is better' * (unadapted.error < best.error)}: {_value(unadapted)}"
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


def _against(members: Sequence[System], tests: Sequence[str], against: str | None) -> Table | None:
    """Changes in error and cost from the reference to the other adapted systems; None if there are none."""
    whom, rows, refused = reference(members, against), [], {}
    if whom is None:
        return None
    for system in members:
        pairs = [(system.result(test), whom.result(test, system.decoders[0])) for test in tests]
        if system is whom or system.baseline or all(mine is None or mine.error is None for mine, _ in pairs):
            continue
        cells = [_difference(mine, theirs, refused) for mine, theirs in pairs]
        errors = [cell for three in cells for cell in three]
        rows.append((system.name.method, *errors, *(_change(system, whom, key) for key in _COSTS)))
    metric = _NAMES[whom.results[0].metric]
    level = confidence_level(r for s in members for r in s.results) or "interval"
    titles = [(f"{test}: {metric}, points" if len(tests) > 1 else f"{metric}, points", level, "p") for test in tests]
    header = (f"against {whom.name.method}", *(title for three in titles for title in three))
    note = " ".join(f"Not tested: {why}." for why in refused)
    return Table("", (*header, *(f"{name} %" for name in _COSTS.values())), tuple(rows), note=note) if rows else None


def _difference(mine: Result | None, theirs: Result | None, refused: dict[str, None]) -> tuple[str, str, str]:
    """Difference of the primary metric in points, its interval, and the p-value; adds to ``refused`` why not."""
    if mine is None or theirs is None or mine.error is None or theirs.error is None:
        return units.DASH, units.DASH, units.DASH
    found = compare(mine, theirs)
    difference = units.signed(mine.metrics[mine.metric] - theirs.metrics[theirs.metric])
    if found.refused:
        refused.setdefault(found.refused)
    if found.difference is None:
        return difference, units.DASH, units.DASH
    p = found.difference.p
    return difference, units.interval(*found.difference.interval), f"{p:.2f}" if p >= 0.095 else f"{p:.1g}"


def _change(system: System, whom: System, key: str) -> str:
    mine, theirs = system.metrics[key], whom.metrics[key]
    return units.DASH if mine is None or not theirs else units.signed(mine / theirs - 1)
