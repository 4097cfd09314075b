"""FLAC: check the length in the header against the last frame, and look for a second stream.

libFLAC stops at the number of samples in STREAMINFO. Frames are numbered, so the last one tells where the stream ends.

Source: RFC 9639, sections 8.2 (STREAMINFO) and 9.1 (frame header).
"""

import mmap
from pathlib import Path

from lowrank_speech.corpora.containers.extent import MORE, AudioError

Bytes = bytes | mmap.mmap
TAIL = 1 << 18
"""Bytes at the end of the file in which to look for the last frame."""


def check(data: Bytes, path: Path, base: int = 0) -> None:
    """AudioError if frames follow after the end that the header declares.

    ``data``: the file, with the marker `fLaC` at ``base``.
    """
    info, start = _stream_info(data, base)
    if info is None:
        return
    second = data.find(b"fLaC\0\0\0\x22", start)  # marker and header of STREAMINFO, which is always the first block
    if second >= 0:
        raise AudioError(MORE, f"{path}: a second FLAC stream starts at byte {second}; split the file")
    total = int.from_bytes(info[13:18], "big") & 0xFFFFFFFFF
    found = _last_end(data[max(start, len(data) - TAIL) :], info)
    if total and found is not None and found > total:
        raise AudioError(
            MORE, f"{path}: the header declares {total} samples, the last frame ends at {found}; encode the file again"
        )


def _stream_info(data: Bytes, base: int) -> tuple[bytes | None, int]:
    """STREAMINFO, and the offset of the first frame."""
    info, at, last = None, base + 4, False
    while not last and at + 4 <= len(data):
        last, kind = bool(data[at] & 0x80), data[at] & 0x7F
        length = int.from_bytes(data[at + 1 : at + 4], "big")
        if kind == 0 and length >= 34:
            info = data[at + 4 : at + 38]
        at += 4 + length
    return info, at


def _last_end(tail: bytes, info: bytes) -> int | None:
    """Number of the sample after the last frame in ``tail``; None if there is no frame."""
    at = len(tail)
    while (at := tail.rfind(b"\xff", 0, at)) >= 0:
        if tail[at + 1 : at + 2] in (b"\xf8", b"\xf9"):
            end = _frame_end(tail[at : at + 16], info)
            if end is not None:
                return end
    return None


def _frame_end(head: bytes, info: bytes) -> int | None:
    """Number of the sample after the frame that starts with ``head``; None if ``head`` is not a frame header."""
    if len(head) < 16 or head[3] & 1:
        return None
    size, rate, channels = head[2] >> 4, head[2] & 15, head[3] >> 4
    number, at = _number(head, 4)
    if number is None or size == 0 or rate == 15 or channels > 10 or (head[3] >> 1 & 7) in (3, 7):
        return None
    if size == 1:
        samples = 192
    elif size < 6:
        samples = 576 << (size - 2)
    elif size < 8:
        samples = int.from_bytes(head[at : at + size - 5], "big") + 1
        at += size - 5
    else:
        samples = 256 << (size - 8)
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    smallest, largest = int.from_bytes(info[0:2], "big"), int.from_bytes(info[2:4], "big")
    wanted = (info[12] >> 1 & 7) + 1
    if samples > largest or (channels + 1 if channels < 8 else 2) != wanted or _crc8(head[:at]) != head[at]:
        return None
    # With a fixed block size the header counts frames, else samples.
    return number + samples if head[1] & 1 else number * (largest if smallest == largest else samples) + samples


def _number(head: bytes, at: int) -> tuple[int | None, int]:
    """A number that is coded like a UTF-8 character (up to 7 bytes), and the offset after it."""
    first = head[at]
    if first < 0x80:
        return first, at + 1
    length = 8 - (first ^ 0xFF).bit_length()
    if not 2 <= length <= 7 or any(byte >> 6 != 2 for byte in head[at + 1 : at + length]):
        return None, at
    value = first & (0x7F >> length)
    for byte in head[at + 1 : at + length]:
        value = value << 6 | byte & 0x3F
    return value, at + length


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07) & 0xFF if crc & 0x80 else crc << 1
    return crc
