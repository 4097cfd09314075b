"""Time and memory of scoring language recognition, reading the table included.

python benchmarks/bench_lid_scoring.py                                      # 20,000 and 200,000 segments
OMP_NUM_THREADS=2 python benchmarks/bench_lid_scoring.py --segments 1000000     # the goal; writes 1 GB

Random log-likelihoods of a system that is right on about two thirds of the segments, with uneven languages, are written
to a temporary file (TMPDIR), a block at a time. Each row is one `lowrank-speech score lid` in its own process:

    resamples  0, and --bootstrap
    cpu s      CPU time of all threads; on a shared machine, this is the figure that repeats
    wall s     elapsed time
    MB         peak memory of the process
    width %    the bound of the grid's error of C_primary, relative to the width of the interval; - if exact

The goal for 1,000,000 x 100 on two cores: 60 s without bootstrap, 120 s with 1,000 resamples, 4,000 MB.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import timing
from lowrank_speech.errors import UserError

BLOCK = 10_000


def make(segments, languages, folder):
    """Write scores.tsv and labels.tsv; returns their paths."""
    rng = np.random.default_rng(1)
    names = [f"l{i:03d}" for i in range(languages)]
    share = rng.uniform(0.5, 1.5, languages)
    line = "\t".join(["%.6f"] * languages)
    scores, labels = folder / "scores.tsv", folder / "labels.tsv"
    with scores.open("w") as table, labels.open("w") as key:
        table.write("\t".join(("id", *names)) + "\n")
        key.write("id\tlanguage\n")
        for start in range(0, segments, BLOCK):
            rows = np.arange(start, min(start + BLOCK, segments))
            truth = rng.choice(languages, len(rows), p=share / share.sum())
            truth = np.where(rows < languages, rows % languages, truth)  # every language has a segment
            values = rng.normal(scale=2, size=(len(rows), languages))
            values[np.arange(len(rows)), truth] += 6
            table.write(
                "".join(f"s{row:08d}\t{line % tuple(v)}\n" for row, v in zip(rows, values.tolist(), strict=True))
            )
            key.write("".join(f"s{row:08d}\t{names[t]}\n" for row, t in zip(rows, truth, strict=True)))
    return scores, labels


def measure(files, bootstrap, options):
    """Score in a process of its own: its result, CPU and wall seconds, and peak memory in MB."""
    command = [sys.executable, "-m", "lowrank_speech", "score", "lid", *map(str, files)]
    command += ["--json", "--bootstrap", str(bootstrap), *options]
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=out)
        _, status, used = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise UserError(f"`{' '.join(command)}` ended with exit code {child.returncode}")
        out.seek(0)
        result = json.load(out)
    return result, used.ru_utime + used.ru_stime, wall, used.ru_maxrss / 1024


def main():
    parser = timing.options(__doc__, rounds=1)
    counts = timing.at_least(1, int)
    parser.add_argument("--segments", type=counts, nargs="+", default=[20_000, 200_000], help="(default: 20000 200000)")
    parser.add_argument("--languages", type=timing.at_least(2, int), default=100, help="(default: 100)")
    parser.add_argument("--bootstrap", type=timing.at_least(2, int), default=1000, help="resamples (default: 1000)")
    parser.add_argument("--options", default="", help="more options of `score lid`, in one argument")
    arguments = parser.parse_args()
    if min(arguments.segments) < arguments.languages:
        raise UserError(f"--segments {min(arguments.segments)} is fewer than --languages {arguments.languages}")
    rows = []
    for segments in arguments.segments:
        with tempfile.TemporaryDirectory() as folder:
            files = make(segments, arguments.languages, Path(folder))
            for bootstrap in (0, arguments.bootstrap):
                for _ in range(arguments.rounds):
                    result, cpu, wall, memory = measure(files, bootstrap, arguments.options.split())
                    bound = (result["grid_error"] or {}).get("min_cprimary")
                    limits = result["interval"]["min_cprimary"]
                    row = {"segments": segments, "languages": arguments.languages, "resamples": bootstrap}
                    row |= {"cpu s": cpu, "wall s": wall, "MB": int(memory)}
                    rows.append(row | {"width %": None if bound is None else 100 * bound / (limits[1] - limits[0])})
    timing.show("scoring of language recognition", rows, arguments.json)


if __name__ == "__main__":
    timing.run(main)
