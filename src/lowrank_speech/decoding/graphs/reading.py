"""Make hypotheses of what the search of a graph found: text, token ids, times of words."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lowrank_speech.decoding.base import Hypothesis
from lowrank_speech.decoding.ctc.paths import collapse
from lowrank_speech.decoding.ctc.times import aligned
from lowrank_speech.decoding.graphs.searching import Path
from lowrank_speech.decoding.graphs.timing import timed_words
from lowrank_speech.lang.graphs.load import Graph
from lowrank_speech.lang.lexicon import boundary_of

NOTHING = "nothing"
"""Why a hypothesis is empty: no path to the end of the graph survived the beam, or there were no frames."""
Ranked = list[tuple[float, tuple[int, ...]]]
"""Pairs (score, output symbols), the best first."""


class Reader:
    """Reads the output symbols of ``graph``; ``lang`` is the token set."""

    def __init__(self, graph: Graph, lang: Any):
        self._graph, self._tokens, self._boundary = graph, lang.tokens, boundary_of(lang.tokens)

    def of_paths(self, batch: Mapping[str, Any], paths: Sequence[Path | None]) -> list[Hypothesis]:
        """For each row of a batch the hypothesis of its best path, with times of words; None: an empty hypothesis."""
        found = []
        for path, row in zip(paths, _rows(batch), strict=True):
            if path is None:
                found.append(nothing())
                continue
            ids = tuple(collapse(torch.tensor(path.labels)))
            hypothesis = Hypothesis(ids, self._text(path.symbols), path.score)
            found.append(self._timed(hypothesis, path.symbols, *row))
        return found

    def of_ranked(self, batch: Mapping[str, Any], ranked: Sequence[Ranked], keep: int) -> list[Hypothesis]:
        """For each row of a batch the first of its ranked pairs, with times of words (in their first pronunciation).

        ``keep``: how many to list as alternatives, if more than one. No pairs: an empty hypothesis.
        """
        found = []
        for pairs, row in zip(ranked, _rows(batch), strict=True):
            if not pairs:
                found.append(nothing())
                continue
            listed = [Hypothesis(self._ids(symbols), self._text(symbols), score) for score, symbols in pairs[:keep]]
            best = self._timed(listed[0], pairs[0][1], *row)
            found.append(replace(best, nbest=tuple(listed) if keep > 1 else ()))
        return found

    def _text(self, symbols: Sequence[int]) -> str:
        if self._graph.over_words:
            return " ".join(self._words(symbols))
        return self._tokens.decode([symbol - 1 for symbol in symbols])

    def _words(self, symbols: Sequence[int]) -> list[str]:
        return [self._graph.symbols[symbol - 1] for symbol in symbols]

    def _ids(self, symbols: Sequence[int]) -> tuple[int, ...]:
        """The token ids of output symbols; words in their first pronunciation."""
        if not self._graph.over_words:
            return tuple(symbol - 1 for symbol in symbols)
        found: list[int] = []
        for word in self._words(symbols):
            if found and self._boundary is not None:
                found.append(self._boundary)
            found += self._graph.pronunciations[word][0]
        return tuple(found)

    def _timed(
        self, hypothesis: Hypothesis, symbols: Sequence[int], log_probs: Tensor, frame_seconds: float
    ) -> Hypothesis:
        """The hypothesis with the times of its words, by the best alignment of its tokens; none over tokens."""
        if not self._graph.over_words or not (spans := aligned(log_probs, hypothesis.ids)):
            return hypothesis
        pronunciations = self._graph.pronunciations
        words = timed_words(spans, self._words(symbols), pronunciations, self._boundary, frame_seconds)
        return replace(hypothesis, words=words)


def nothing() -> Hypothesis:
    """The hypothesis where nothing survived."""
    return Hypothesis((), "", stopped=NOTHING)


def _rows(batch: Mapping[str, Any]) -> list[tuple[Tensor, float]]:
    """Valid log probabilities (F, V) and duration of a frame of each row."""
    rows = zip(batch["log_probs"], batch["frames"].tolist(), batch["frame_seconds"], strict=True)
    return [(log_probs[:frames], float(seconds)) for log_probs, frames, seconds in rows]
