"""Ogg: check that all pages are present, that there is one stream, and that the length in the last page is right.

The length of an Ogg stream is a number in the header of its last page, where libsndfile stops. ``without_length``
replaces that number, so that decoding continues to the real end.

Source: RFC 3533 (pages), RFC 7845 (Opus), Vorbis I specification, section 4.2.2 (block sizes).
"""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from lowrank_speech.corpora.containers.extent import MORE, TRUNCATED, AudioError

FIRST, LAST = 2, 4
"""Flags of a page: first and last page of a stream."""
FAR = 1 << 40
"""A length beyond that of any recording."""
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Page:
    """Byte offset and length of a page, and the fields of its header."""

    start: int
    length: int
    flags: int
    position: int
    serial: int
    number: int


def pages(data: bytes, path: Path) -> list[Page]:
    """The pages of a file. AudioError: it is truncated, lacks a page, or has two streams one after the other."""
    result: list[Page] = []
    numbers: dict[int, int] = {}
    at = data.find(b"OggS")
    while at >= 0:
        if at + 27 > len(data) or at + 27 + data[at + 26] > len(data):
            raise AudioError(TRUNCATED, f"{path}: the Ogg stream ends within a page header")
        segments = data[at + 26]
        length = 27 + segments + sum(data[at + 27 : at + 27 + segments])
        if at + length > len(data):
            raise AudioError(TRUNCATED, f"{path}: the last Ogg page has {len(data) - at} of {length} bytes")
        position, serial, number = struct.unpack_from("<qII", data, at + 6)
        page = Page(at, length, data[at + 5], position, serial, number)
        if page.flags & FIRST and result and not result[-1].flags & FIRST:
            raise AudioError(MORE, f"{path}: a second Ogg stream starts at byte {at}; split the file")
        if numbers.get(serial, number - 1) != number - 1:
            raise AudioError(
                TRUNCATED, f"{path}: page {number} of the Ogg stream follows page {numbers[serial]}; pages are missing"
            )
        numbers[serial] = number
        result.append(page)
        at = data.find(b"OggS", at + length)
    if result and not result[-1].flags & LAST:
        raise AudioError(TRUNCATED, f"{path}: the Ogg stream has no last page; it was cut off between two pages")
    return result


def without_length(data: bytes, found: list[Page]) -> bytes:
    """The stream with a length in its last page that is never reached."""
    last = found[-1]
    page = bytearray(data[last.start : last.start + last.length])
    page[6:14] = struct.pack("<q", FAR)
    page[22:26] = bytes(4)
    page[22:26] = struct.pack("<I", checksum(bytes(page)))
    return data[: last.start] + bytes(page) + data[last.start + last.length :]


def short_opus(data: bytes, found: list[Page]) -> bool:
    """Whether an Opus stream has one page of samples (up to about a second).

    libopusfile computes the start of the stream from the length in that page, so it must stay.
    """
    opus = data[found[0].start + 28 : found[0].start + 36] == b"OpusHead"
    return opus and sum(page.position > 0 for page in found) == 1


def trimmed(data: bytes, found: list[Page], rate: int) -> int:
    """The most samples at ``rate`` Hz that an encoder's padding takes at the end: one block."""
    head = data[found[0].start + 28 : found[0].start + 28 + 40]
    if head[1:7] == b"vorbis":
        return 1 << (head[28] >> 4)
    return round(0.12 * rate)  # the longest packet of Opus


def checksum(page: bytes) -> int:
    """Ogg's CRC-32: zlib's polynomial, with reversed bit order and without inversion."""
    found = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{found:032b}"[::-1], 2)
