"""Training states on disk: written atomically, verified when read; the last two are kept.

    folder/state-<step>-<first 16 digits of the file's sha256>.pt

The checksum is part of the name, so that one rename publishes both state and checksum. A process that is killed leaves
only complete states, and a temporary file that the next save overwrites. Only one process at a time may write to a
folder.
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
        """The states, newest first: by step, then by time."""
        if not self.folder.is_dir():
            return []
        found = [(NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        steps = [(int(match[1]), path.stat().st_mtime_ns, path) for match, path in found if match]
        return [path for *_, path in sorted(steps, reverse=True)]

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write ``state`` (of types that ``weights_only`` allows). Raises UserError if it cannot be written."""
        temporary = self.folder / TEMPORARY
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            digest = _write(temporary, state)
            path = self.folder / f"state-{step}-{digest[:16]}.pt"
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(
                f"the training state of step {step} cannot be saved in {self.folder}: {error.strerror or error}; free "
                f"some space there and run again, to continue from {_name(self.files())}"
            ) from error
        for old in [p for p in self.files() if p != path][self.keep - 1 :]:
            old.unlink()
        return path

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The path and content of the newest state that is not broken, or None. Reports and removes broken ones."""
        broken = False
        for path in self.files():
            expected, digest = NAME.fullmatch(path.name)[2], sha256(path)
            if digest.startswith(expected):
                if broken:
                    log.warning("going back to the previous state, %s", path)
                return path, torch.load(path, map_location="cpu", weights_only=True)
            broken = True
            log.warning(
                "removing %s, which is broken: its checksum is %s, not %s (%d bytes)",
                path,
                digest[:16],
                expected,
                path.stat().st_size,
            )
            path.unlink()
        if broken:
            log.warning("%s has no complete state left: the training starts again", self.folder)
        return None


class _Hashed:
    """A binary file that hashes what is written to it, in order, and keeps its first error."""

    def __init__(self, file: BinaryIO):
        self.file, self.hash = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        left = memoryview(data).cast("B")
        try:
            while len(left):  # an unbuffered write may be partial, and torch does not check that
                left = left[self.file.write(left) :]
        except OSError as error:
            self.error = self.error or error
            raise
        self.hash.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _write(path: Path, state: dict[str, Any]) -> str:
    """Write ``state`` and sync it to disk; returns the hex sha256 of the file. Raises OSError if the disk is full."""
    with path.open("wb", buffering=0) as file:
        hashed = _Hashed(file)
        try:
            torch.save(state, hashed)
        except RuntimeError:
            # Torch's writer hides the file's error behind one about positions.
            if hashed.error is not None:
                raise hashed.error from None
            raise
        os.fsync(file.fileno())
    return hashed.hash.hexdigest()


def _name(files: list[Path]) -> str:
    return files[0].name if files else "the start"
