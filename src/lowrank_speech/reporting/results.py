"""Result files: results.csv, comparisons.csv, seeds.csv (raw values) and results.txt (a terminal of 120 columns).

results.txt follows Kaldi's RESULTS files: it fits a terminal and can be pasted.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lowrank_speech.artefact import atomic, write_text
from lowrank_speech.reporting import comparisons, flags, seeds
from lowrank_speech.reporting.blocks import Block, blocks, runs
from lowrank_speech.reporting.systems import COLUMNS, System

_COUNTS = (
    *("words", "substitutions", "deletions", "insertions"),
    *("utterances", "set_aside_train", "set_aside_decode", "stopped"),
    *("parameters_total", "parameters_dense", "parameters_trained", "peak_bytes", "peak_bytes_decode"),
    *("steps", "epochs"),
    *("seed", "oracle_n", "empty_hypotheses", "systems"),
)
WIDTH = 120


def as_text(title: str, systems: Sequence[System], summary: Sequence[str] = (), against: str | None = None) -> str:
    """The table for a terminal: aligned columns, one block per task and base, with its paired comparisons below.

    If a block is wider than 120 columns, the costs are in a separate table below the errors.
    """
    compared, spread = comparisons.comparisons(systems, against), seeds.spreads(systems)
    lines = [title, "", *(line for text in summary for line in textwrap.wrap(text, WIDTH - 10)), *[""] * bool(summary)]
    for block in blocks(systems, brief=True):
        every, names = list(range(len(block.titles))), list(range(block.names))
        table = _table(block, every)
        if max(map(len, table)) > WIDTH:
            table = [
                *_table(block, every[: block.costs]),
                "",
                *_table(block, [*names, *every[block.costs :]], costs=True),
            ]
        members = [s for s in systems if (s.name.task, s.name.base) == (block.task, block.base)]
        several = any(len(s.results) > 1 for s in members)
        notes = [f"{flags.MARK} {result}: {'; '.join(found)}" for result, found in flags.flagged(members)]
        own = [one for one in compared if (one.mine.system.task, one.mine.system.base) == (block.task, block.base)]
        notes += [comparisons.sentence(one, several) for one in own]
        notes += seeds.lines(spread, block.task, block.base)
        wrapped = [line for note in notes for line in textwrap.wrap(note, WIDTH, subsequent_indent="  ")]
        lines += [block.title, *table, *([""] if wrapped else []), *wrapped, ""]
    return "\n".join(lines)


def _table(block: Block, columns: Sequence[int], costs: bool = False) -> list[str]:
    """Lines for some columns of a block: titles, rule, rows. A table of only ``costs`` has no chance rows."""
    rows = [cells for kind, cells in block.rows if not (costs and kind == "chance")]
    cells = [[row[i] for i in columns] for row in (*zip(*block.titles, strict=True), *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    head, first = [], 0
    for name, number in runs([block.tests[i] for i in columns]):
        width = sum(widths[first : first + number]) + 2 * (number - 1)
        if name and width < len(name) + 4:
            widths[first] += len(name) + 4 - width
            width = len(name) + 4
        head.append(f" {name} ".center(width, "-") if name else " " * width)
        first += number
    text = [_line(row, widths, block.names) for row in cells]
    top = ["  ".join(head).rstrip()] if any(block.tests[i] for i in columns) else []
    return [*top, *text[:2], "-" * max(map(len, text)), *text[2:]]


def _line(cells: Sequence[str], widths: Sequence[int], names: int) -> str:
    sides = (c.ljust(w) if i < names else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
    return "  ".join(sides).rstrip()


def as_frame(systems: Sequence[System]) -> pd.DataFrame:
    """One row per result with the columns `COLUMNS`, as raw values: fractions, bytes, seconds; counts as Int64."""
    frame = pd.DataFrame([result.metrics for s in systems for result in s.results], columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(_COUNTS, "Int64"))


def write_results(
    out: Path, title: str, systems: Sequence[System], summary: Sequence[str] = (), against: str | None = None
) -> list[Path]:
    """Write the result files into ``out``; return their paths. Unknown values are empty fields.

    ``against``: the method that the others are compared with; see `comparisons.reference`.
    """
    frames = {
        "results": as_frame(systems),
        "comparisons": comparisons.as_frame(comparisons.comparisons(systems, against)),
        "seeds": seeds.as_frame(seeds.spreads(systems)),
    }
    for name, frame in frames.items():
        with atomic(out / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)
    write_text(out / "results.txt", as_text(title, systems, summary, against))
    return [*(out / f"{name}.csv" for name in frames), out / "results.txt"]
