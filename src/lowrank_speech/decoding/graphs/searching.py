"""Open the search of a graph for a decoder: choose the back end, check the graph, set scales.

Both back ends search the same graph with the same scores, so their results differ only by rounding and pruning.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from lowrank_speech.decoding.base import Hypothesis
from lowrank_speech.decoding.ctc.times import aligned
from lowrank_speech.decoding.graphs.lattice import Lattice
from lowrank_speech.decoding.graphs.settings import MAX_ACTIVE, GraphDecoding
from lowrank_speech.decoding.graphs.timing import timed_words
from lowrank_speech.errors import UserError
from lowrank_speech.lang.graphs.fst import Arcs
from lowrank_speech.lang.graphs.load import Graph
from lowrank_speech.lang.lexicon import boundary_of

log = logging.getLogger(__name__)

NOTHING = "nothing"
"""Why a hypothesis is empty: no path to the end of the graph survived the beam, or there were no frames."""


@dataclass(frozen=True)
class Path:
    """The best path: the token of each frame (empty: not known), the output symbols, the score."""

    labels: list[int]
    symbols: list[int]
    score: float


class Search(Protocol):
    """What both back ends do with a batch: log_probs (B, F, V), valid frames."""

    def best(self, log_probs: Tensor, frames: list[int]) -> list[Path | None]: ...
    def lattices(self, log_probs: Tensor, frames: list[int]) -> list[Lattice | None]: ...


class _Kaldi:
    def __init__(self, arcs: Arcs, settings: GraphDecoding):
        from lowrank_speech.decoding.graphs.kaldi_search import KaldiSearch

        self._search = KaldiSearch(arcs, settings.search_beam, settings.lattice_beam, settings.max_active or MAX_ACTIVE)
        self._bounded = settings.max_active is not None

    def best(self, log_probs: Tensor, frames: list[int]) -> list[Path | None]:
        rows = zip(log_probs.cpu().numpy(), frames, strict=True)
        found = [self._search.best(row[:n]) if n else None for row, n in rows]
        return [None if path is None else Path(*path) for path in found]

    def lattices(self, log_probs: Tensor, frames: list[int]) -> list[Lattice | None]:
        if self._bounded:
            raise UserError(
                "decoder.max_active: kaldi-decoder cannot bound the states of a search for lattices, only k2 can; "
                "remove it, or set backend: k2 (docs/k2.md)"
            )
        rows = zip(log_probs.cpu().numpy(), frames, strict=True)
        found = [self._search.lattice(row[:n]) if n else None for row, n in rows]
        return [None if columns is None else Lattice.of(**columns) for columns in found]


class _K2:
    def __init__(self, k2: Any, arcs: Arcs, settings: GraphDecoding, device: Any):
        from torch import from_numpy

        from lowrank_speech.decoding.graphs.k2_search import K2Search, to_k2

        columns = {"sources": arcs.sources, "finals": arcs.finals}
        names = {"dests": "dst", "ilabels": "ilabel", "olabels": "olabel", "costs": "weight"}
        columns |= {name: arcs.arcs[column] for name, column in names.items()}
        graph = to_k2(k2, **{name: from_numpy(column.copy()) for name, column in columns.items()}, start=arcs.start)
        beams = (settings.search_beam, settings.lattice_beam, settings.max_active or MAX_ACTIVE)
        self._search = K2Search(k2, graph, device, *beams)

    def best(self, log_probs: Tensor, frames: list[int]) -> list[Path | None]:
        return [None if path is None else Path(*path) for path in self._search.best(log_probs, frames)]

    def lattices(self, log_probs: Tensor, frames: list[int]) -> list[Lattice | None]:
        found = self._search.symbol_lattices(log_probs, frames)
        return [None if columns is None else Lattice.of(**columns) for columns in found]


def open_search(graph: Graph, settings: GraphDecoding, source: Any) -> Search:
    """The search of ``graph`` with the back end that ``settings`` choose; sets ``source.device``, where it computes.

    UserError: the back end does not work here.
    """
    arcs = graph.arcs.weighted(settings.lm_weight, settings.insertion)
    k2, device = _choose(settings, source)
    if k2 is None:
        return _Kaldi(arcs, settings)
    source.device = device
    return _K2(k2, arcs, settings, device)


def _choose(settings: GraphDecoding, source: Any) -> tuple[Any, Any]:
    """k2 (None: kaldi-decoder) and the device."""
    if settings.backend == "kaldi":
        return None, None
    from lowrank_speech.decoding.graphs.k2_search import import_k2
    from lowrank_speech.models.device import pick_device

    device = pick_device(source.asked)
    try:
        try:
            k2 = import_k2(device.type)
        except ImportError:
            if source.asked != "auto" or device.type == "cpu":
                raise
            device = pick_device("cpu")  # a k2 without CUDA
            k2 = import_k2()
    except ImportError as error:
        if settings.backend == "k2":
            raise UserError(
                f"decoder.backend: {error}; install the k2 for this torch (docs/k2.md), or set backend: kaldi"
            ) from error
        log.info("the graph is searched by kaldi-decoder: %s", error)
        return None, None
    log.info("the graph is searched by k2 on %s", device)
    return k2, device


class Reader:
    """Makes hypotheses of symbols."""

    def __init__(self, graph: Graph, lang: Any):
        self._graph, self._tokens = graph, lang.tokens
        self._boundary = boundary_of(lang.tokens)

    def text(self, symbols: Sequence[int]) -> str:
        """The text of output symbols."""
        if self._graph.over_words:
            return " ".join(self._graph.symbols[symbol - 1] for symbol in symbols)
        return self._tokens.decode([symbol - 1 for symbol in symbols])

    def ids(self, symbols: Sequence[int]) -> tuple[int, ...]:
        """The token ids of output symbols; words in their first pronunciation."""
        if not self._graph.over_words:
            return tuple(symbol - 1 for symbol in symbols)
        found: list[int] = []
        for symbol in symbols:
            if found and self._boundary is not None:
                found.append(self._boundary)
            found += self._graph.pronunciations[self._graph.symbols[symbol - 1]][0]
        return tuple(found)

    def hypothesis(self, symbols: Sequence[int], score: float) -> Hypothesis:
        """A hypothesis of output symbols."""
        return Hypothesis(self.ids(symbols), self.text(symbols), score)

    def timed(self, hypothesis: Hypothesis, symbols: Sequence[int], log_probs: Tensor, seconds: float) -> Hypothesis:
        """The hypothesis with the times of its words, by the best alignment of its tokens with ``log_probs`` (F, V).

        ``seconds``: duration of a frame. Graphs over tokens have no words, so there are no times.
        """
        spans = aligned(log_probs, hypothesis.ids)
        if not spans or not self._graph.over_words:
            return hypothesis
        words = [self._graph.symbols[symbol - 1] for symbol in symbols]
        return replace(hypothesis, words=timed_words(spans, words, self._graph.pronunciations, self._boundary, seconds))


Ranked = list[tuple[float, tuple[int, ...]]]


def ranked_hypotheses(
    batch: Mapping[str, Any], ranked: Sequence[Ranked], reader: Reader, keep: int
) -> list[Hypothesis]:
    """For each row of a batch the first of its ranked pairs (score, symbols), with times of words.

    ``keep``: how many to list as alternatives, if more than one. No pairs: an empty hypothesis.
    """
    found = []
    rows = zip(ranked, batch["log_probs"], batch["frames"].tolist(), batch["frame_seconds"], strict=True)
    for pairs, log_probs, frames, seconds in rows:
        if not pairs:
            found.append(Hypothesis((), "", stopped=NOTHING))
            continue
        listed = [reader.hypothesis(symbols, score) for score, symbols in pairs[:keep]]
        best = reader.timed(listed[0], pairs[0][1], log_probs[:frames], seconds)
        found.append(replace(best, nbest=tuple(listed) if keep > 1 else ()))
    return found


def graph_of(source: Any, lang: Any) -> Graph:
    """The graph that the decoder reads. UserError: it is of another token set."""
    from lowrank_speech.decoding.ctc.paths import tokens_of

    tokens_of(source, lang)
    graph = source.resources["graph"]
    graph.require(lang.sha256)
    return graph
