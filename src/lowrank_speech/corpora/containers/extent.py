"""What a container says about how much audio there is, to be held against what the file holds.

Headers are not to be trusted: a recorder that crashed leaves a size of zero, `cat` leaves two recordings of which a
reader sees one, and a size of 32 bits overflows. libsndfile believes some headers and ignores others, silently in both
cases.
"""

from dataclasses import dataclass
from typing import BinaryIO


class AudioError(Exception):
    """A file or its samples cannot be used: ``reason`` is one of few fixed phrases, ``detail`` names file and value."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


TRUNCATED, MORE = "truncated audio", "more audio than declared"


@dataclass(frozen=True)
class Extent:
    """Where a header says that the samples lie, in bytes of the file.

    end    behind the last sample; None: the header leaves it open, all that follows is audio
    rest   bytes behind the samples that are not metadata: they may be audio that the header does not count
    """

    start: int
    end: int | None
    rest: int = 0


def id3_length(head: bytes) -> int:
    """Bytes of the ID3v2 tag that ``head`` begins with; 0 where there is none. Source: ID3v2.4, section 3.1."""
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)


def metadata_length(head: bytes) -> int:
    """Bytes of the tag (ID3 or APE) that ``head`` begins with; 0 where there is none."""
    if head[:3] == b"TAG":
        return 128
    if head[:8] == b"APETAGEX" and len(head) >= 24:
        size = int.from_bytes(head[12:16], "little")
        # The size counts a footer; with a header, the flag of bit 29 says that this is it.
        return 32 + size if head[23] & 0x20 else 32
    return id3_length(head)


def unexplained(file: BinaryIO, start: int, size: int) -> int:
    """Bytes from ``start`` to the end (``size``) that are neither tags nor zeros."""
    while start < size:
        file.seek(start)
        length = metadata_length(file.read(32))
        if not length:
            break
        start += length
    if start >= size:
        return 0
    file.seek(start)
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            return size - start
    return 0
