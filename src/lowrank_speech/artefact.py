"""Artefacts: atomic writes, hashes, and the two JSON files that every stage writes.

A stage writes each output beside its target and renames it, so that a killed stage never leaves a truncated file that
looks complete. At its end, it writes

    <stage>.cost.json   the cost of the run: time, memory, host, versions. It is never compared
    <stage>.json        the manifest of what was made: outputs with size and sha256, metrics, the settings with their
                        defaults (cfg), the hash of the given settings (cfg_sha256), seed, device, hash of the code,
                        hashes of the external files that were read. Equal runs write equal bytes

Downstream rules take the manifest as input (small, compared by content) and large weights as ``ancient()``.

Imports only the standard library, and nothing from this package, because every module may import it.
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
    """Yield a temporary path beside ``path``. On success it is renamed to ``path``, on failure it is removed.

    The body may create a file or a folder there. A folder replaces an existing one. The parent folder is created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keep the suffixes at the end, because soundfile, safetensors and gzip openers look at them.
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}")
    # Remove what killed runs left; only one process at a time makes an artefact.
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
    """Yield a binary file that compresses into ``path`` (.gz), atomically; equal content gives equal bytes."""
    with (
        atomic(path) as temporary,
        temporary.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed,  # no name, no time in the header
    ):
        yield packed


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no white space: equal settings give equal strings, whatever their order in YAML."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Hex sha256 of ``canonical_json(value)``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. Raises ValueError for NaN and infinity, which are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_table(path: str | Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> int:
    """Write a tab-separated table with a header line, atomically; returns the number of rows.

    Tabs and line breaks inside values are replaced by spaces, because they would break the table.
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
    """Hex sha256 of a file's bytes, or for a folder, of the sorted names and hashes of its files."""
    path = Path(path)
    if path.is_dir():
        names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        lines = "".join(f"{sha256(path / name)}  {name}\n" for name in names)
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that affect results."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # ru_maxrss starts at the parent's value at the time of the fork.
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Manifest:
    """Collects what a stage records about its run; written last.

    >>> manifest = Manifest("score", cfg={"bootstrap": 1000}, seed=1)  # at the start, because it starts the clock
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
        """``cfg``: the settings with all defaults; ``given``: the settings as given to the stage (default: ``cfg``)."""
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
        """Write the manifest to ``path`` and the cost beside it; returns the manifest.

        ``outputs`` are files or folders; the manifest lists each file relative to its own folder. ``metrics`` are
        measurements that are the same in equal runs, ``cost`` those that are not (both JSON values). ``sources``: name
        -> file outside the experiment that was read; a later run compares these. ``peak_bytes`` replaces the process's
        peak memory, for example by CUDA's.
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
    """The file with the cost of a run, beside its manifest: ``train.json`` -> ``train.cost.json``."""
    path = Path(manifest)
    return path.with_name(f"{path.name.removesuffix('.json')}.cost.json")


def file_state(path: str | Path) -> list[int]:
    """Size in bytes and modification time in nanoseconds; if they are equal, the content is assumed to be equal."""
    found = Path(path).stat()
    return [found.st_size, found.st_mtime_ns]


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _described(file: Path) -> dict[str, Any]:
    return {"sha256": sha256(file), "bytes": file.stat().st_size}


def read_manifest(path: str | Path, stage: str | None = None) -> dict[str, Any]:
    """Read a manifest. Raises ValueError if ``stage`` is given and another stage wrote the manifest."""
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    if stage is not None and record.get("stage") != stage:
        raise ValueError(f"{path} is a manifest of the stage {record.get('stage')!r}; expected the stage {stage!r}")
    return record


def read_cost(manifest: str | Path) -> dict[str, Any]:
    """The cost of the run that wrote ``manifest``; empty if the file does not exist."""
    path = cost_path(manifest)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
