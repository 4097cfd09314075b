"""Lattices over words (or tokens): n-best lists, and other language-model scores. Python's standard library only.

A lattice is an acyclic acceptor without epsilons. Scores are natural logs, the higher the better; a path's score is the
sum over its arcs and its final state. Several paths may have the same symbols, with other times or pronunciations; the
best of them counts.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

INFINITE = float("inf")
TOLERANCE = 1e-3
"""The best path survives any beam, although its score is a sum of rounded numbers."""


class Lattice:
    """An acyclic acceptor, which starts in state 0.

    arcs    for each state a list of (symbol, next state, score)
    finals  for each state its final score; -inf: not final
    """

    def __init__(self, arcs: Sequence[Sequence[tuple[int, int, float]]], finals: Sequence[float]):
        self.arcs, self.finals = arcs, finals
        self._order = self._ordered()
        self.rest = self._best_to_the_end()

    @classmethod
    def of(
        cls,
        sources: Sequence[int],
        dests: Sequence[int],
        symbols: Sequence[int],
        scores: Sequence[float],
        finals: Sequence[float],
    ) -> Lattice:
        """A lattice from the columns of its arcs."""
        arcs: list[list[tuple[int, int, float]]] = [[] for _ in finals]
        for source, dest, symbol, score in zip(sources, dests, symbols, scores):
            arcs[source].append((symbol, dest, score))
        return cls(arcs, finals)

    def pruned(self, beam: float) -> Lattice:
        """The lattice without arcs and final states whose best path is worse than the best one by more than ``beam``.

        What is left does not depend on the back end, whose own pruning comes before epsilons are removed.
        """
        least = self.rest[0] - beam - TOLERANCE
        best = [-INFINITE] * len(self.arcs)
        best[0] = 0.0
        arcs: list[list[tuple[int, int, float]]] = [[] for _ in self.arcs]
        finals = [-INFINITE] * len(self.arcs)
        for state in self._order:
            if best[state] + self.finals[state] >= least:
                finals[state] = self.finals[state]
            for arc in self.arcs[state]:
                total = best[state] + arc[2]
                if total + self.rest[arc[1]] >= least:
                    arcs[state].append(arc)
                    best[arc[1]] = max(best[arc[1]], total)
        return Lattice(arcs, finals)

    def _best_to_the_end(self) -> list[float]:
        """The best score from each state to the end."""
        rest = [-INFINITE] * len(self.arcs)
        for state in reversed(self._order):
            best = self.finals[state]
            for _, dest, score in self.arcs[state]:
                best = max(best, score + rest[dest])
            rest[state] = best
        return rest

    def _ordered(self) -> list[int]:
        """The states that can be reached, each before those that follow it. ValueError: there is a cycle."""
        incoming, seen, pending = defaultdict(int), {0}, [0]
        while pending:
            for _, dest, _ in self.arcs[pending.pop()]:
                incoming[dest] += 1
                if dest not in seen:
                    seen.add(dest)
                    pending.append(dest)
        order, ready = [], [0] if not incoming[0] else []
        while ready:
            state = ready.pop()
            order.append(state)
            for _, dest, _ in self.arcs[state]:
                incoming[dest] -= 1
                if not incoming[dest]:
                    ready.append(dest)
        if len(order) != len(seen):
            raise ValueError("the lattice has a cycle")
        return order

    def nbest(self, n: int) -> list[tuple[float, tuple[int, ...]]]:
        """The ``n`` best different sequences of symbols with their scores, the best first; ties by symbols.

        Best-first search over sequences, each with all states that it reaches (a determinization on demand); the best
        score to the end is an exact heuristic, so the first complete sequences are the best ones.
        """
        if self.rest[0] == -INFINITE:
            return []
        heap: list[tuple[float, tuple[int, ...], bool, dict[int, float]]] = [(-self.rest[0], (), False, {0: 0.0})]
        found: list[tuple[float, tuple[int, ...]]] = []
        while heap and len(found) < n:
            cost, symbols, complete, reached = heapq.heappop(heap)
            if complete:
                found.append((-cost, symbols))
                continue
            end = max(score + self.finals[state] for state, score in reached.items())
            if end > -INFINITE:
                heapq.heappush(heap, (-end, symbols, True, {}))
            following: dict[int, dict[int, float]] = defaultdict(dict)
            for state, score in reached.items():
                for symbol, dest, own in self.arcs[state]:
                    total = score + own
                    if total > following[symbol].get(dest, -INFINITE):
                        following[symbol][dest] = total
            for symbol, states in following.items():
                best = max(score + self.rest[state] for state, score in states.items())
                if best > -INFINITE:
                    heapq.heappush(heap, (-best, (*symbols, symbol), False, states))
        return found

    def rescored(self, scorers: Sequence[tuple[Any, float]]) -> Lattice:
        """The lattice with language-model scores added: ``scorers`` are pairs (scorer, weight).

        A scorer has ``start()``, ``score(state, symbol)``, which returns the natural log of a probability and the next
        state, and ``end(state)``. States of the result are those of the lattice together with those of the scorers, so
        no score is an approximation. A negative weight takes away the scores that are already in the lattice.
        """
        begin = (0, *(scorer.start() for scorer, _ in scorers))
        numbers: dict[tuple[Hashable, ...], int] = {begin: 0}
        arcs: list[list[tuple[int, int, float]]] = []
        finals: list[float] = []
        pending = [begin]
        for combined in pending:  # grows while it is read
            state, *histories = combined
            final = self.finals[state]
            if final > -INFINITE:
                final += sum(weight * scorer.end(h) for (scorer, weight), h in zip(scorers, histories))
            finals.append(final)
            row: list[tuple[int, int, float]] = []
            for symbol, dest, own in self.arcs[state]:
                if self.rest[dest] == -INFINITE:
                    continue
                key: tuple[Hashable, ...] = (dest,)
                for (scorer, weight), history in zip(scorers, histories):
                    score, after = scorer.score(history, symbol)
                    own += weight * score
                    key = (*key, after)
                if key not in numbers:
                    numbers[key] = len(numbers)
                    pending.append(key)
                row.append((symbol, numbers[key], own))
            arcs.append(row)
        return Lattice(arcs, finals)
