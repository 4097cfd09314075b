"""The results table: results.csv (raw), results.txt (a terminal of 120 columns), and the rows of the page.

One block per task and base. On top stands what a system has to beat: chance, always the most frequent language
(`majority`, where the test is unbalanced), and the base without adaptation. Kaldi's RESULTS files are the model of the
text: what fits a terminal and can be pasted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lowrank_speech.artefact import atomic, write_text
from lowrank_speech.reporting import units
from lowrank_speech.reporting.systems import COLUMNS, System

_COUNTS = (
    *("words", "substitutions", "deletions", "insertions", "utterances", "set_aside_train", "set_aside_decode"),
    *("parameters_total", "parameters_dense", "parameters_trained", "peak_bytes", "peak_bytes_decode"),
    *("steps", "epochs"),
)
INTERVAL = ("", "interval")
TYPES = {"asr": "speech recognition", "lid": "language recognition"}


@dataclass(frozen=True)
class Column:
    """A column for people. ``key`` says which columns of results.csv it shows; ``title`` has at most two lines."""

    key: str
    title: tuple[str, str]
    show: Callable[[System], str]
    chance: Callable[[System], str] = lambda _: ""


@dataclass(frozen=True)
class Block:
    """The table of one task on one base.

    ``titles``: two lines per column. ``rows``: kind (chance, unadapted, adapted, or best: the adapted system of least
    error) and cells.
    """

    task: str
    type: str
    base: str
    titles: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def title(self) -> str:
        return f"{self.task} ({TYPES[self.type]}) on {self.base}"


def _share(key: str, title: str, chance: Callable[[System], str] = lambda _: "") -> list[Column]:
    return [
        Column(key, (title, "%"), lambda s: units.percent(s.numbers[key]), chance),
        Column(f"{key}_low", INTERVAL, lambda s: _interval(s, key)),
    ]


def _interval(system: System, key: str, scale: float = 100, digits: int = 1) -> str:
    return units.interval(system.numbers[f"{key}_low"], system.numbers[f"{key}_high"], digits, scale)


def _n(key: str, show: Callable[[float | None], str]) -> Callable[[System], str]:
    return lambda s: show(s.numbers[key])


def _with_chance(key: str, show: Callable[[float | None], str]) -> tuple[Callable[[System], str], ...]:
    return _n(key, show), _n(f"chance_{key}", show)


def _decoding(system: System) -> str:
    """Seconds of decoding per second of speech; with ≥ where the time of a front end run beforehand is not known."""
    if system.numbers["rtf_total"] is None and system.numbers["rtf"] is not None:
        return f"≥ {units.factor(system.numbers['rtf'])}"
    return units.factor(system.numbers["rtf_total"])


_MEASURES = {
    "asr": [*_share("wer", "WER"), *_share("cer", "CER")],
    "lid": [
        *_share("accuracy", "acc.", _n("chance_accuracy", units.percent)),
        Column("act_cprimary", ("C_prim", "actual"), *_with_chance("act_cprimary", units.cost)),
        Column("act_cprimary_low", INTERVAL, lambda s: _interval(s, "act_cprimary", 1, 2)),
        Column("min_cprimary", ("C_prim", "min."), *_with_chance("min_cprimary", units.cost)),
        Column("eer", ("EER", "%"), *_with_chance("eer", units.percent)),
    ],
}
_COSTS = [
    Column("parameters_total", ("para-", "meters"), _n("parameters_total", units.parameters)),
    Column(
        "reduction",
        ("against", "dense %"),
        lambda s: units.signed(None if s.numbers["reduction"] is None else -s.numbers["reduction"]),
    ),
    Column("parameters_trained", ("", "trained"), _n("parameters_trained", units.parameters)),
    Column("peak_bytes", ("peak", "memory"), _n("peak_bytes", units.memory)),
    Column("seconds_train", ("training", "time"), _n("seconds_train", units.duration)),
    Column("rtf_total", ("decode", "s / s"), _decoding),
]


def blocks(systems: Sequence[System]) -> list[Block]:
    """The table of every task and base, in the order of the systems; columns without any figure are left out."""
    groups: dict[tuple[str, str, str], list[System]] = {}
    for system in systems:
        groups.setdefault((system.name.task, system.name.type, system.name.base), []).append(system)
    return [_block(*names, members) for names, members in groups.items()]


def _block(task: str, kind: str, base: str, members: Sequence[System]) -> Block:
    columns = [Column("method", ("", "method"), lambda s: s.name.method, lambda _: "chance"), *_MEASURES[kind]]
    # An interval that no system has would be a column of dashes.
    columns = [c for c in columns if c.title != INTERVAL or any(s.numbers[c.key] is not None for s in members)]
    columns += _COSTS
    mass = f"{units.percent(members[0].confidence, 0)} %"
    titles = tuple((mass, "interval") if column.title == INTERVAL else column.title for column in columns)
    best = least_error([s for s in members if not s.unadapted])
    rows = [
        ("unadapted" if s.unadapted else "best" if s is best else "adapted", tuple(c.show(s) for c in columns))
        for s in members
    ]
    known = [s for s in members if s.numbers["chance_accuracy"] is not None]
    if known:
        rows.insert(0, ("chance", tuple(column.chance(known[0]) for column in columns)))
        majority = known[0].numbers["chance_majority_accuracy"]
        if majority is not None and majority > known[0].numbers["chance_accuracy"]:
            cells = ["majority", units.percent(majority), *[""] * (len(columns) - 2)]
            rows.insert(1, ("chance", tuple(cells)))
    return Block(task, kind, base, titles, tuple(rows))


def least_error(systems: Sequence[System]) -> System | None:
    """The system of least error, the first of equals; None where none has an error."""
    return min((s for s in systems if s.error is not None), key=lambda s: s.error, default=None)


def as_text(title: str, systems: Sequence[System]) -> str:
    """The table for a terminal: aligned columns, one block per task and base, about 110 columns wide."""
    lines = [title, ""]
    for block in blocks(systems):
        cells = [*zip(*block.titles, strict=True), *(row for _, row in block.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        text = [_line(row, widths) for row in cells]
        lines += [block.title, *text[:2], "-" * max(map(len, text)), *text[2:], ""]
    return "\n".join(lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.ljust(width) if i == 0 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *others]).rstrip()


def as_frame(systems: Sequence[System]) -> pd.DataFrame:
    """One row per system, columns `COLUMNS`, raw figures: shares as fractions, bytes, seconds; counts as Int64."""
    frame = pd.DataFrame([system.numbers for system in systems], columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(_COUNTS, "Int64"))


def write_results(out: Path, title: str, systems: Sequence[System]) -> list[Path]:
    """Write results.csv and results.txt into ``out``; returns their paths. An unknown figure is an empty field."""
    with atomic(out / "results.csv") as temporary:
        as_frame(systems).to_csv(temporary, index=False)
    write_text(out / "results.txt", as_text(title, systems))
    return [out / "results.csv", out / "results.txt"]
