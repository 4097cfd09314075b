"""Language-model scores of the symbols of a graph, for rescoring: interface in ``Lattice.rescored``."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowrank_speech.lang.graphs.fst import Arcs

DIGITS = 5
"""Digits of costs in states; histories with equal states up to rounding share what follows."""


class Named:
    """A scorer of ``lang.lm.query`` over symbol numbers: symbol i is the word ``names[i - 1]``."""

    def __init__(self, scorer: Any, names: Sequence[str]):
        self._scorer, self._names = scorer, names

    def start(self) -> Any:
        return self._scorer.start()

    def score(self, state: Any, symbol: int) -> tuple[float, Any]:
        found, after = self._scorer.score(state, self._names[symbol - 1])
        return math.log(10) * found, after

    def end(self, state: Any) -> float:
        return math.log(10) * self._scorer.end(state)


State = tuple[tuple[int, float], ...]


class InGraph:
    """The scores that a G with back-off arcs gave a sequence in a graph: those of its best path.

    Where backing off costs less than the n-gram that the ARPA has, they differ from those of the ARPA. A state is the
    set of all states of G that the history can be in, each with what it costs more than the best one (a determinization
    on demand).
    """

    def __init__(self, grammar: Arcs, symbols: int):
        """``symbols``: number of symbols; the input label after them is #0, or 0 where it has been removed."""
        self._fst, self._symbols = grammar, symbols
        self._known: dict[int, tuple[dict[int, tuple[float, int]], list[tuple[float, int]]]] = {}

    def start(self) -> State:
        return ((self._fst.start, 0.0),)

    def score(self, state: State, symbol: int) -> tuple[float, State]:
        found: dict[int, float] = {}
        for source, cost in self._closed(state).items():
            arc = self._arcs(source)[0].get(symbol)
            if arc is not None:
                found[arc[1]] = min(found.get(arc[1], math.inf), cost + arc[0])
        if not found:
            return -math.inf, ()
        best = min(found.values())
        return -best, tuple(sorted((s, round(cost - best, DIGITS)) for s, cost in found.items()))

    def end(self, state: State) -> float:
        finals = self._fst.finals
        return -min((cost + float(finals[source]) for source, cost in self._closed(state).items()), default=math.inf)

    def _closed(self, state: State) -> dict[int, float]:
        """The states that can be reached by backing off, with their costs."""
        found = dict(state)
        pending = list(found)
        while pending:
            source = pending.pop()
            for cost, dest in self._arcs(source)[1]:
                total = found[source] + cost
                if total < found.get(dest, math.inf):
                    found[dest] = total
                    pending.append(dest)
        return found

    def _arcs(self, state: int) -> tuple[dict[int, tuple[float, int]], list[tuple[float, int]]]:
        """Symbol -> (cost, next state), and the back-off arcs."""
        if state not in self._known:
            rows: np.ndarray = self._fst.arcs[self._fst.splits[state] : self._fst.splits[state + 1]]
            found: dict[int, tuple[float, int]] = {}
            backoffs = []
            for label, _, cost, dest in rows.tolist():
                if 0 < label <= self._symbols:
                    found[label] = min((cost, dest), found.get(label, (math.inf, 0)))
                else:
                    backoffs.append((cost, dest))
            self._known[state] = (found, backoffs)
        return self._known[state]
