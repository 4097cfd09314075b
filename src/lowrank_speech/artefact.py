"""Artefacts: atomic writes, hashes and the manifest that every stage leaves.

A stage writes each output beside its target and renames it, so that a killed stage leaves no half file
that looks whole, and ends by writing one small JSON file, its manifest, with the sha256 of its outputs,
its numbers, the resolved config, versions, seed, device, peak memory and wall time. Rules downstream take
the manifest as input (small, compared by content) and large weights as ``ancient()``.

Standard library only; imported by everyone, imports no part of the package.
"""

import contextlib
import csv
import glob
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
from typing import Any

VERSIONED = ("torch", "transformers", "peft", "lhotse", "sentencepiece", "kaldialign", "k2", "numpy")


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


def canonical_json(value: Any) -> str:
    """Sorted keys, no white space: equal settings give equal strings whatever the order in the YAML."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


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
    """Collects what a stage has to say of its run, and writes it last.

    >>> manifest = Manifest("score", cfg={"bootstrap": 1000}, seed=1)  # at the start: the clock runs
    >>> manifest.write("score.json", outputs=["hyp.txt"], numbers={"wer": 0.1})
    """

    def __init__(self, stage: str, cfg: Mapping[str, Any], seed: int | None = None, device: str = "cpu"):
        self.stage, self.cfg, self.seed, self.device = stage, dict(cfg), seed, device
        self._start = time.monotonic()

    def write(
        self,
        path: str | Path,
        outputs: Iterable[str | Path],
        numbers: Mapping[str, Any] | None = None,
        peak_bytes: int | None = None,
    ) -> dict[str, Any]:
        """Write the manifest to ``path`` and return it.

        ``outputs`` are files or folders; they stand in the manifest relative to its own folder. ``numbers`` is whatever
        the stage measured (JSON values). ``peak_bytes`` overrides the process's peak memory (CUDA's own figure, say).
        """
        base = Path(path).resolve().parent
        record = {
            "stage": self.stage,
            "outputs": {os.path.relpath(Path(p).resolve(), base): sha256(p) for p in outputs},
            "numbers": dict(numbers or {}),
            "cfg": self.cfg,
            "seed": self.seed,
            "device": self.device,
            "versions": versions(),
            "peak_bytes": peak_memory() if peak_bytes is None else peak_bytes,
            "seconds": round(time.monotonic() - self._start, 3),
        }
        write_json(path, record)
        return record


def read_manifest(path: str | Path, stage: str | None = None) -> dict[str, Any]:
    """Read a manifest; ``stage`` (if given) must be the one that wrote it, else ValueError."""
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    if stage is not None and record.get("stage") != stage:
        raise ValueError(f"{path} is a manifest of the stage {record.get('stage')!r}, not of {stage!r}")
    return record
