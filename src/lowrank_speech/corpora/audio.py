"""Check that an audio file is complete, and find its length: container, header and a full decode with soundfile.

libsndfile silently shortens a WAV file whose data end early and an Ogg stream that was cut off. It guesses the length
of an MP3 without a length tag, and reads only the first of two concatenated files. So the length in the header is never
trusted: it is compared with the result of decoding the whole file (``containers/``). A file that passes loads with
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
"""Frames to decode at a time. Bounds the memory for long recordings."""
LENGTHLESS = 1 << 60
"""libsndfile reports more frames than this if a FLAC header has no length. It cannot seek in these files."""
TOLERANCE = 0.1
"""Unexplained data after the samples is ignored if it is shorter than this many seconds of audio."""
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
"""Bits per sample."""
ABOUT = {"IMA_ADPCM": 4.0, "MS_ADPCM": 4.0, "G721_32": 4.0, "G723_24": 3.0, "G723_40": 5.0, "GSM610": 1.65}
"""Approximate bits per sample of codecs that code samples in blocks."""


@dataclass(frozen=True)
class Header:
    """Contents of a complete file. ``peak``: largest magnitude of a sample; NaN or infinite if any sample is."""

    rate: int
    frames: int
    channels: int
    peak: float

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.rate


def open_once(path: str) -> Header | AudioError:
    """Like ``check_file``, but return the error, and cache the result as long as the file does not change."""
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
    """Decode a whole file and return its properties.

    AudioError: the file is missing, unreadable, truncated or empty, or contains audio that loading would skip.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise AudioError("missing file", f"{path} does not exist")
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
        raise AudioError(TRUNCATED, f"{path}: the header declares {declared} samples, the file has {header.frames}")
    elif form == "FLAC":
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            flac.check(data, path, base)
    elif extent is not None and extent.end is not None:
        _compare(header, subtype, form, extent, path)
    if header.frames == 0:
        raise AudioError("zero length", f"{path} has no samples")
    return header


def _decode(source: Path | io.BytesIO, path: Path) -> tuple[str, str, int, Header]:
    """Container, codec, number of frames that libsndfile reads from the header, and the result of decoding."""
    decoded, peak = 0, 0.0
    try:
        with soundfile.SoundFile(source) as sound:
            rate, frames, channels = sound.samplerate, sound.frames, sound.channels
            if frames > LENGTHLESS:
                raise AudioError("unreadable audio", f"{path}: the header has no length; encode the file again")
            while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
                decoded += len(block)
                peak = float(np.maximum(peak, np.abs(block).max()))  # keeps NaN
            return sound.format, sound.subtype, frames, Header(rate, decoded, channels, peak)
    except soundfile.SoundFileError as error:
        raise AudioError("unreadable audio", f"{path}: {_line(error)} (after {decoded} samples)") from error
    except TypeError as error:  # soundfile raises it for names that end in .raw
        detail = f"{path}: files with this suffix have no header with the sampling rate; convert it to FLAC or WAV"
        raise AudioError("unreadable audio", detail) from error


def _compare(header: Header, subtype: str, form: str, extent: Extent, path: Path) -> None:
    """Compare the length in the header with the decoded samples and with the rest of the file."""
    held = extent.end - extent.start
    bits = None if form == "SDS" else BITS.get(subtype, ABOUT.get(subtype))  # SDS has packets
    decoded = held if bits is None else header.frames * header.channels * bits / 8
    slack = max(TOLERANCE * decoded / header.seconds if header.frames else 0, 1024)
    if extent.rest > slack:
        raise AudioError(
            MORE,
            f"{path}: the header declares {held} bytes of samples, but {extent.rest} more bytes follow (a second "
            f"recording, or a header that was never completed); convert or split the file",
        )
    if subtype in ABOUT:
        slack += 0.1 * held
    if decoded > held + slack:
        raise AudioError(
            MORE, f"{path}: the header declares {held} bytes of samples, {decoded:.0f} would be read; convert the file"
        )
    if decoded < held - slack:
        raise AudioError(TRUNCATED, f"{path}: the header declares {held} bytes of samples, {decoded:.0f} can be read")


def _ogg(path: Path) -> Header:
    """Compare the length in the last page with a decode that continues to the real end."""
    data = path.read_bytes()
    found = ogg.pages(data, path)
    serials = {page.serial for page in found}
    if len(serials) > 1:  # for example a video, whose streams end separately
        _, _, declared, header = _decode(path, path)
        allowed = 0
    else:
        # The length in the last page cuts off the encoder's padding, which is at most one block.
        source = path if ogg.short_opus(data, found) else io.BytesIO(ogg.without_length(data, found))
        _, _, _, header = _decode(source, path)
        declared = _declared(path)
        allowed = ogg.trimmed(data, found, header.rate)
    if header.frames < declared:
        raise AudioError(TRUNCATED, f"{path}: the header declares {declared} samples, the file has {header.frames}")
    if header.frames > declared + allowed:
        raise AudioError(
            MORE, f"{path}: the last page declares {declared} samples, the file has {header.frames}; encode it again"
        )
    if declared == 0:
        raise AudioError("zero length", f"{path} has no samples")
    return Header(header.rate, declared, header.channels, header.peak)


def _declared(path: Path) -> int:
    try:
        return soundfile.info(path).frames
    except soundfile.SoundFileError as error:
        raise AudioError("unreadable audio", f"{path}: {_line(error)}") from error


def _check_frames(data: mmap.mmap, header: Header, path: Path, start: int, end: int | None) -> None:
    """Compare the number of MPEG frames with the decoded samples, because an MPEG stream has no reliable length."""
    stream = mpeg.count(data, path, start, end)
    if stream is None:
        detail = f"{path}: the frames of this MPEG stream cannot be counted; convert it to FLAC or WAV"
        raise AudioError("unreadable audio", detail)
    mpeg.check(stream, header.frames, header.rate, path)


def check_samples(samples: np.ndarray, what: str) -> None:
    """AudioError if ``samples`` (C, T) are empty, not finite, or all zero. ``what`` names them in the message."""
    if samples.size == 0:
        raise AudioError("zero length", f"{what} has no samples")
    peak = float(np.abs(samples).max())
    if not np.isfinite(peak):
        count = int((~np.isfinite(samples)).sum())
        raise AudioError("samples not finite", f"{what}: {count} of {samples.size} samples are NaN or infinite")
    if peak == 0:
        raise AudioError("silent", f"{what}: all {samples.size} samples are zero")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
