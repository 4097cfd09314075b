"""A copy of the workflow whose stages are stubs: what the tests of the orchestration run Snakemake in.

The copy has the real Snakefile, rules, schema and sources, so that fingerprints are of real code, and at the front of
PATH a `python` that, in place of a stage, writes the files that the stage declares: the manifest with a value that
differs from run to run (as the seconds do in a true one), the others with fixed bytes.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]

STUB = """
import json, os, sys

assert sys.argv[1] == "-m", sys.argv
stage = sys.argv[2].rpartition(".")[2]
flags, name = {}, None
for word in sys.argv[3:]:
    if word.startswith("--"):
        name = word
        flags[name] = []
    else:
        flags[name].append(word)
cfg = json.loads(flags["--cfg"][0])
out = flags.get("--out", [""])[0]
for name in ("--cuts", "--train-cuts", "--dev-cuts", "--moments"):
    assert all(os.path.isfile(path) for path in flags.get(name, [])), (name, flags[name])
model = ["model.safetensors", "config.json"]
files = {
    "corpus": lambda: [f"{split}.jsonl.gz" for split in cfg["corpus"]["splits"]] + ["set_aside.tsv"],
    "lang": lambda: {"char": ["tokens.txt"], "sentencepiece": ["pieces.model"]}.get(cfg["lang"]["kind"], []),
    "base": lambda: [*model, *(["../metrics.jsonl"] if cfg["source"] == "scratch" else [])],
    "features": lambda: [] if cfg["kind"] == "waveform" else [out.removesuffix(".jsonl.gz") + ".h5"],
    "calibrate": lambda: [],
    "factorise": lambda: model,
    "train": lambda: [f"model/{file}" for file in model] + ["metrics.jsonl", "set_aside.tsv"],
    "decode": lambda: {"asr": ["hyp.txt", "ref.txt", "languages.tsv"], "lid": ["scores.tsv", "labels.tsv"]}[
        cfg["task"]["type"]
    ] + ["speakers.tsv", "set_aside.tsv"],
    "score": lambda: [],
    "report": lambda: ["results.csv", "results.txt", "error.png", "cost.png", "curves.png", "report.html"],
    "export": lambda: ["config.json"],
}[stage]()
if stage in ("features", "calibrate"):
    files.append(out)
    paths = files
else:
    paths = [os.path.join(out, file) for file in files]
for path in paths:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write("stub")
with open(flags["--manifest"][0], "w") as file:
    json.dump({"stage": stage, "cfg": cfg, "run": os.urandom(8).hex()}, file)
"""


class Tree:
    """The copy in ``root``; ``config`` is written to config.yaml there."""

    def __init__(self, root: Path, config: dict[str, Any] | None = None):
        self.root = root
        for name in ("Snakefile", "config.yaml"):
            shutil.copy(REPOSITORY / name, root / name)
        for name in ("workflow", "src/lowrank_speech", "envs"):
            shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "stub.py").write_text(STUB)
        (root / "bin").mkdir()
        python = root / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{root}/stub.py" "$@"\n')
        python.chmod(0o755)
        if config is not None:
            self.write(config)

    def write(self, config: dict[str, Any], name: str = "config.yaml") -> None:
        """Write ``config`` as YAML in the order of its keys."""
        (self.root / name).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run Snakemake in the copy; stdout has all that it says."""
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment["PATH"] = f"{self.root / 'bin'}{os.pathsep}{environment['PATH']}"
        command = [sys.executable, "-m", "snakemake", *arguments]
        return subprocess.run(
            command, cwd=self.root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, *arguments: str) -> str:
        """Run all that is due; what Snakemake says."""
        done = self.snakemake(*arguments, "--cores", "2", "--quiet", "rules")
        assert done.returncode == 0, done.stdout
        return done.stdout

    def due(self, *arguments: str) -> dict[str, int]:
        """What would run: rule -> number of jobs, without `all`."""
        done = self.snakemake(*arguments, "--dry-run", "--quiet", "rules")
        assert done.returncode == 0, done.stdout
        return job_stats(done.stdout)

    def commands(self, *arguments: str) -> list[str]:
        """The commands of all stages that would run."""
        done = self.snakemake(*arguments, "--dry-run", "--printshellcmds")
        assert done.returncode == 0, done.stdout
        return re.findall(r"^Shell command: ((?:exec )?python .*)$", done.stdout, flags=re.MULTILINE)


def job_stats(text: str) -> dict[str, int]:
    """Rule -> number of jobs from the table of a dry run, without `all`; empty where there is nothing to do."""
    _, found, table = text.partition("Job stats:")
    if not found:
        assert "Nothing to be done" in text, text
        return {}
    rows = re.findall(r"^(\w+) +(\d+)$", table.partition("total")[0], flags=re.MULTILINE)
    return {rule: int(count) for rule, count in rows if rule != "all"}


def tiny_config() -> dict[str, Any]:
    """Two bases, two tasks on two corpora, methods that share a factorisation, and one that calibrates."""
    pretrain = {"corpus": "babel", "train": "pretrain", "dev": "dev", "epochs": 2}
    factorise = {"layers": "ffn", "reduction": 0.2}
    splits = {"pretrain": ["m1"], "train": ["m2"], "dev": ["m8"], "test": ["m7"]}
    return {
        "experiment": "tiny",
        "output": "exp/tiny",
        "seed": 1,
        "corpora": {
            "babel": {
                "kind": "espeak",
                "languages": ["de", "en"],
                "splits": {name: {"utterances": 2, "voices": voices} for name, voices in splits.items()},
            },
            "ocean": {
                "kind": "kaldi",
                "language": "en",
                "splits": {
                    "train": {"source": "train", "part": [0, 0.9]},
                    "dev": {"source": "train", "part": [0.9, 1]},
                    "test": {"source": "dev"},
                },
            },
        },
        "langs": {
            "chars": {"kind": "char", "corpora": ["babel"], "splits": ["pretrain"]},
            "pieces": {"kind": "sentencepiece", "corpora": ["babel"], "splits": ["pretrain"], "vocab_size": 60},
        },
        "bases": {
            "wav2vec2": {
                "family": "wav2vec2",
                "source": "scratch",
                "lang": "chars",
                "features": "waveform",
                "pretrain": dict(pretrain),
            },
            "whisper": {
                "family": "whisper",
                "source": "scratch",
                "lang": "pieces",
                "features": "logmel",
                "pretrain": dict(pretrain),
            },
        },
        "tasks": {
            "asr": {"type": "asr", "corpus": "ocean", "train": "train", "dev": "dev", "test": "test"},
            "lid": {"type": "lid", "corpus": "babel", "train": "train", "dev": "dev", "test": "test"},
        },
        "methods": {
            "full": {"adapt": "full"},
            "lowrank": {"adapt": "full", "factorise": dict(factorise), "constraint": {"mode": "floating"}},
            "lowrank_lora": {"adapt": "lora", "factorise": dict(factorise), "lora": {"rank": 2}},
            "aware": {"adapt": "full", "factorise": {**factorise, "init": "activation"}},
        },
        "systems": {
            "bases": ["wav2vec2", "whisper"],
            "tasks": ["asr", "lid"],
            "methods": ["full", "lowrank", "lowrank_lora", "aware"],
        },
        "calibrate": {"corpus": "babel", "split": "train", "utterances": 4},
        "training": {"epochs": 1, "lr": 0.001},
        "decode": {"batch_seconds": 30},
        "score": {"bootstrap": 50},
        "report": {"dpi": 100},
    }


def manifest(path: Path) -> dict[str, Any]:
    """A stub's manifest."""
    return json.loads(path.read_text(encoding="utf-8"))
