"""The amount of audio that a container declares, to be compared with the contents of the file.

Headers cannot be trusted: a recorder that crashed leaves a size of zero, `cat` leaves two recordings of which a reader
sees one, and a 32-bit size overflows. libsndfile trusts some headers and ignores others, both silently.
"""

from dataclasses import dataclass
from typing import BinaryIO


class AudioError(Exception):
    """A file or its samples cannot be used. ``reason`` is a fixed phrase, ``detail`` names the file and the value."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


TRUNCATED, MORE = "truncated audio", "more audio than declared"


@dataclass(frozen=True)
class Extent:
    """Position of the samples according to the header, as byte offsets.

    end    offset after the last sample; None: not declared, all following bytes are audio
    rest   number of bytes after the samples that are not metadata, so they may be undeclared audio
    """

    start: int
    end: int | None
    rest: int = 0


def id3_length(head: bytes) -> int:
    """Length of the ID3v2 tag at the start of ``head``, in bytes; 0: no tag. Source: ID3v2.4, section 3.1."""
    if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)


def metadata_length(head: bytes) -> int:
    """Length of the tag (ID3 or APE) at the start of ``head``, in bytes; 0: no tag."""
    if head[:3] == b"TAG":
        return 128
    if head[:8] == b"APETAGEX" and len(head) >= 24:
        size = int.from_bytes(head[12:16], "little")
        # The size includes the footer. Bit 29 is set in a header, which the size does not include.
        return 32 + size if head[23] & 0x20 else 32
    return id3_length(head)


def unexplained(file: BinaryIO, start: int, size: int) -> int:
    """Number of bytes from ``start`` to the end (``size``), unless they are only tags and zeros; then 0."""
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
