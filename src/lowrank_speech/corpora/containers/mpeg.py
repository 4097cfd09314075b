"""MPEG audio (MP3 and its older layers): count the samples of a stream frame by frame.

A stream has no header. Its length is in a tag in the first frame (Xing, Info, VBRI), or nowhere. Without a tag,
libsndfile guesses the length from the file size and the bit rate of the first frame, and stops reading there.

Source: ISO/IEC 11172-3 and 13818-3 (frame header); Xing and VBRI as LAME and Fraunhofer write them; RFC 3119 for terms.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from lowrank_speech.corpora.containers.extent import MORE, TRUNCATED, AudioError, metadata_length

Bytes = bytes | mmap.mmap
SAME = 0xFFFE0C00
"""Bits of a frame header that are constant within a stream: sync, version, layer, sampling rate."""
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
KILOBITS = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True)
class Frame:
    """One frame: its header, its length in bytes, its samples per channel, and the sampling rate."""

    header: int
    length: int
    samples: int
    rate: int


@dataclass(frozen=True)
class Stream:
    """Contents of the frames of a file.

    samples   samples per channel in all frames except the one with the tag
    frame     samples per frame
    declared  number of frames according to the tag (Xing, Info, VBRI); None: no tag
    trim      samples that the encoder added at both ends, according to the tag; decoders remove them
    """

    frames: int
    samples: int
    frame: int
    declared: int | None
    trim: int


def count(data: Bytes, path: Path, start: int = 0, end: int | None = None) -> Stream | None:
    """Count the frames of ``data[start:end]``; None if no frame is found.

    AudioError: the last frame is incomplete, or the sampling rate changes (concatenated files).
    """
    end = len(data) if end is None else end
    at, first = _next_frame(data, start, end)
    if first is None:
        return None
    declared, trim = _tag(data, at, first)
    frames, samples, frame = 0, 0, first
    if declared is None:
        frames, samples = 1, first.samples
    at += first.length
    while at < end:
        if at + 4 <= end and (found := _frame(data, at)) is not None and found.header & SAME == first.header & SAME:
            frame = found
        else:
            at += metadata_length(data[at : at + 32])
            at, following = _next_frame(data, at, end)
            if following is None:
                break
            if following.rate != first.rate:
                raise AudioError(
                    MORE, f"{path}: the sampling rate changes from {first.rate} to {following.rate} Hz; split the file"
                )
            frame = following
        if at + frame.length > end:
            raise AudioError(TRUNCATED, f"{path}: the last MPEG frame has {end - at} of {frame.length} bytes")
        frames, samples, at = frames + 1, samples + frame.samples, at + frame.length
    return Stream(frames, samples, first.samples, declared, trim)


def check(stream: Stream, decoded: int, rate: int, path: Path) -> None:
    """AudioError if libsndfile decoded fewer samples than the frames have, or the tag declares more frames."""
    if stream.declared is not None and stream.frames < stream.declared:
        raise AudioError(
            TRUNCATED, f"{path}: the first frame declares {stream.declared} frames, the file has {stream.frames}"
        )
    missing = stream.samples - stream.trim - decoded
    if missing > 2 * stream.frame:
        declares = "declares no length" if stream.declared is None else f"declares {stream.declared} frames"
        raise AudioError(
            MORE,
            f"{path}: the file has {stream.samples / rate:.2f} s, but its first frame {declares}, so only "
            f"{decoded / rate:.2f} s would be read; convert it to FLAC or WAV",
        )


def _next_frame(data: Bytes, at: int, end: int) -> tuple[int, Frame | None]:
    """Offset of the first frame at or after ``at`` that is followed by another frame, a tag, or the end."""
    while (at := data.find(b"\xff", at, end)) >= 0:
        found = _frame(data, at)
        if found is not None:
            behind = at + found.length
            following = _frame(data, behind) if behind + 4 <= end else None
            if behind == end or (following is not None and following.header & SAME == found.header & SAME):
                return at, found
            if behind < end and metadata_length(data[behind : behind + 32]):
                return at, found
        at += 1
    return end, None


def _frame(data: Bytes, at: int) -> Frame | None:
    """The frame whose header is at ``at``; None if there is no header, or one with a free bit rate."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] < 0xE0:
        return None
    header = int.from_bytes(data[at : at + 4], "big")
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    bits, rate, padding = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    kilobits, hertz = KILOBITS[version == 3, layer][bits - 1], RATES[version][rate]
    if layer == 1:
        return Frame(header, (12_000 * kilobits // hertz + padding) * 4, 384, hertz)
    samples = 576 if layer == 3 and version != 3 else 1152
    return Frame(header, samples * 125 * kilobits // hertz + padding, samples, hertz)


def _tag(data: Bytes, at: int, frame: Frame) -> tuple[int | None, int]:
    """Number of frames according to the tag in the first frame (None: no tag), and samples that the encoder added."""
    mono, newest = frame.header >> 6 & 3 == 3, frame.header >> 19 & 3 == 3
    xing = at + 4 + (17 if mono else 32) if newest else at + 4 + (9 if mono else 17)
    if data[xing : xing + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(data[xing + 4 : xing + 8], "big")
        place = xing + 8
        declared = int.from_bytes(data[place : place + 4], "big") if flags & 1 else None
        place += 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
        gaps = int.from_bytes(data[place + 21 : place + 24], "big") if place + 24 <= at + frame.length else 0
        # A frame with a tag has no audio, even if the tag has no count.
        return declared if declared is not None else 0, (gaps >> 12) + (gaps & 0xFFF)
    if data[at + 36 : at + 40] == b"VBRI":
        return struct.unpack_from(">I", data, at + 50)[0], 0
    return None, 0
