"""Training states on disk: written beside the target and renamed, checked when they are read; the last two are kept.

    folder/state-<step>-<first 16 digits of the file's sha256>.pt

The checksum is part of the name, so that state and checksum appear in one rename. A process that is killed at any point
leaves whole states, and a temporary file that the next save overwrites. One process at a time writes to a folder.
"""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

from lowrank_speech.artefact import sha256
from lowrank_speech.errors import UserError

log = logging.getLogger(__name__)

NAME = re.compile(r"state-(\d+)-([0-9a-f]{16})\.pt")
TEMPORARY = ".state.tmp"


class Checkpoints:
    """The states in ``folder``; a save removes all but the newest ``keep``."""

    def __init__(self, folder: Path, keep: int = 2):
        self.folder, self.keep = folder, keep

    def files(self) -> list[Path]:
        """The states, newest first: by step, and those of the same step by time."""
        if not self.folder.is_dir():
            return []
        found = [(NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        steps = [(int(match[1]), path.stat().st_mtime_ns, path) for match, path in found if match]
        return [path for *_, path in sorted(steps, reverse=True)]

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``state`` (of types that ``weights_only`` allows). UserError where the disk refuses it."""
        temporary = self.folder / TEMPORARY
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            digest = _write(temporary, state)
            path = self.folder / f"state-{step}-{digest[:16]}.pt"
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(
                f"the training state of step {step} cannot be saved in {self.folder}: {error.strerror or error}; make "
                f"room there and run again: it continues from {_name(self.files())}"
            ) from error
        for old in [p for p in self.files() if p != path][self.keep - 1 :]:
            old.unlink()
        return path

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest state that is not broken, and its path, or None. Names and removes broken ones."""
        broken = False
        for path in self.files():
            expected, digest = NAME.fullmatch(path.name)[2], sha256(path)
            if digest.startswith(expected):
                if broken:
                    log.warning("going back to the state before it, %s", path)
                return path, torch.load(path, map_location="cpu", weights_only=True)
            broken = True
            log.warning(
                "%s is broken and is removed: its checksum is %s, not %s (%d bytes)",
                path,
                digest[:16],
                expected,
                path.stat().st_size,
            )
            path.unlink()
        if broken:
            log.warning("%s has no whole state left: the training starts again", self.folder)
        return None


class _Hashed:
    """A binary file that hashes what is written to it, in the order of writing, and keeps its first error."""

    def __init__(self, file: BinaryIO):
        self.file, self.hash = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        left = memoryview(data).cast("B")
        try:
            while len(left):  # a file without a buffer may take a part only, and torch does not check how much
                left = left[self.file.write(left) :]
        except OSError as error:
            self.error = self.error or error
            raise
        self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _write(path: Path, state: dict[str, Any]) -> str:
    """Write ``state`` and wait for the disk; returns the hex sha256 of the file. OSError where it does not fit."""
    with path.open("wb", buffering=0) as file:
        hashed = _Hashed(file)
        try:
            torch.save(state, hashed)
        except RuntimeError:
            # Torch's writer hides the error of the file behind one about positions.
            if hashed.error is not None:
                raise hashed.error from None
            raise
        os.fsync(file.fileno())
    return hashed.hash.hexdigest()


def _name(files: list[Path]) -> str:
    return files[0].name if files else "the start"
