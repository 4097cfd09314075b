"""Interleaved timing: the compared variants take turns, so that a busy machine slows all of them equally.

Ratios are medians over the rounds of one run. Absolute times are medians too, and mean little on a shared machine. Each
benchmark prints a table; ``--json FILE`` also appends its rows as JSON lines.

Also has the types of the benchmarks' options, and ``run``, which reports a UserError in one line. Imports only torch
and works in Python 3.9, for bench_ctc.py.
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
    """Wall time of one call, including the work that it queues on the device."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def interleaved(works: Sequence[Callable[[], Any]], rounds: int, device: str = "cpu") -> list[list[float]]:
    """Seconds of each of ``works`` in each of ``rounds``, after one warm-up call: a list for each work."""
    for work in works:
        work()
    rows = [[seconds(work, device) for work in works] for _ in range(rounds)]
    return [list(column) for column in zip(*rows, strict=True)]


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over the rounds of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """Option type: an ``int`` or ``float`` above 0."""
    return _number(kind, lambda value: value > 0, "above 0")


def at_least(least: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    """Option type: an ``int`` or ``float`` of at least ``least``."""
    return _number(kind, lambda value: value >= least, f"of at least {least:g}")


def _number(kind: type[int] | type[float], fits: Callable[[float], bool], which: str) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and fits(value)):
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not valid; expected {noun} {which}")
        return value

    return read


def folder(text: str) -> Path:
    """Option type: an existing folder."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"the folder {text} does not exist; create it or give another")
    return Path(text)


def file(text: str) -> Path:
    """Option type: a file to write; an invalid path fails before hours of measuring, not after."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; give a file")
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
    """A parser with the options that most benchmarks share."""
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
