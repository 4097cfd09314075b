"""Is this audio file whole, and how long is it? Container, header and a full decode, with soundfile (libsndfile).

libsndfile takes a WAV file whose data end early, and an Ogg stream cut anywhere, for shorter files without a word; it
guesses the length of an MP3 without a tag, and of two files that were joined it reads one. So no header is believed:
what it declares is compared with what decoding to the end gives (``containers/``). A file that passes loads with
exactly the number of samples in its ``Header``.

    >>> header = check_file("x.flac")  # or AudioError: reason and detail
"""

import functools
import io
import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from lowrank_speech.corpora.containers import chunks, flac, flat, mpeg, ogg
from lowrank_speech.corpora.containers.extent import MORE, TRUNCATED, AudioError, Extent, id3_length

__all__ = ["AudioError", "Header", "check_file", "check_samples", "open_once"]

BLOCK = 1 << 20
"""Frames decoded at a time: bounds the memory for long recordings."""
LENGTHLESS = 1 << 60
"""More frames than this is how libsndfile says that a FLAC header leaves them open: it cannot seek in such a file."""
TOLERANCE = 0.1
"""Seconds of audio that may stand behind the samples without being metadata."""
BITS = {
    "PCM_S8": 8,
    "PCM_U8": 8,
    "PCM_16": 16,
    "PCM_24": 24,
    "PCM_32": 32,
    "FLOAT": 32,
    "DOUBLE": 64,
    "ULAW": 8,
    "ALAW": 8,
}
"""Bits of a sample."""
ABOUT = {"IMA_ADPCM": 4.0, "MS_ADPCM": 4.0, "G721_32": 4.0, "G723_24": 3.0, "G723_40": 5.0, "GSM610": 1.65}
"""The same where samples are coded in blocks."""


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


def open_once(path: str) -> Header | AudioError:
    """``check_file``, with its error returned; a file that has not changed is decoded once in the life of a process."""
    try:
        found = Path(path).stat()
        return _open(path, found.st_size, found.st_mtime_ns)
    except OSError:
        return _open.__wrapped__(path, 0, 0)


@functools.cache
def _open(path: str, size: int, time: int) -> Header | AudioError:
    try:
        return check_file(path)
    except AudioError as fault:
        return fault


def check_file(path: str | Path) -> Header:
    """Decode a whole file and return what it holds.

    AudioError if it is missing, unreadable, truncated or empty, or holds audio that loading it would not give.
    """
    path = Path(path)
    if not path.is_file():
        raise AudioError("missing file", f"{path} does not exist")
    try:
        size = path.stat().st_size
        if size == 0:
            raise AudioError("unreadable audio", f"{path} has 0 bytes")
        with path.open("rb") as file:
            return _check(file, size, path)
    except OSError as error:
        raise AudioError("unreadable audio", f"{path}: {error.strerror or error}") from error


def _check(file: BinaryIO, size: int, path: Path) -> Header:
    head = file.read(64)
    base = id3_length(head)
    if base:
        file.seek(base)
        head = file.read(64)
    if head[:4] == b"OggS":
        return _ogg(path)
    extent = chunks.extent(file, base, size, path)
    form, subtype, declared, header = _decode(path, path)
    if extent is None:
        extent = flat.extent(file, form, base, size, path)
    if subtype.startswith("MPEG_LAYER"):
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_frames(data, header, path, *((extent.start, extent.end) if extent else (base, None)))
    elif header.frames < declared:
        raise AudioError(TRUNCATED, f"{path}: the header says {declared} samples, the file holds {header.frames}")
    elif form == "FLAC":
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            flac.check(data, path, base)
    elif extent is not None and extent.end is not None:
        _compare(header, subtype, form, extent, path)
    if header.frames == 0:
        raise AudioError("zero length", f"{path} holds no samples")
    return header


def _decode(source: Path | io.BytesIO, path: Path) -> tuple[str, str, int, Header]:
    """Container, coding, the number of frames that libsndfile reads from the header, and what decoding gives."""
    decoded, peak = 0, 0.0
    try:
        with soundfile.SoundFile(source) as sound:
            rate, frames, channels = sound.samplerate, sound.frames, sound.channels
            if frames > LENGTHLESS:
                raise AudioError("unreadable audio", f"{path}: the header does not say how long it is; encode it again")
            while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
                decoded += len(block)
                peak = float(np.maximum(peak, np.abs(block).max()))  # keeps NaN
            return sound.format, sound.subtype, frames, Header(rate, decoded, channels, peak)
    except soundfile.SoundFileError as error:
        raise AudioError("unreadable audio", f"{path}: {_line(error)} (after {decoded} samples)") from error
    except TypeError as error:  # of soundfile itself, for a name that ends in .raw
        detail = f"{path}: a file with this ending has no header that says its rate; convert it to FLAC or WAV"
        raise AudioError("unreadable audio", detail) from error


def _compare(header: Header, subtype: str, form: str, extent: Extent, path: Path) -> None:
    """What the header declares against what was decoded, and against the rest of the file."""
    held = extent.end - extent.start
    bits = None if form == "SDS" else BITS.get(subtype, ABOUT.get(subtype))  # SDS has packets
    decoded = held if bits is None else header.frames * header.channels * bits / 8
    slack = max(TOLERANCE * decoded / header.seconds if header.frames else 0, 1024)
    if extent.rest > slack:
        raise AudioError(
            MORE,
            f"{path}: the header says {held} bytes of samples, {extent.rest} bytes follow that are not metadata (a "
            f"second recording, or a header that was never completed?); convert or split the file",
        )
    if subtype in ABOUT:
        slack += 0.1 * held
    if decoded > held + slack:
        raise AudioError(
            MORE, f"{path}: the header says {held} bytes of samples, {decoded:.0f} would be read; convert the file"
        )
    if decoded < held - slack:
        raise AudioError(TRUNCATED, f"{path}: the header says {held} bytes of samples, {decoded:.0f} can be read")


def _ogg(path: Path) -> Header:
    """The length of the last page against a decode that goes on to the real end."""
    data = path.read_bytes()
    found = ogg.pages(data, path)
    serials = {page.serial for page in found}
    if len(serials) > 1:  # a video, say: its parts end in their own ways
        _, _, declared, header = _decode(path, path)
        allowed = 0
    else:
        # Of what a decoder gives, the last page's number cuts off what the encoder added: at most a block.
        _, _, _, header = _decode(io.BytesIO(ogg.opened(data, found)), path)
        declared = _declared(path)
        allowed = ogg.trimmed(data, found, header.rate)
    if header.frames < declared:
        raise AudioError(TRUNCATED, f"{path}: the header says {declared} samples, the file holds {header.frames}")
    if header.frames > declared + allowed:
        raise AudioError(
            MORE, f"{path}: the last page says {declared} samples, the file holds {header.frames}; encode it again"
        )
    if declared == 0:
        raise AudioError("zero length", f"{path} holds no samples")
    return Header(header.rate, declared, header.channels, header.peak)


def _declared(path: Path) -> int:
    try:
        return soundfile.info(path).frames
    except soundfile.SoundFileError as error:
        raise AudioError("unreadable audio", f"{path}: {_line(error)}") from error


def _check_frames(data: mmap.mmap, header: Header, path: Path, start: int, end: int | None) -> None:
    """The number of frames against what was decoded: an MPEG stream has no header to be believed."""
    stream = mpeg.count(data, path, start, end)
    if stream is None:
        detail = f"{path}: the frames of this MPEG stream cannot be counted; convert it to FLAC or WAV"
        raise AudioError("unreadable audio", detail)
    mpeg.check(stream, header.frames, header.rate, path)


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
