"""CPU time of a dry run of the whole workflow, for experiments of several sizes.

python benchmarks/planning.py                       # 200 systems, with 1 x 1 and with 10 x 3 test sets x decoders
python benchmarks/planning.py --sizes 20x1x1 20x4x2 --rounds 1

Each size is a new experiment with two bases; the dry runs of all sizes take turns. The times are CPU seconds of
Snakemake and its children, without waiting for the disk; medians over the rounds.
"""

import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from lowrank_speech.errors import UserError
from timing import options, run, show

REPOSITORY = Path(__file__).resolve().parents[1]


def experiment(systems: int, tests: int, decoders: int) -> dict[str, Any]:
    """A config with ``systems`` systems, each tested on ``tests`` splits with ``decoders`` decoders."""
    splits = {f"test{n}": {"utterances": 2 + n, "voices": ["m7"]} for n in range(tests)}
    splits |= {"pretrain": {"utterances": 4, "voices": ["m1"]}, "dev": {"utterances": 2, "voices": ["m8"]}}
    recipe = {"corpus": "spoken", "train": "pretrain", "dev": "dev", "epochs": 1}
    scratch = {"source": "scratch", "pretrain": recipe}
    chars = {"kind": "char", "corpora": ["spoken"], "splits": ["pretrain"]}
    return {
        "experiment": "planning",
        "output": "exp/planning",
        "seed": 1,
        "corpora": {"spoken": {"kind": "espeak", "languages": ["en"], "splits": splits}},
        "langs": {"ctc": chars, "decoder": chars | {"for": "seq2seq"}},
        "bases": {
            "wav2vec2": {"family": "wav2vec2", "features": "waveform", "lang": "ctc", **scratch},
            "whisper": {"family": "whisper", "features": "logmel", "lang": "decoder", **scratch},
        },
        "decoders": {f"greedy{n}": {"kind": "greedy", "batch_seconds": 10 + n} for n in range(decoders)},
        "tasks": {
            "asr": {
                "type": "asr",
                "corpus": "spoken",
                "train": "pretrain",
                "dev": "dev",
                "test": [f"test{n}" for n in range(tests)],
                "decoders": [f"greedy{n}" for n in range(decoders)],
            }
        },
        "methods": {f"m{n}": {"adapt": "full", "training": {"lr": 1e-5 * (n + 1)}} for n in range(systems // 2)},
        "systems": {
            "bases": ["wav2vec2", "whisper"],
            "tasks": ["asr"],
            "methods": [f"m{n}" for n in range(systems // 2)],
        },
    }


def dry_run(folder: Path, config: Path) -> tuple[float, int]:
    """CPU seconds and number of jobs of a dry run."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "rules", "--snakefile"]
    before = os.times()
    done = subprocess.run(
        [*command, str(REPOSITORY / "Snakefile"), "--directory", str(folder), "--configfile", str(config)],
        capture_output=True,
        text=True,
    )
    after = os.times()
    if done.returncode:
        raise UserError(f"the dry run failed:\n{done.stdout}{done.stderr}")
    jobs = re.search(r"^total +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE)
    if jobs is None:
        raise UserError(f"the dry run printed no total of jobs:\n{done.stdout[-2000:]}")
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return spent, int(jobs[1])


def size(text: str) -> tuple[int, int, int]:
    """The type of --sizes: SYSTEMSxTESTSxDECODERS."""
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not found or int(found[1]) < 2:
        raise ValueError(text)
    systems, tests, decoders = map(int, found.groups())
    return systems, tests, decoders


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--sizes", type=size, nargs="+", default=[(200, 1, 1), (200, 10, 3)])
    arguments = parser.parse_args()
    seconds: dict[tuple[int, int, int], list[float]] = {found: [] for found in arguments.sizes}
    jobs = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, found in enumerate(arguments.sizes):
            (Path(scratch) / f"{number}.yaml").write_text(yaml.safe_dump(experiment(*found)), encoding="utf-8")
        for _ in range(arguments.rounds):
            for number, found in enumerate(arguments.sizes):
                spent, jobs[found] = dry_run(Path(scratch), Path(scratch) / f"{number}.yaml")
                seconds[found].append(spent)
    rows = [
        {
            "systems": found[0],
            "tests": found[1],
            "decoders": found[2],
            "jobs": jobs[found],
            "cpu seconds": round(statistics.median(times), 1),
            "ms a job": round(1000 * statistics.median(times) / jobs[found], 2),
        }
        for found, times in seconds.items()
    ]
    show("planning", rows, arguments.json)


if __name__ == "__main__":
    run(main)
