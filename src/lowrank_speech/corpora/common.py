"""What all corpus readers share: the items they yield, finding the data folder, reading text files.

A corpus is one module with a frozen dataclass ``Config`` and two functions::

    locate(config, data_root)                      -> Path | None: its folder; None where nothing is read from disk
    read(config, root, audio_dir, seed, jobs)      -> iterator of (split, item), in a deterministic order

An item is a Lhotse cut that the reader has made; or an ``Utterance``, a row of a corpus whose audio nobody has looked
at yet (validate.py does, in parallel, and makes the cut); or a ``SetAside``, what the reader itself could not take.

Imported by the readers and by validate.py; imports nothing heavy.
"""

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lowrank_speech.errors import UserError

SAMPLING_RATE = 16_000
"""Hz; every cut of every corpus loads at this rate (lazily resampled where the source differs)."""


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


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Non-blank lines of a UTF-8 file with their numbers (from 1), without line ends; UserError if not readable."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark would stick to the first key
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it, say with iconv") from error
    # Not splitlines(): a transcript may hold U+2028 or a form feed.
    lines = enumerate(text.replace("\r\n", "\n").split("\n"), start=1)
    return [(number, line) for number, line in lines if line.strip()]


def clean_text(text: str | None) -> str | None:
    """A transcript without outer white space; None where it is empty."""
    return (text or "").strip() or None
