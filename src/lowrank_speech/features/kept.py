"""Cuts that stay on disk: a JSONL file, and a table with the position and the duration of each cut.

Memory and the time to open the set do not grow with the corpus: the table (16 bytes per cut) is memory-mapped, and cuts
are parsed on demand. Processes share the mapped pages, so the workers of a loader copy nothing.

    kept = keep(cuts, "scratch/train.jsonl")    # one pass over any iterable of cuts
    len(kept), kept.durations, kept[7]
"""

import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet
from lhotse.serialization import decode_json_line, deserialize_item

from lowrank_speech.artefact import atomic

_ROW = np.dtype([("offset", "<i8"), ("duration", "<f8")])


class KeptCuts:
    """The cuts of a file that ``keep`` wrote, by index. ``durations``: seconds, float64 (N,), mapped from disk."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        self._table = np.load(_table(self.path), mmap_mode="r")
        self._file = self.path.open("rb", buffering=0)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._open()

    def __len__(self) -> int:
        return len(self._table) - 1

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> Any:
        """The cut at ``index``. Raises IndexError if there is none."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: there is no cut {index}, the file has {len(self)}")
        start, end = int(self._table["offset"][index]), int(self._table["offset"][index + 1])
        # Use os.pread instead of seek, because forked workers share the file's position.
        return deserialize_item(decode_json_line(os.pread(self._file.fileno(), end - start, start)))

    @property
    def durations(self) -> np.ndarray:
        return self._table["duration"][:-1]


class ListedCuts:
    """Cuts in memory, with the interface of ``KeptCuts``, for small sets."""

    def __init__(self, cuts: Iterable[Any]):
        self._cuts = list(cuts)
        self.durations = np.array([cut.duration for cut in self._cuts], dtype=np.float64)

    def __len__(self) -> int:
        return len(self._cuts)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cuts)

    def __getitem__(self, index: int) -> Any:
        return self._cuts[index]


def numbered(cuts: KeptCuts | ListedCuts | CutSet | Sequence[Any]) -> KeptCuts | ListedCuts:
    """``cuts`` as a set with indices and durations; reads a Lhotse set into memory."""
    return cuts if isinstance(cuts, KeptCuts | ListedCuts) else ListedCuts(cuts)


def keep(cuts: Iterable[Any], path: str | Path) -> KeptCuts:
    """Write ``cuts`` one by one to ``path`` (.jsonl) and its table, atomically; returns the set."""
    path, offsets, durations = Path(path), array("q", [0]), array("d")
    with atomic(path) as temporary, atomic(_table(path)) as temporary_table:
        with temporary.open("wb") as file:
            for cut in cuts:
                file.write(json.dumps(cut.to_dict(), ensure_ascii=False).encode() + b"\n")
                offsets.append(file.tell())
                durations.append(cut.duration)
        table = np.zeros(len(offsets), dtype=_ROW)
        table["offset"], table["duration"][:-1] = offsets, durations
        with temporary_table.open("wb") as file:
            np.save(file, table)
    return KeptCuts(path)


def kept_files(path: Path) -> tuple[Path, Path]:
    """The files that ``keep`` writes for ``path``."""
    return path, _table(path)


def _table(path: Path) -> Path:
    return path.with_suffix(".npy")
