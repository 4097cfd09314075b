"""Weighted transducers as arrays, and OpenFst's binary format of constant transducers (``const``, 32 bits, tropical).

The arrays change thousands of labels and weights at once, which OpenFst's Python interfaces do arc by arc. Weights are
costs: minus the natural log of a probability.

Source: OpenFst 1.8, const-fst.h and fst.cc (FstHeader::Write).
"""

import struct
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

MAGIC = 2125659606
ARC = np.dtype([("ilabel", "<i4"), ("olabel", "<i4"), ("weight", "<f4"), ("dst", "<i4")])
STATE = np.dtype([("final", "<f4"), ("first", "<u4"), ("arcs", "<u4"), ("ieps", "<u4"), ("oeps", "<u4")])
EXPANDED = 1
"""OpenFst's property bit; other properties are left unknown, so OpenFst computes those that it needs."""


@dataclass
class Arcs:
    """A transducer.

    arcs    array of ARC, sorted by source state
    splits  (S + 1,) int64: the arcs of state s are arcs[splits[s]:splits[s + 1]]
    finals  (S,) float32: final costs; infinite: not final
    start   the initial state
    """

    arcs: np.ndarray
    splits: np.ndarray
    finals: np.ndarray
    start: int = 0
    sources: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.sources = np.repeat(np.arange(len(self.finals)), np.diff(self.splits))

    @property
    def states(self) -> int:
        return len(self.finals)

    def weighted(self, scale: float, insertion: float) -> "Arcs":
        """A copy with all costs times ``scale``, and minus ``insertion`` for each output symbol."""
        arcs, finals = self.arcs.copy(), self.finals.copy()
        arcs["weight"] = scale * arcs["weight"] - insertion * (arcs["olabel"] > 0)
        final = np.isfinite(finals)
        finals[final] *= scale
        return replace(self, arcs=arcs, finals=finals)


def from_lists(sources: np.ndarray, arcs: np.ndarray, finals: np.ndarray, start: int = 0) -> Arcs:
    """A transducer from arcs in any order, with their source states."""
    order = np.argsort(sources, kind="stable")
    splits = np.concatenate([[0], np.cumsum(np.bincount(sources, minlength=len(finals)))])
    return Arcs(np.asarray(arcs, ARC)[order], splits, np.asarray(finals, np.float32), start)


def to_bytes(fst: Arcs) -> bytes:
    """``fst`` in OpenFst's format."""
    counts = np.diff(fst.splits)
    states = np.zeros(fst.states, STATE)
    states["final"], states["first"], states["arcs"] = fst.finals, fst.splits[:-1], counts
    for name, label in (("ieps", "ilabel"), ("oeps", "olabel")):
        sums = np.concatenate([[0], np.cumsum(fst.arcs[label] == 0)])
        states[name] = sums[fst.splits[1:]] - sums[fst.splits[:-1]]
    head = struct.pack("<i", MAGIC) + _text("const") + _text("standard")
    head += struct.pack("<iiQqqq", 2, 0, EXPANDED, fst.start, fst.states, len(fst.arcs))
    return head + states.tobytes() + fst.arcs.tobytes()


def from_bytes(data: bytes) -> Arcs:
    """Read OpenFst's format. ValueError: not a constant transducer with 32 bits and tropical weights, or truncated."""
    try:
        (magic,) = struct.unpack_from("<i", data, 0)
        kind, offset = _read_text(data, 4) if magic == MAGIC else ("", 0)
        weights, offset = _read_text(data, offset)
        version, flags, _, start, states, arcs = struct.unpack_from("<iiQqqq", data, offset)
        offset += struct.calcsize("<iiQqqq")
        if (kind, weights, version, flags) != ("const", "standard", 2, 0):
            raise ValueError(f"it is of type {kind!r} with {weights!r} weights")
        rows = np.frombuffer(data, STATE, states, offset)
        found = np.frombuffer(data, ARC, arcs, offset + rows.nbytes)
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"not a constant OpenFst transducer ({error})") from error
    return Arcs(found, np.concatenate([rows["first"], [arcs]]).astype(np.int64), rows["final"], start)


def read(path: str | Path) -> Arcs:
    """Read a file. ValueError names it."""
    try:
        return from_bytes(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _text(value: str) -> bytes:
    return struct.pack("<i", len(value)) + value.encode()


def _read_text(data: bytes, offset: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<i", data, offset)
    end = offset + 4 + length
    return data[offset + 4 : end].decode("ascii"), end
