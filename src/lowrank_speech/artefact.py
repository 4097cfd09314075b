"""Artefacts: atomic writes, hashes and the two JSON files that every stage leaves.

A stage writes each output beside its target and renames it, so that a killed stage leaves no half file that looks
whole. It ends by writing

    <stage>.cost.json   what the run cost: time, memory, host, versions. Nothing compares it
    <stage>.json        the manifest, what was made: outputs with size and sha256, metrics, the settings with
                        their defaults (cfg) and the hash of those that were given (cfg_sha256), seed, device, hash of
                        the code, hashes of the files from outside that were read. Equal runs write equal bytes

Rules downstream take the manifest as input (small, compared by content) and large weights as ``ancient()``.

Standard library only; imported by everyone, imports no part of the package.
"""

import contextlib
import csv
import glob
import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

VERSIONED = ("torch", "transformers", "peft", "lhotse", "sentencepiece", "kaldialign", "k2", "numpy", "lowrank-speech")


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is renamed to ``path``, on failure removed.

    Works for a file and for a folder (the body decides which of the two it makes). A folder replaces the one that
    was there. The parent folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffixes stay at the end: soundfile, safetensors and gzip openers look at them.
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}")
    # What killed runs left: one process at a time makes an artefact.
    for left in path.parent.glob(f".*.tmp.{glob.escape(path.name)}"):
        _remove(left)
    try:
        yield temporary
        if temporary.is_dir():
            _remove(path)
        temporary.replace(path)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def gzipped(path: str | Path) -> Iterator[BinaryIO]:
    """Yield a binary file whose content is compressed into ``path`` (.gz), atomically; equal content, equal bytes."""
    with (
        atomic(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed,  # no name, no time in the header
    ):
        yield packed


def canonical_json(value: Any) -> str:
    """Sorted keys, no white space: equal settings give equal strings whatever the order in the YAML."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Hex sha256 of ``canonical_json(value)``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. NaN and infinity are refused: they are no JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_table(path: str | Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> int:
    """Write a tab-separated table with a header line, atomically; returns the number of rows.

    Tabs and line ends inside a value would break the table: they are replaced by spaces.
    """
    count = 0
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow(list(header))
        for row in rows:
            writer.writerow([" ".join(str(value).split()) if isinstance(value, str) else value for value in row])
            count += 1
    return count


def sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes, or of a folder: names and hashes of the files in it, in sorted order."""
    path = Path(path)
    if path.is_dir():
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        lines = "".join(f"{sha256(path / name)}  {name}\n" for name in names)
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # ru_maxrss starts at what the parent had when it forked.
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Manifest:
    """Collects what a stage has to say about its run, and writes it last.

    >>> manifest = Manifest("score", cfg={"bootstrap": 1000}, seed=1)  # at the start: the clock runs
    >>> manifest.write("score.json", outputs=["hyp.txt"], metrics={"wer": 0.1}, cost={"rtf": 0.01})
    """

    def __init__(
        self,
        stage: str,
        cfg: Mapping[str, Any],
        seed: int | None = None,
        device: str = "cpu",
        code: str | None = None,
        given: Mapping[str, Any] | None = None,
    ):
        """``cfg``: the settings with every default; ``given``: as the stage was given them, default: the same."""
        self.stage, self.cfg, self.seed, self.device, self.code = stage, dict(cfg), seed, device, code
        self.cfg_sha256 = digest(cfg if given is None else given)
        self._start = time.monotonic()

    def write(
        self,
        path: str | Path,
        outputs: Iterable[str | Path],
        metrics: Mapping[str, Any] | None = None,
        cost: Mapping[str, Any] | None = None,
        sources: Mapping[str, str | Path] | None = None,
        peak_bytes: int | None = None,
    ) -> dict[str, Any]:
        """Write the manifest to ``path``, the cost beside it, and return the manifest.

        ``outputs`` are files or folders; each file stands in the manifest relative to its own folder. ``metrics`` is
        whatever the stage measured that equal runs measure alike, ``cost`` what they do not (both JSON values).
        ``sources``: name -> file from outside the experiment that was read; a later run compares these. ``peak_bytes``
        replaces the process's peak memory (by CUDA's own figure, say).
        """
        base = Path(path).resolve().parent
        files = [file for output in outputs for file in _files(Path(output))]
        record = {
            "stage": self.stage,
            "outputs": {os.path.relpath(file.resolve(), base): _described(file) for file in files},
            "metrics": dict(metrics or {}),
            "cfg": self.cfg,
            "cfg_sha256": self.cfg_sha256,
            "seed": self.seed,
            "device": self.device,
            "code": self.code,
            "sources": {name: sha256(file) for name, file in sorted((sources or {}).items())},
        }
        spent = {
            "stage": self.stage,
            "seconds": round(time.monotonic() - self._start, 3),
            "peak_bytes": peak_memory() if peak_bytes is None else peak_bytes,
            **(cost or {}),
            "host": platform.node(),
            "versions": versions(),
            "sources": {name: file_state(file) for name, file in sorted((sources or {}).items())},
        }
        write_json(cost_path(path), spent)
        write_json(path, record)
        return record


def cost_path(manifest: str | Path) -> Path:
    """The file of what a run cost, beside its manifest: ``train.json`` -> ``train.cost.json``."""
    path = Path(manifest)
    return path.with_name(f"{path.name.removesuffix('.json')}.cost.json")


def file_state(path: str | Path) -> list[int]:
    """Size in bytes and modification time in nanoseconds: equal, and the content is taken to be equal."""
    found = Path(path).stat()
    return [found.st_size, found.st_mtime_ns]


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _described(file: Path) -> dict[str, Any]:
    return {"sha256": sha256(file), "bytes": file.stat().st_size}


def read_manifest(path: str | Path, stage: str | None = None) -> dict[str, Any]:
    """Read a manifest; ``stage`` (if given) must be the one that wrote it, else ValueError."""
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    if stage is not None and record.get("stage") != stage:
        raise ValueError(f"{path} is a manifest of the stage {record.get('stage')!r}; expected one of {stage!r}")
    return record


def read_cost(manifest: str | Path) -> dict[str, Any]:
    """What the run cost that wrote ``manifest``; empty where the file is gone."""
    path = cost_path(manifest)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
