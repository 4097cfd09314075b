"""Timing by interleaved pairs: what competes runs in turn, so that a busy machine slows all of it alike.

Ratios are medians over rounds of one run; absolute times are medians too, and mean little on a shared machine. Each
benchmark prints a table, and with ``--json FILE`` appends its rows as JSON lines.

The types of the benchmarks' options stand here too, and ``run``, which ends what a person can mend in one line. Imports
under Python 3.9 with torch alone, for bench_ctc.py.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lowrank_speech.errors import UserError


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """Wall time of one call, until the device is done."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def interleaved(works: Sequence[Callable[[], Any]], rounds: int, device: str = "cpu") -> list[list[float]]:
    """Seconds of each of ``works`` in each of ``rounds``, after one that is not counted: a list per work."""
    for work in works:
        work()
    rows = [[seconds(work, device) for work in works] for _ in range(rounds)]
    return [list(column) for column in zip(*rows, strict=True)]


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """The type of an option that takes a number above 0: ``int`` or ``float``."""
    return _number(kind, lambda value: value > 0, "above 0")


def at_least(least: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    """The type of an option that takes a number from ``least`` on: ``int`` or ``float``."""
    return _number(kind, lambda value: value >= least, f"of at least {least:g}")


def _number(kind: type[int] | type[float], fits: Callable[[float], bool], which: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and fits(value)):
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} does not do: give {noun} {which}")
        return value

    return read


def folder(text: str) -> Path:
    """The type of an option that takes a folder which is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}: make it, or name another")
    return Path(text)


def file(text: str) -> Path:
    """The type of an option that takes a file to write: found out before hours of measuring, not after."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder: name a file")
    folder(str(path.parent))
    return path


def run(main: Callable[[], None]) -> None:
    """Call ``main``; a UserError ends the process with exit code 2 and one line on stderr."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def options(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive(int), default=rounds, help=f"interleaved rounds (default: {rounds})")
    parser.add_argument("--json", type=file, metavar="FILE", help="append the rows as JSON lines")
    return parser


def devices() -> list[str]:
    """The devices to measure on."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def show(benchmark: str, rows: Sequence[dict[str, Any]], file: Path | None) -> None:
    """Print ``rows`` (equal keys) as a table and append them to ``file``."""
    from lowrank_speech.scoring.text import table  # not under Python 3.9

    print(f"\n{benchmark}, {torch.get_num_threads()} threads\n")
    print("\n".join(table(list(rows[0]), [list(row.values()) for row in rows])), flush=True)
    if file is not None:
        with file.open("a", encoding="utf-8") as out:
            for row in rows:
                out.write(json.dumps({"benchmark": benchmark, "threads": torch.get_num_threads(), **row}) + "\n")
