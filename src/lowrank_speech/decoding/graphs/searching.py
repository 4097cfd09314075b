"""Open the search of a graph for a decoder: check the graph, choose the back end, set scales.

Both back ends search the same graph with the same scores, so their results differ only by rounding and pruning.
"""

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lowrank_speech.decoding.ctc.paths import tokens_of
from lowrank_speech.decoding.graphs.lattice import Lattice
from lowrank_speech.decoding.graphs.settings import MAX_ACTIVE, GraphDecoding
from lowrank_speech.errors import UserError
from lowrank_speech.lang.graphs.fst import Arcs
from lowrank_speech.lang.graphs.load import Graph

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Path:
    """The best path: the token of each frame, the output symbols, the score."""

    labels: list[int]
    symbols: list[int]
    score: float


class Search(Protocol):
    """What both back ends do with a batch: log_probs (B, F, V), valid frames. None: nothing survived, or no frames."""

    def best(self, log_probs: Tensor, frames: list[int]) -> list[Path | None]: ...
    def lattices(self, log_probs: Tensor, frames: list[int]) -> list[Lattice | None]: ...


class _Kaldi:
    def __init__(self, arcs: Arcs, settings: GraphDecoding):
        from lowrank_speech.decoding.graphs.kaldi_search import KaldiSearch

        self._beam = settings.lattice_beam
        self._search = KaldiSearch(arcs, settings.search_beam, settings.lattice_beam, settings.max_active or MAX_ACTIVE)

    def best(self, log_probs: Tensor, frames: list[int]) -> list[Path | None]:
        rows = zip(log_probs.cpu().numpy(), frames, strict=True)
        found = [self._search.best(row[:n]) if n else None for row, n in rows]
        return [None if path is None else Path(*path) for path in found]

    def lattices(self, log_probs: Tensor, frames: list[int]) -> list[Lattice | None]:
        rows = zip(log_probs.cpu().numpy(), frames, strict=True)
        found = [self._search.lattice(row[:n]) if n else None for row, n in rows]
        return [None if pair is None else Lattice.of(**pair[1]).pruned(self._beam) for pair in found]


class _K2:
    def __init__(self, k2: Any, arcs: Arcs, settings: GraphDecoding, device: Any):
        from lowrank_speech.decoding.graphs.k2_search import K2Search, to_k2

        self._beam = settings.lattice_beam
        columns = {"sources": arcs.sources, "finals": arcs.finals}
        names = {"dests": "dst", "ilabels": "ilabel", "olabels": "olabel", "costs": "weight"}
        columns |= {name: arcs.arcs[column] for name, column in names.items()}
        tensors = {name: torch.from_numpy(column.copy()) for name, column in columns.items()}
        beams = (settings.search_beam, settings.lattice_beam, settings.max_active or MAX_ACTIVE)
        self._search = K2Search(k2, to_k2(k2, **tensors, start=arcs.start), device, *beams)

    def best(self, log_probs: Tensor, frames: list[int]) -> list[Path | None]:
        return [None if path is None else Path(*path) for path in self._search.best(log_probs, frames)]

    def lattices(self, log_probs: Tensor, frames: list[int]) -> list[Lattice | None]:
        found = self._search.symbol_lattices(log_probs, frames)
        return [None if columns is None else Lattice.of(**columns).pruned(self._beam) for columns in found]


def graph_of(source: Any, lang: Any) -> Graph:
    """The graph that the decoder reads. UserError: the graph, or ``lang``, is of another token set than ``source``."""
    tokens_of(source, lang)
    graph = source.resources["graph"]
    graph.require(lang.sha256)
    return graph


def open_search(graph: Graph, settings: GraphDecoding, source: Any, lattices: bool) -> Search:
    """The search of ``graph`` with the back end that ``settings`` choose; sets ``source.device``, where it computes.

    ``lattices``: whether the decoder needs lattices. UserError: the back end does not work here, or cannot do this.
    """
    arcs = graph.arcs.weighted(settings.lm_weight, settings.insertion)
    k2, device = _choose(settings, source.asked)
    if k2 is not None:
        source.device = device
        return _K2(k2, arcs, settings, device)
    if lattices and settings.max_active is not None:
        raise UserError(
            "decoder.max_active: kaldi-decoder cannot bound the states of a search for lattices, only k2 can; remove "
            "it, or set backend: k2 (docs/k2.md)"
        )
    return _Kaldi(arcs, settings)


def _choose(settings: GraphDecoding, asked: str) -> tuple[Any, Any]:
    """k2 (None: kaldi-decoder) and the device."""
    if settings.backend == "kaldi":
        return None, None
    from lowrank_speech.decoding.graphs.k2_search import import_k2
    from lowrank_speech.models.device import pick_device

    # With `auto`, a k2 without CUDA works on the CPU.
    devices = [pick_device(asked)] + ([pick_device("cpu")] if asked == "auto" else [])
    for device in devices:
        try:
            found = import_k2(device.type)
        except ImportError as error:
            why = error
        else:
            log.info("k2 searches the graph on %s", device)
            return found, device
    if settings.backend == "k2":
        raise UserError(f"decoder.backend: {why}; install the k2 for this torch (docs/k2.md), or set backend: kaldi")
    log.info("kaldi-decoder searches the graph: %s", why)
    return None, None
