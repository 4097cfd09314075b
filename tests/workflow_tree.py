"""A copy of the workflow with stub stages, in which the orchestration tests run Snakemake.

The copy has the real Snakefile, rules, schema and sources, so fingerprints are those of real code. Its `python` stands
in for each stage and writes the stage's output files with fixed bytes, and a realistic manifest and cost. runs.log
lists the manifests that it wrote.
"""

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
import hashlib, json, os, sys

assert sys.argv[1] == "-m", sys.argv
stage = sys.argv[2].rpartition(".")[2]
flags, name = {}, None
for word in sys.argv[3:]:
    if word.startswith("--"):
        name = word
        flags.setdefault(name, [])
    else:
        flags[name].append(word)
cfg = json.loads(flags["--cfg"][0])
json.loads(flags.get("--runtime", ["{}"])[0])
out = flags.get("--out", [""])[0]
manifest = flags["--manifest"][0]
for name in ("--cuts", "--train-cuts", "--dev-cuts", "--untranscribed-cuts", "--moments"):
    assert all(os.path.isfile(path) for path in flags.get(name, [])), (name, flags[name])
model = ["model.safetensors", "config.json"]
split = flags.get("--split", [""])[0]
assert flags["--code"], flags
files = {
    "corpus": lambda: [f"{split}.{end}" for end in ("jsonl.gz", "index.tsv", "set_aside.tsv")],
    "overlap": lambda: [],
    "lang": lambda: {"char": ["tokens.txt"], "sentencepiece": ["pieces.model"]}.get(cfg["lang"]["kind"], []),
    "lm": lambda: ["lm.arpa", "words.txt"],
    "base": lambda: [*model, "../metrics.jsonl"],
    "features": lambda: [] if cfg["kind"] == "waveform" else [out.removesuffix(".jsonl.gz") + ".h5"],
    "calibrate": lambda: [],
    "factorise": lambda: model,
    "train": lambda: [f"model/{file}" for file in model] + ["metrics.jsonl", "set_aside.tsv"],
    "emissions": lambda: ["emissions.h5"],
    "graph": lambda: [f"{cfg['graph'].upper()}.fst"],
    "tune": lambda: [],
    "decode": lambda: {"asr": ["hyp.txt", "ref.txt", "languages.tsv"], "lid": ["scores.tsv", "labels.tsv"]}[
        cfg["task"]["type"]
    ] + ["speakers.tsv", "set_aside.tsv"],
    "backend": lambda: ["dev.tsv"],
    "apply": lambda: ["scores.tsv", "labels.tsv"],
    "score": lambda: ["utterances.tsv"],
    "report": lambda: [
        *("results.csv", "comparisons.csv", "seeds.csv", "results.txt", "error.png", "cost.png", "curves.png"),
        "report.html",
    ],
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


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def state(path):
    return [os.stat(path).st_size, os.stat(path).st_mtime_ns]


# Files from outside: tables of a Kaldi corpus, files of a model folder, recordings of noise.
sources = {}
if stage == "corpus" and cfg["corpus"]["kind"] == "kaldi":
    source = cfg["corpus"]["splits"][split]["source"]
    folder = os.path.join(cfg["corpus"]["path"], source)
    tables = ("wav.scp", "segments", "text", "utt2spk", "utt2lang", "spk2gender", "reco2dur")
    sources = {f"{source}/{name}": os.path.join(folder, name) for name in tables}
    sources = {name: path for name, path in sources.items() if os.path.isfile(path)}
elif stage == "graph" and cfg["lexicon"]:
    sources = {"lexicon": cfg["lexicon"]}
elif stage == "base" and os.path.isdir(cfg["source"]):
    sources = {name: os.path.join(cfg["source"], name) for name in sorted(os.listdir(cfg["source"]))}
elif stage == "lm":
    sources = {f"text/{number}": path for number, path in enumerate(cfg["lm"]["text"])}
noise = cfg.get("training", cfg.get("pretrain", {})).get("noise")
if noise and noise["folder"]:
    sources = {"noise/" + name: os.path.join(noise["folder"], name) for name in sorted(os.listdir(noise["folder"]))}
if stage == "corpus":
    with open(os.path.join(out, f"{split}.audio.json"), "w") as file:
        json.dump({"track": "none", "root": ".", "count": 0, "folders": {}, "files": {}}, file)
folder = os.path.dirname(manifest)
made = {os.path.relpath(path, folder): {"sha256": sha256(path), "bytes": os.stat(path).st_size} for path in paths}
given = json.dumps(cfg, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
given = hashlib.sha256(given.encode()).hexdigest()
record = {"stage": stage, "cfg_sha256": given, "code": flags["--code"][0], "outputs": made, "metrics": {}}
record["cfg"] = cfg
record["sources"] = {name: sha256(path) for name, path in sources.items()}
with open(manifest.removesuffix(".json") + ".cost.json", "w") as file:
    json.dump({"seconds": len(os.urandom(1)), "sources": {name: state(path) for name, path in sources.items()}}, file)
with open(manifest, "w") as file:
    json.dump(record, file)
with open(os.path.join(os.path.dirname(sys.argv[0]), "runs.log"), "a") as file:
    file.write(manifest + "\\n")
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
        write_ocean(root)
        if config is not None:
            self.write(config)

    def write(self, config: dict[str, Any], name: str = "config.yaml") -> None:
        """Write ``config`` as YAML in the order of its keys."""
        (self.root / name).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")

    def snakemake(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run Snakemake in the copy; stdout has all that it says."""
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment["PATH"] = f"{self.root / 'bin'}{os.pathsep}{environment['PATH']}"
        environment["LOWRANK_SPEECH_BIN"] = str(self.root / "bin")
        command = [sys.executable, "-m", "snakemake", *arguments]
        return subprocess.run(
            command, cwd=self.root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, *arguments: str) -> str:
        """Run all that is due; what Snakemake says."""
        done = self.snakemake(*arguments, "--cores", "2", "--quiet", "rules")
        assert done.returncode == 0, done.stdout
        return done.stdout

    def made(self) -> list[str]:
        """The manifests that were written since the last call."""
        log = self.root / "runs.log"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        log.unlink(missing_ok=True)
        return sorted(lines)

    def due(self, *arguments: str) -> dict[str, int]:
        """What would run: rule -> number of jobs, without `all`."""
        done = self.snakemake(*arguments, "--dry-run", "--quiet", "rules")
        assert done.returncode == 0, done.stdout
        return job_stats(done.stdout)

    def commands(self, *arguments: str) -> list[str]:
        """The commands of all stages that would run."""
        return self.planned(*arguments)[1]

    def planned(self, *arguments: str) -> tuple[dict[str, int], list[str]]:
        """``due`` and ``commands`` of one dry run."""
        done = self.snakemake(*arguments, "--dry-run", "--printshellcmds")
        assert done.returncode == 0, done.stdout
        commands = re.findall(r"^Shell command: ((?:exec )?python .*)$", done.stdout, flags=re.MULTILINE)
        return job_stats(done.stdout), commands


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
                "path": "data/ocean",
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


def write_ocean(root: Path) -> None:
    """The tables of the Kaldi corpus that tiny_config names, below ``root``; no audio, which stubs do not open."""
    for source in ("train", "dev"):
        folder = root / "data" / "ocean" / source
        folder.mkdir(parents=True)
        (folder / "wav.scp").write_text(f"{source}1 audio/{source}1.wav\n", encoding="utf-8")
        (folder / "text").write_text(f"{source}1 hello there\n", encoding="utf-8")
        (folder / "utt2spk").write_text(f"{source}1 somebody\n", encoding="utf-8")
