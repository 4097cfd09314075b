"""Shared by all corpus readers: the items they yield, common settings, locating the data folder, reading text files.

A corpus is one module with a settings class ``Config`` and these functions::

    locate(config, data_root)                        -> Path | None: the corpus folder; None if speech is synthesised
    sources(config, root)                            -> paths of the files that people edit and the reader reads,
                                                        including optional ones that do not exist yet
    read(config, split, root, audio_dir, seed, jobs) -> iterator over the items of one split, in a deterministic order
    listed(config, root)                             -> optional: folders in which every file belongs to the corpus

An item is one of three things: a Lhotse cut that the reader made; an ``Utterance``, a row whose audio has not been
opened yet (validate.py opens the audio in parallel and makes the cut); or a ``SetAside``, a row that the reader
rejects.

The readers and validate.py import this module, so it must not import anything heavy.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lowrank_speech.errors import UserError
from lowrank_speech.settings import Count, NotNegative, Positive, key, settings

SAMPLING_RATE = 16_000
"""Hz. Every cut loads at this rate; other rates are resampled on loading."""

Track = Literal["auto", "stat", "hash", "none"]
"""How changes to a corpus's audio are detected; see ``tracking.py``."""

TRACK = "how changed audio is detected: auto, stat, hash or none (docs/your-data.md)"


@settings
class Checks:
    """Which audio is accepted; the rest is set aside."""

    min_seconds: NotNegative = key(0.1, "shortest utterance to accept, in seconds")
    max_seconds: Positive = key(60.0, "longest utterance to accept, in seconds")
    channel: Annotated[int, Field(ge=0, le=1000)] | None = key(
        None, "which channel of a multi-channel recording to use, from 0; null: set these recordings aside"
    )
    sampling_rate: Count | None = key(
        None, "sampling rate that all files must have, in Hz; null: any rate (audio is resampled to 16 kHz on loading)"
    )

    def __post_init__(self) -> None:
        if self.min_seconds >= self.max_seconds:
            raise ValueError(
                f"min_seconds is {self.min_seconds:g} and max_seconds is {self.max_seconds:g}; min_seconds must be the "
                f"lower of the two"
            )


@dataclass(frozen=True)
class Utterance:
    """One row of a corpus, before its audio has been opened. Times in seconds."""

    id: str
    audio: str
    """Path of the recording."""
    language: str | None
    speaker: str | None
    text: str | None = None
    gender: str | None = None
    start: float = 0.0
    end: float | None = None
    """Where the utterance ends within the recording; None: at the end of the recording."""
    seconds: float | None = None
    """The duration that the corpus declares, if any."""
    recording_id: str | None = None
    """None: same as the utterance's id (one utterance per recording)."""
    where: str = ""
    """File and line of the row, for messages."""

    @property
    def place(self) -> str:
        """The row and its audio file, for messages."""
        return f"{self.where} ({self.audio})" if self.where else self.audio


@dataclass(frozen=True)
class SetAside:
    """An item that was rejected. ``reason`` is one of a few fixed phrases; ``detail`` names the file and the value."""

    id: str
    reason: str
    detail: str


def find_folder(
    kind: str, path: str | None, data_root: Path | None, folder: str, holds: str, files: Iterable[str] = ()
) -> Path:
    """Return the absolute folder of a corpus: its key ``path``, or else ``folder`` below ``data_root`` ($SPEECH_DATA).

    ``holds`` describes in words what the folder must contain; ``files`` lists required files, relative to it.
    UserError: the folder or a required file does not exist; the message says how to set the path.
    """
    how = "set the corpus's key `path`, or the environment variable SPEECH_DATA to the folder above it"
    if path is None and data_root is None:
        raise UserError(f"corpus of kind {kind}: SPEECH_DATA is not set; {how}. The folder must contain {holds}")
    found = Path(path).expanduser() if path is not None else Path(data_root) / folder
    if not found.is_dir():
        raise UserError(
            f"corpus of kind {kind}: the folder {found} does not exist; {how}. The folder must contain {holds}"
        )
    # Absolute, because cuts are read from other working directories. Links stay, because data may be mounted by a link.
    root = Path(os.path.normpath(found.absolute()))
    for file in files:
        if not (root / file).is_file():
            like = ", ".join(sorted(path.name for path in root.glob(f"{glob.escape(file)}*")))
            has = f" (found {like})" if like else ""
            raise UserError(f"corpus of kind {kind}: {root / file} does not exist{has}; {root} must contain {holds}")
    return root


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of each non-blank line of a UTF-8 file. UserError: the file cannot be read."""
    try:
        # Not splitlines(), because a transcript may contain U+2028 or a form feed. utf-8-sig drops a byte order mark.
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.removesuffix("\n")
    except FileNotFoundError as error:
        raise UserError(f"{path}: the file does not exist") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: byte {_broken_at(path)} is not UTF-8; convert the file, for example with iconv"
        ) from error


def _broken_at(path: Path) -> int:
    """Offset of the first byte that is not UTF-8. (The exception of a line reader counts from its buffer's start.)"""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return 0


def clean_text(text: str | None) -> str | None:
    """Strip a transcript; None if nothing is left."""
    return (text or "").strip() or None


def refuse_twice(path: Path, what: str, lines: tuple[int, int], values: tuple[object, object]) -> None:
    """Raise UserError: the key ``what`` occurs in two lines of a table with different values."""
    raise UserError(
        f"{path} lines {lines[0]} and {lines[1]}: {what} occurs twice, with the values {_short(values[0])} and "
        f"{_short(values[1])}; remove or rename one of them"
    )


def _short(value: object) -> str:
    text = (" ".join(map(str, value)) if isinstance(value, tuple) else str(value)).strip()
    return repr(text if len(text) <= 200 else f"{text[:197]}...")
