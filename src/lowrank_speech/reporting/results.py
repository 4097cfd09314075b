"""Result files: results.csv (raw values) and results.txt (for a terminal of 120 columns).

results.txt follows Kaldi's RESULTS files: it fits a terminal and can be pasted.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lowrank_speech.artefact import atomic, write_text
from lowrank_speech.reporting.blocks import Block, blocks, runs
from lowrank_speech.reporting.systems import COLUMNS, System

_COUNTS = (
    *("words", "substitutions", "deletions", "insertions"),
    *("utterances", "set_aside_train", "set_aside_decode", "stopped"),
    *("parameters_total", "parameters_dense", "parameters_trained", "peak_bytes", "peak_bytes_decode"),
    *("steps", "epochs"),
)
WIDTH = 120


def as_text(title: str, systems: Sequence[System], summary: Sequence[str] = ()) -> str:
    """The table for a terminal: aligned columns, one block per task and base.

    If a block is wider than 120 columns, the costs are in a separate table below the errors.
    """
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
        lines += [block.title, *table, ""]
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


def write_results(out: Path, title: str, systems: Sequence[System], summary: Sequence[str] = ()) -> list[Path]:
    """Write results.csv and results.txt into ``out``; return their paths. Unknown values are empty fields."""
    with atomic(out / "results.csv") as temporary:
        as_frame(systems).to_csv(temporary, index=False)
    write_text(out / "results.txt", as_text(title, systems, summary))
    return [out / "results.csv", out / "results.txt"]
