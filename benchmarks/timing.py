"""Timing by interleaved pairs: what competes runs in turn, so that a busy machine slows all of it alike.

Ratios are medians over rounds of one run; absolute times are medians too, and mean little on a shared machine. Each
benchmark prints a table, and with ``--json FILE`` appends its rows as JSON lines.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lowrank_speech.scoring.text import table


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


def options(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"interleaved rounds (default: {rounds})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the rows as JSON lines")
    return parser


def devices() -> list[str]:
    """The devices to measure on."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def show(benchmark: str, rows: Sequence[dict[str, Any]], file: Path | None) -> None:
    """Print ``rows`` (equal keys) as a table and append them to ``file``."""
    print(f"\n{benchmark}, {torch.get_num_threads()} threads\n")
    print("\n".join(table(list(rows[0]), [list(row.values()) for row in rows])), flush=True)
    if file is not None:
        with file.open("a", encoding="utf-8") as out:
            for row in rows:
                out.write(json.dumps({"benchmark": benchmark, "threads": torch.get_num_threads(), **row}) + "\n")
