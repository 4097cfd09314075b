"""What all corpus readers share: the items they yield, settings, finding the data folder, reading text files.

A corpus is one module with a settings class ``Config`` and these functions::

    locate(config, data_root)                        -> Path | None: its folder; None: the reader synthesises
    sources(config, root)                            -> the files that a person edits and the reader reads, as paths;
                                                        also those that do not exist and would be read if they did
    read(config, split, root, audio_dir, seed, jobs) -> iterator of the items of one split, in a deterministic order
    listed(config, root)                             -> only if needed: folders whose files all belong to the corpus

An item is a Lhotse cut that the reader has made; or an ``Utterance``, a row of a corpus whose audio nobody has opened
yet (validate.py does, in parallel, and makes the cut); or a ``SetAside``, what the reader itself could not take.

Imported by the readers and by validate.py; imports nothing heavy.
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
"""Hz; every cut of every corpus loads at this rate (lazily resampled where the source differs)."""

Track = Literal["auto", "stat", "hash", "none"]
"""How the audio of a corpus is watched for changes; see ``tracking.py``."""

TRACK = "how changed audio is noticed: auto, stat, hash or none (docs/your-data.md)"


@settings
class Checks:
    """Which audio is taken; the rest is set aside."""

    min_seconds: NotNegative = key(0.1, "shortest utterance that is taken, seconds")
    max_seconds: Positive = key(60.0, "longest utterance that is taken, seconds")
    channel: Annotated[int, Field(ge=0, le=1000)] | None = key(
        None, "channel to take of recordings with several, counted from 0; null: these are set aside"
    )
    sampling_rate: Count | None = key(
        None, "rate in Hz that all files must have; null: any, resampled to 16 kHz as it is loaded"
    )

    def __post_init__(self) -> None:
        if self.min_seconds >= self.max_seconds:
            raise ValueError(
                f"min_seconds is {self.min_seconds:g}, max_seconds {self.max_seconds:g}; min_seconds must be the lower"
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
    """Where the utterance ends within the recording; None: at its end."""
    seconds: float | None = None
    """The duration that the corpus declares, if it does."""
    recording_id: str | None = None
    """None: the utterance's own id (one utterance a recording)."""
    where: str = ""
    """File and line it was read from, for messages."""

    @property
    def place(self) -> str:
        """Line and audio file, for messages."""
        return f"{self.where} ({self.audio})" if self.where else self.audio


@dataclass(frozen=True)
class SetAside:
    """What was not taken, and why. ``reason`` is one of few fixed phrases, ``detail`` names file and value."""

    id: str
    reason: str
    detail: str


def find_folder(
    kind: str, path: str | None, data_root: Path | None, folder: str, holds: str, files: Iterable[str] = ()
) -> Path:
    """The absolute folder of a corpus: its ``path`` key, else ``folder`` below ``data_root`` ($SPEECH_DATA).

    ``holds`` says in words what it must hold, ``files`` names some of that, relative to it. UserError where it or one
    of these is absent: what was looked for, how to set it.
    """
    how = "set the corpus's key `path`, or the environment variable SPEECH_DATA to the folder above it"
    if path is None and data_root is None:
        raise UserError(f"corpus of kind {kind}: no data folder: SPEECH_DATA is not set; {how}. It must hold {holds}")
    found = Path(path).expanduser() if path is not None else Path(data_root) / folder
    if not found.is_dir():
        raise UserError(f"corpus of kind {kind}: there is no folder {found}; {how}. It must hold {holds}")
    # Absolute, links kept: cuts are read from other working directories, and a link may be how the data is mounted.
    root = Path(os.path.normpath(found.absolute()))
    for file in files:
        if not (root / file).is_file():
            like = ", ".join(sorted(path.name for path in root.glob(f"{glob.escape(file)}*")))
            has = f" (but there is {like})" if like else ""
            raise UserError(f"corpus of kind {kind}: there is no {root / file}{has}; {root} must hold {holds}")
    return root


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-blank lines of a UTF-8 file with their numbers (from 1), without line ends; UserError if not readable."""
    try:
        # Not splitlines(): a transcript may hold U+2028 or a form feed. A byte order mark would stick to the first key.
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.removesuffix("\n")
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {_broken_at(path)}; convert it, say with iconv") from error


def _broken_at(path: Path) -> int:
    """The first byte that is not UTF-8; the reader of lines counts from the start of its buffer."""
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return 0


def clean_text(text: str | None) -> str | None:
    """A transcript without outer white space; None where it is empty."""
    return (text or "").strip() or None


def refuse_twice(path: Path, what: str, lines: tuple[int, int], values: tuple[object, object]) -> None:
    """UserError for ``what``, a key that stands in two lines of a table with different values: which one is right?"""
    raise UserError(
        f"{path} lines {lines[0]} and {lines[1]}: {what} stands twice, with {_short(values[0])} and with "
        f"{_short(values[1])}; remove one of the lines, or rename one"
    )


def _short(value: object) -> str:
    text = (" ".join(map(str, value)) if isinstance(value, tuple) else str(value)).strip()
    return repr(text if len(text) <= 200 else f"{text[:197]}...")
