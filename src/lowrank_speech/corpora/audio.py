"""Is this audio file whole? Header, container and a full decode, with soundfile (libsndfile).

libsndfile takes a WAV file whose data end early, and an Ogg stream cut anywhere, for shorter files without a word; what
their containers promise is therefore compared here with what the file holds.

    >>> header = check_file("x.flac")  # or AudioError: reason and detail
Source: RIFF WAVE (Microsoft, IBM 1991); Ogg pages, RFC 3533.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

BLOCK = 1 << 20
"""Frames decoded at a time: bounds the memory for long recordings."""
STREAMED = 0x7FFFF000
"""A data size from here on in a WAV header was written by a program that could not seek: the length is not known."""
LENGTHLESS = 1 << 60
"""More frames than this is how libsndfile says that a FLAC header leaves them open: it cannot seek in such a file."""


class AudioError(Exception):
    """A file or its samples are no good: ``reason`` is one of few fixed phrases, ``detail`` names file and value."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Header:
    """What a whole file holds. ``peak`` is the largest magnitude of its samples; NaN or infinite if one of them is."""

    rate: int
    frames: int
    channels: int
    peak: float

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.rate


def check_file(path: str | Path) -> Header:
    """Decode a whole file and return what it holds; AudioError if it is missing, unreadable, truncated or empty."""
    path = Path(path)
    if not path.is_file():
        raise AudioError("missing file", f"{path} does not exist")
    try:
        size = path.stat().st_size
        if size == 0:
            raise AudioError("unreadable audio", f"{path} has 0 bytes")
        with path.open("rb") as file:
            _check_container(file, size, path)
        return _decode(path)
    except OSError as error:
        raise AudioError("unreadable audio", f"{path}: {error.strerror or error}") from error


def _decode(path: Path) -> Header:
    decoded, peak = 0, 0.0
    try:
        with soundfile.SoundFile(path) as sound:
            rate, frames, channels = sound.samplerate, sound.frames, sound.channels
            if frames > LENGTHLESS:
                raise AudioError("unreadable audio", f"{path}: the header does not say how long it is; encode it again")
            while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
                decoded += len(block)
                peak = float(np.maximum(peak, np.abs(block).max()))  # keeps NaN
    except soundfile.SoundFileError as error:
        raise AudioError("unreadable audio", f"{path}: {_line(error)} (after {decoded} samples)") from error
    if decoded < frames:
        raise AudioError("truncated audio", f"{path}: the header says {frames} samples, the file holds {decoded}")
    if decoded == 0:
        raise AudioError("zero length", f"{path} holds no samples")
    return Header(rate, decoded, channels, peak)


def _check_container(file, size: int, path: Path) -> None:
    magic = file.read(12)
    if magic[:4] == b"OggS":
        _check_ogg(file, size, path)
    elif magic[:4] == b"RIFF" and magic[8:12] == b"WAVE":
        _check_wav(file, size, path)


def _check_wav(file, size: int, path: Path) -> None:
    """The data chunk's size in the header against the bytes that the file has."""
    while len(head := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", head)
        if name == b"data":
            held = size - file.tell()
            if length < STREAMED and held < length:
                raise AudioError(
                    "truncated audio", f"{path}: the header says {length} bytes of samples, there are {held}"
                )
            return
        file.seek(length + length % 2, 1)  # chunks are padded to even length


def _check_ogg(file, size: int, path: Path) -> None:
    """The last page must be whole and marked as the end of its stream."""
    file.seek(max(0, size - (1 << 16)))  # a page has at most 65,307 bytes
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :] if b"OggS" in tail else b""
    if len(page) < 27 or len(page) < 27 + page[26]:
        raise AudioError("truncated audio", f"{path}: the Ogg stream breaks off within a page header")
    length = 27 + page[26] + sum(page[27 : 27 + page[26]])
    if len(page) < length:
        raise AudioError("truncated audio", f"{path}: the last Ogg page has {len(page)} of {length} bytes")
    if not page[5] & 4:
        raise AudioError("truncated audio", f"{path}: the Ogg stream has no end, it was cut between two pages")


def check_samples(samples: np.ndarray, what: str) -> None:
    """AudioError if ``samples`` (C, T) are none, not finite, or all zero. ``what`` names them in the message."""
    if samples.size == 0:
        raise AudioError("zero length", f"{what} holds no samples")
    peak = float(np.abs(samples).max())
    if not np.isfinite(peak):
        count = int((~np.isfinite(samples)).sum())
        raise AudioError("samples not finite", f"{what}: {count} of {samples.size} samples are NaN or infinite")
    if peak == 0:
        raise AudioError("silent", f"{what}: all {samples.size} samples are zero")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
