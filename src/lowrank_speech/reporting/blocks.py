"""The results table: one block per task and base, one row per system and decoder, a group of columns per test set.

The decoders of a system are in adjacent rows. The first rows are the baselines: chance, always deciding for the most
frequent language (`majority`, if a test set is unbalanced), and the base without adaptation.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lowrank_speech.reporting import units
from lowrank_speech.reporting.comparisons import ties
from lowrank_speech.reporting.flags import MARK, flags
from lowrank_speech.reporting.systems import Result, System, confidence_level

INTERVAL = ("", "interval")
TYPES = {"asr": "speech recognition", "lid": "language recognition"}
Titles = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """A row of a block: a system with one of its decoders."""

    system: System
    decoder: str

    def result(self, test: str) -> Result | None:
        """The result on a test set."""
        return self.system.result(test, self.decoder)


@dataclass(frozen=True)
class Column:
    """A column of the table. ``keys``: the columns of results.csv that it shows; ``title``: at most two lines."""

    keys: tuple[str, ...]
    title: Titles
    show: Callable[[Row], str]
    chance: str = ""
    test: str = ""

    @property
    def primary(self) -> bool:
        """Whether the column shows the primary metric."""
        return self.keys in (("wer",), ("accuracy",))


@dataclass(frozen=True)
class Block:
    """The table of one task on one base.

    titles  two lines per column
    tests   test set of each column, "" for columns of the system; "" for all columns if there is only one test set
    names   number of columns on the left that name the row
    costs   index of the first cost column
    rows    kind (chance, unadapted, adapted) and cells
    best    (row, column) of the cells with the lowest error of the adapted systems, and of those that a paired test
            does not tell apart from it
    scored  the normaliser of scoring, if there is one
    """

    task: str
    type: str
    base: str
    titles: tuple[Titles, ...]
    tests: tuple[str, ...]
    names: int
    costs: int
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    best: frozenset[tuple[int, int]]
    scored: str = ""

    @property
    def title(self) -> str:
        return f"{self.task} ({TYPES[self.type]}) on {self.base}{self.scored and f', {self.scored}'}"

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Test sets with their number of columns, "" for columns in between; empty if there is only one test set."""
        return runs(self.tests) if any(self.tests) else []


def runs(names: Sequence[str]) -> list[tuple[str, int]]:
    """Group equal adjacent names: (name, count)."""
    return [(name, len(list(equal))) for name, equal in itertools.groupby(names)]


def _name(row: Row) -> str:
    """The method, with a mark if one of the row's results is degenerate."""
    marked = any(flags(result) for result in row.system.results if result.decoder == row.decoder)
    return f"{row.system.name.method} {MARK}" if marked else row.system.name.method


# -- columns -----------------------------------------------------------------------------------------------------------


def _measured(key: str, title: Titles, test: str, show: Callable[[float | None], str], chance: str = "") -> Column:
    def cell(row: Row) -> str:
        result = row.result(test)
        return units.DASH if result is None else show(result.metrics[key])

    return Column((key,), title, cell, chance, test)


def _interval(key: str, test: str, scale: float = 100, digits: int = 1) -> Column:
    def cell(row: Row) -> str:
        result = row.result(test)
        ends = (None, None) if result is None else (result.metrics[f"{key}_low"], result.metrics[f"{key}_high"])
        return units.interval(*ends, digits, scale)

    return Column((f"{key}_low",), INTERVAL, cell, "", test)


def _chances(members: Sequence[System], test: str) -> Result | None:
    """A result that has the chance levels of a test set."""
    known = (r for s in members for r in s.results if r.test == test and r.metrics["chance_accuracy"] is not None)
    return next(known, None)


def _measures(kind: str, test: str, chance: Result | None, brief: bool, calibrated: bool) -> list[Column]:
    """Columns of a test set; ``brief``: only the primary metric and few others; ``calibrated``: there are back ends."""

    def at_chance(key: str, show: Callable[[float | None], str]) -> str:
        return "" if chance is None else show(chance.metrics[f"chance_{key}"])

    if kind == "asr":
        leading = [_measured("wer", ("WER", "%"), test, units.percent), _interval("wer", test)]
        return (
            leading
            if brief
            else [*leading, _measured("cer", ("CER", "%"), test, units.percent), _interval("cer", test)]
        )
    share, cost = units.percent, units.cost
    leading = [
        _measured("accuracy", ("acc.", "%"), test, share, at_chance("accuracy", share)),
        _interval("accuracy", test),
        _measured("act_cprimary", ("C_prim", "actual"), test, cost, at_chance("act_cprimary", cost)),
    ]
    return (
        leading
        if brief
        else [
            *leading,
            _interval("act_cprimary", test, 1, 2),
            _measured("min_cprimary", ("C_prim", "min."), test, cost, at_chance("min_cprimary", cost)),
            _measured("eer", ("EER", "%"), test, share, at_chance("eer", share)),
            *([_measured("cllr", ("Cllr", "bits"), test, cost, at_chance("cllr", cost))] if calibrated else []),
        ]
    )


def _of_system(key: str, title: Titles, show: Callable[[float | None], str]) -> Column:
    def cell(row: Row) -> str:
        # A result has the costs of its system, but a fusion those of all its systems.
        own = row.result(row.system.tests[0])
        return show((row.system if own is None else own).metrics[key])

    return Column((key,), title, cell)


def _decoding(row: Row) -> str:
    """Seconds of decoding per second of speech, over all test sets; with ≥ if the front end's time is unknown."""
    found = [result.metrics for result in map(row.result, row.system.tests) if result is not None]
    for key, mark in (("rtf_total", ""), ("rtf", "≥ ")):
        values = [metrics[key] for metrics in found if metrics[key] is not None]
        if values and len(values) == len(found):
            speech = [metrics["speech_seconds"] or 0.0 for metrics in found]
            whole = sum(speech)
            mean = (
                sum(v * s for v, s in zip(values, speech, strict=True)) / whole if whole else sum(values) / len(values)
            )
            return mark + units.factor(mean if len(values) > 1 else values[0])
    return units.DASH


_COSTS = [
    _of_system("parameters_total", ("para-", "meters"), units.parameters),
    _of_system("reduction", ("against", "dense %"), lambda share: units.signed(None if share is None else -share)),
    _of_system("parameters_trained", ("", "trained"), units.parameters),
    _of_system("peak_bytes", ("peak", "memory"), units.memory),
    _of_system("seconds_train", ("training", "time"), units.duration),
    Column(("rtf_total", "rtf"), ("decode", "s / s"), _decoding),
]


# -- blocks ------------------------------------------------------------------------------------------------------------


def blocks(systems: Sequence[System], brief: bool = False) -> list[Block]:
    """The table of each task and base, in the order of the systems, without interval columns that have no values.

    ``brief``: with several test sets, show only the primary metric of each and few others.
    """
    groups: dict[tuple[str, str, str], list[System]] = {}
    for system in systems:
        groups.setdefault((system.name.task, system.name.type, system.name.base), []).append(system)
    return [_block(*names, members, brief) for names, members in groups.items()]


def _block(task: str, kind: str, base: str, members: Sequence[System], brief: bool) -> Block:
    rows = [Row(system, decoder) for system in members for decoder in system.decoders]
    tests = list(dict.fromkeys(test for system in members for test in system.tests))
    results = [result for system in members for result in system.results]
    calibrated = any("backend" in result.manifests for result in results)
    chances = {test: _chances(members, test) for test in tests}
    names = [Column((), ("", "method"), _name)]
    if len({row.decoder for row in rows}) > 1:
        names.append(Column((), ("", "decoder"), lambda row: row.decoder))
    measures = [c for test in tests for c in _measures(kind, test, chances[test], brief and len(tests) > 1, calibrated)]
    # Drop intervals that no result has: they would be columns of dashes.
    measures = [c for c in measures if c.title != INTERVAL or any(r.metrics[c.keys[0]] is not None for r in results)]
    columns = [*names, *measures, *_COSTS]
    made = [("unadapted" if row.system.baseline else "adapted", tuple(c.show(row) for c in columns)) for row in rows]
    above = _baselines(columns, len(names), chances)
    best = set()
    for test in tests:
        for row in lowest_errors([row for row in rows if not row.system.baseline], test):
            best |= {(rows.index(row), i) for i, c in enumerate(columns) if c.test == test and c.primary}
            best |= {(rows.index(row), i) for i in range(len(names)) if test == tests[0]}
    level = confidence_level(results)
    return Block(
        task,
        kind,
        base,
        tuple((level, "interval") if c.title == INTERVAL else c.title for c in columns),
        tuple(c.test if len(tests) > 1 else "" for c in columns),
        len(names),
        len(columns) - len(_COSTS),
        (*above, *made),
        frozenset((len(above) + row, column) for row, column in best),
        next((r.normaliser for r in results if r.metrics["normaliser"] not in (None, "none")), ""),
    )


def _baselines(
    columns: Sequence[Column], names: int, chances: dict[str, Result | None]
) -> list[tuple[str, tuple[str, ...]]]:
    """Rows of the trivial baselines: chance, and the most frequent language of each unbalanced test set."""
    known = {test: result.metrics for test, result in chances.items() if result is not None}
    if not known:
        return []
    blank = [""] * (names - 1)
    rows = [("chance", ("chance", *blank, *(c.chance for c in columns[names:])))]
    majority = {
        test: units.percent(metrics["chance_majority_accuracy"])
        for test, metrics in known.items()
        if (metrics["chance_majority_accuracy"] or 0.0) > metrics["chance_accuracy"]
    }
    if majority:
        cells = (majority.get(c.test, "") if c.primary else "" for c in columns[names:])
        rows.append(("chance", ("majority", *blank, *cells)))
    return rows


def lowest_errors(rows: Iterable[Row], test: str) -> list[Row]:
    """The row with the lowest error on a test set, and those that are not told apart from it; [] without errors."""
    found = [(row, result) for row in rows if (result := row.result(test)) is not None]
    best = ties(result for _, result in found)
    return [row for row, result in found if any(result is one for one in best)]
