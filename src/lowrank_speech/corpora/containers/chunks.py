"""Containers made of chunks with a name and a size: RIFF/WAVE, RF64, Wave64, AIFF and its relatives, CAF.

In: an open file. Out: the ``Extent`` of its samples; AudioError where the file ends before they do.

Source: RIFF WAVE (Microsoft, IBM 1991); EBU Tech 3306 (RF64); Sony Wave64; Apple AIFF-C 1991; Apple Core Audio Format.
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lowrank_speech.corpora.containers.extent import MORE, TRUNCATED, AudioError, Extent, unexplained

STREAMED = 0x7F000000
"""A size of 32 bits from here on was written by a program that could not seek: the length is not known."""


@dataclass(frozen=True)
class Layout:
    """How one container writes its chunks."""

    head: str
    """Name and size, for ``struct``."""
    first: int
    """Where the first chunk starts."""
    data: tuple[bytes, ...]
    """Names of the chunk with the samples."""
    even: int = 2
    """Chunks start at multiples of this."""
    own: int = 0
    """Bytes of its own head that a chunk's size counts."""
    before: int = 0
    """Bytes between the head of the data chunk and the samples."""


WAVE64 = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # the end of the names of Wave64's chunks
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
    """The samples of a file whose container starts at ``base``; None where it has no chunk of samples, or is another.

    AudioError: the samples end with the file before the header says so, or there are two chunks of samples.
    """
    file.seek(base)
    magic = file.read(12)
    layout = LAYOUTS.get(magic[:4])
    if layout is None:
        return None
    if magic[:4] == b"FORM" and magic[8:12] in (b"8SVX", b"16SV"):
        layout = Layout(">4sI", 12, (b"BODY",))
    large: int | None = None  # RF64's own size of the samples
    found: Extent | None = None
    at = base + layout.first
    while at < size and (chunk := _chunk(file, at, layout)) is not None:
        name, start, length = chunk
        if name in layout.data:
            if found is not None:
                raise AudioError(MORE, f"{path} has two chunks of samples, of which one would be read; join them first")
            found = _samples(start, length, large, layout, size, path)
            if found.end is None:
                return found
            length = found.end - start
        elif name == b"ds64" and length >= 16:
            file.seek(start + 8)
            large = struct.unpack("<Q", file.read(8))[0]
        elif found is not None and name in LAYOUTS:
            raise AudioError(MORE, f"{path}: a second file begins at byte {at}; only the first would be read: split it")
        elif length < 0 or (found is not None and (not _plausible(name) or start + length > size)):
            break  # no chunk: its size would lead back, or what follows the samples is something else
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
            TRUNCATED, f"{path}: the header says {length} bytes of samples, there are {max(0, size - start)}"
        )
    return Extent(start + layout.before, end)


def _plausible(name: bytes) -> bool:
    """Whether ``name`` may be that of a chunk."""
    return name.endswith(WAVE64[4:]) if len(name) == 16 else all(32 <= c < 127 for c in name)
