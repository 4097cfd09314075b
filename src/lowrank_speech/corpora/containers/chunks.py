"""Containers that consist of chunks with a name and a size: RIFF/WAVE, RF64, Wave64, AIFF and its relatives, CAF.

In: an open file. Out: the ``Extent`` of its samples. AudioError: the file ends before the samples do.

Source: RIFF WAVE (Microsoft, IBM 1991); EBU Tech 3306 (RF64); Sony Wave64; Apple AIFF-C 1991; Apple Core Audio Format.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lowrank_speech.corpora.containers.extent import MORE, TRUNCATED, AudioError, Extent, unexplained

STREAMED = 0x7F000000
"""A 32-bit size at or above this was written by a program that could not seek, so the length is unknown."""


@dataclass(frozen=True)
class Layout:
    """How a container stores its chunks."""

    head: str
    """Format of a chunk header (name and size), for ``struct``."""
    first: int
    """Offset of the first chunk."""
    data: tuple[bytes, ...]
    """Names of the chunk with the samples."""
    even: int = 2
    """Chunks start at multiples of this."""
    own: int = 0
    """Bytes of the chunk header that the chunk's size includes."""
    before: int = 0
    """Bytes between the header of the data chunk and the samples."""


WAVE64 = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # suffix of all chunk names in Wave64
RIFF = Layout("<4sI", 12, (b"data",))
IFF = Layout(">4sI", 12, (b"SSND",), before=8)
LAYOUTS = {
    b"RIFF": RIFF,
    b"RF64": RIFF,
    b"BW64": RIFF,
    b"RIFX": Layout(">4sI", 12, (b"data",)),
    b"FORM": IFF,
    b"caff": Layout(">4sq", 8, (b"data",), even=1, before=4),
    b"riff": Layout("<16sQ", 40, (b"data" + WAVE64,), even=8, own=24),
}


def extent(file: BinaryIO, base: int, size: int, path: Path) -> Extent | None:
    """The samples of a file whose container starts at ``base``; None: another container, or no data chunk.

    AudioError: the file ends before the samples do, or has two data chunks.
    """
    file.seek(base)
    magic = file.read(12)
    layout = LAYOUTS.get(magic[:4])
    if layout is None:
        return None
    if magic[:4] == b"FORM" and magic[8:12] in (b"8SVX", b"16SV"):
        layout = Layout(">4sI", 12, (b"BODY",))
    large: int | None = None  # RF64's 64-bit size of the data chunk
    found: Extent | None = None
    at = base + layout.first
    while at < size and (chunk := _chunk(file, at, layout)) is not None:
        name, start, length = chunk
        if name in layout.data:
            if found is not None:
                raise AudioError(MORE, f"{path} has two data chunks, of which only one would be read; join them first")
            found = _samples(start, length, large, layout, size, path)
            if found.end is None:
                return found
            length = found.end - start
        elif name == b"ds64" and length >= 16:
            file.seek(start + 8)
            large = struct.unpack("<Q", file.read(8))[0]
        elif found is not None and name in LAYOUTS:
            raise AudioError(MORE, f"{path}: a second file starts at byte {at}; split the file")
        elif length < 0 or (found is not None and (not _plausible(name) or start + length > size)):
            break  # not a chunk: its size points backwards, or other data follow the samples
        at = start + length
        at += -(at - base) % layout.even
    if found is None:
        return None
    # Chunks may end one byte before the next multiple.
    return Extent(found.start, found.end, unexplained(file, min(at, size), size))


def _chunk(file: BinaryIO, at: int, layout: Layout) -> tuple[bytes, int, int] | None:
    """Name, start and length of the chunk at byte ``at``."""
    file.seek(at)
    length = struct.calcsize(layout.head)
    head = file.read(length)
    if len(head) < length:
        return None
    name, size = struct.unpack(layout.head, head)
    return name, at + length, size - layout.own


def _samples(start: int, length: int, large: int | None, layout: Layout, size: int, path: Path) -> Extent:
    if large is not None and length == 0xFFFFFFFF:
        length = large
    elif length == -1 or (struct.calcsize(layout.head) == 8 and length >= STREAMED):
        return Extent(start + layout.before, None)
    end = start + max(0, length)
    if end > size:
        raise AudioError(
            TRUNCATED, f"{path}: the header declares {length} bytes of samples, the file has {max(0, size - start)}"
        )
    return Extent(start + layout.before, end)


def _plausible(name: bytes) -> bool:
    """Whether ``name`` can be the name of a chunk."""
    return name.endswith(WAVE64[4:]) if len(name) == 16 else all(32 <= c < 127 for c in name)
