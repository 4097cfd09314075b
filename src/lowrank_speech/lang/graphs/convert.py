"""Conversion between arrays and kaldifst's transducers, through files of OpenFst's format."""

import tempfile
from pathlib import Path
from typing import Any

from lowrank_speech.lang.graphs import fst
from lowrank_speech.lang.graphs.fst import Arcs


def to_kaldifst(arcs: Arcs, constant: bool = False) -> Any:
    """A ``kaldifst.StdConstFst`` (what decoders search fastest) or a mutable ``StdVectorFst``."""
    import kaldifst

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.fst")
        path.write_bytes(fst.to_bytes(arcs))
        found = kaldifst.StdConstFst.read(str(path))
    return found if constant else kaldifst.StdVectorFst(found)


def from_kaldifst(found: Any) -> Arcs:
    """Arrays of a ``kaldifst.StdFst``."""
    import kaldifst

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.fst")
        kaldifst.StdConstFst(found).write(str(path))
        return fst.read(path)
