"""Containers with a header followed by the samples: AU, NIST SPHERE, Creative Voice, and rarer ones.

In: an open file. Out: the ``Extent`` of its samples; None for other containers.

Source: libsndfile's readers of the same names, most of which read to the end of the file, whatever the header declares;
NIST SPHERE 2.6.
"""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from lowrank_speech.corpora.containers.extent import MORE, TRUNCATED, AudioError, Extent, unexplained

HEAD = 4096
OPEN = 0xFFFFFFFF
"""The size in an AU header if the length is unknown."""


def extent(file: BinaryIO, form: str, base: int, size: int, path: Path) -> Extent | None:
    """The samples of a file whose header starts at ``base``. ``form``: libsndfile's name of the container.

    AudioError: the file ends before the samples do, or consists of two files.
    """
    if form not in READERS:
        return None
    file.seek(base)
    head = file.read(HEAD)
    try:
        start, length = READERS[form](head)
    except (struct.error, ValueError, IndexError):
        start, length = 0, None
    if length is None:
        _refuse_joined(file, base, head[:16], path)
        return Extent(base + start, None)
    end = base + start + length
    if end > size:
        held = max(0, size - base - start)
        raise AudioError(TRUNCATED, f"{path}: the header declares {length} bytes of samples, the file has {held}")
    return Extent(base + start, end, unexplained(file, end, size))


def _refuse_joined(file: BinaryIO, base: int, head: bytes, path: Path) -> None:
    """AudioError if a header without a length occurs twice: the second one would be decoded as samples."""
    if len(set(head)) < 4:
        return
    before, at = b"", base + len(head)
    file.seek(at)
    while block := file.read(1 << 20):
        found = (before + block).find(head)
        if found >= 0:
            raise AudioError(MORE, f"{path}: a second header is at byte {at - len(before) + found}; split the file")
        before, at = block[-len(head) + 1 :], at + len(block)


Reader = Callable[[bytes], tuple[int, int | None]]
"""First bytes of the file -> offset of the samples, and their length in bytes (None: not declared)."""


def _au(head: bytes) -> tuple[int, int | None]:
    start, length = struct.unpack_from(">II" if head[:4] == b".snd" else "<II", head, 4)
    return start, None if length == OPEN else length


def _nist(head: bytes) -> tuple[int, int | None]:
    start = int(head[8:16])
    names = (b"sample_count", b"sample_n_bytes", b"channel_count")
    counts = [re.search(rb"\n%s -\w+ (\d+)" % name, head) for name in names]
    if counts[0] is None or counts[1] is None:
        return start, None
    channels = int(counts[2][1]) if counts[2] else 1
    return start, int(counts[0][1]) * int(counts[1][1]) * channels


def _voc(head: bytes) -> tuple[int, int | None]:
    at = struct.unpack_from("<H", head, 20)[0]
    while head[at]:  # blocks with comments etc. may precede the sound
        kind, length = head[at], int.from_bytes(head[at + 1 : at + 4], "little")
        if kind in (1, 9):
            parameters = 2 if kind == 1 else 12
            return at + 4 + parameters, length - parameters
        at += 4 + length
    return at, None


def _avr(head: bytes) -> tuple[int, int | None]:
    stereo, bits = struct.unpack_from(">HH", head, 12)
    return 128, struct.unpack_from(">I", head, 26)[0] * (2 if stereo else 1) * (bits // 8)


def _mpc(head: bytes) -> tuple[int, int | None]:
    return 42, struct.unpack_from("<I", head, 30)[0] * (2 if head[21] else 1) * 2


def _mat4(head: bytes) -> tuple[int, int | None]:
    at = head.index(b"wavedata\0")
    kind, rows, columns = struct.unpack_from(">III" if head[:4] == b"\0\0\x03\xe8" else "<III", head, at - 20)
    return at + 9, rows * columns * {0: 8, 1: 4, 2: 4, 3: 2}[kind // 10 % 10]


def _mat5(head: bytes) -> tuple[int, int | None]:
    at = head.index(b"wavedata")
    return at + 16, struct.unpack_from(">I" if head[126:128] == b"MI" else "<I", head, at + 12)[0]


def _sds(head: bytes) -> tuple[int, int | None]:
    bits, frames = head[6], head[10] | head[11] << 7 | head[12] << 14
    packet = 120 // (2 if bits <= 14 else 3 if bits <= 21 else 4)
    return 21, -(-frames // packet) * 127


READERS: dict[str, Reader] = {
    "AU": _au,
    "NIST": _nist,
    "VOC": _voc,
    "AVR": _avr,
    "WVE": lambda head: (32, struct.unpack_from(">I", head, 18)[0]),
    "MPC2K": _mpc,
    "MAT4": _mat4,
    "MAT5": _mat5,
    "SDS": _sds,
    "PVF": lambda head: (0, None),
    "PAF": lambda head: (0, None),
    "IRCAM": lambda head: (0, None),
    "XI": lambda head: (0, None),
}
"""libsndfile's name of the container -> reader. libsndfile itself checks the length of HTK files; SD2 has no length."""
