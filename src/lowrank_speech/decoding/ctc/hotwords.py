"""A bonus for each hot word (or phrase) in the text of a label sequence, for the prefix beam search.

The text is matched byte by byte against all hot words at once (Aho and Corasick 1975), however it is cut into tokens. A
sequence gets ``weight`` for each occurrence as whole words. While a hot word is being spelled, its prefix already has
its share of the bonus, which it loses if the word goes on differently.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowrank_speech.decoding.ctc.spelling import SPACE
from lowrank_speech.errors import UserError


class HotWords:
    """Scorer (``decoding.ctc.prefixes``) of normalised hot words. State: node of the automaton."""

    columns = 1

    def __init__(self, words: Sequence[str], spelled: Sequence[bytes], weight: float):
        self.ends = np.zeros(len(spelled), bool)
        read = Automaton([f" {' '.join(word.split())} ".encode() for word in dict.fromkeys(words)])
        share, size = np.array(read.share), (len(read.share), len(spelled))
        self._next, found = np.zeros(size, np.int64), np.zeros(size)
        ends = np.zeros(len(share))
        for node in range(len(share)):
            for token, text in enumerate(spelled):
                self._next[node, token], found[node, token] = read(node, text)
            ends[node] = read(node, b" ")[1]
        self._added = weight * (found + share[self._next] - share[:, None])
        self._ends = weight * (ends - share)
        self._most = np.maximum(self._added.max(axis=1), 0.0)[:, None].repeat(2, axis=1)
        self._first = read(0, b" ")[0]

    def start(self) -> Sequence[int]:
        return (self._first,)

    def bound(self, states: np.ndarray) -> np.ndarray:
        return self._most[states[:, 0]]

    def extend(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nodes = states[:, 0]
        return self._added[nodes, tokens], self._next[nodes, tokens][:, None]

    def finish(self, states: np.ndarray) -> np.ndarray:
        return self._ends[states[:, 0]]


class Automaton:
    """Finds patterns, each of which begins and ends with a blank, in a text in which repeated blanks count once.

    share  of each node: the largest share of a pattern that has been read; 0 before and after a pattern
    """

    def __init__(self, patterns: Sequence[bytes]):
        children: list[dict[int, int]] = [{}]
        self.share, self._complete, self._blank = [0.0], [0], [False]
        for pattern in patterns:
            node = 0
            for depth, byte in enumerate(pattern, start=1):
                if byte not in children[node]:
                    children[node][byte] = len(children)
                    children.append({})
                    self.share.append(0.0)
                    self._complete.append(0)
                    self._blank.append(byte == SPACE)
                node = children[node][byte]
                # The blank before a pattern is no share of it, because it comes before every word.
                part = 0.0 if depth == len(pattern) else (depth - 1) / (len(pattern) - 1)
                self.share[node] = max(self.share[node], part)
            self._complete[node] += 1
        self._step = [dict(own) for own in children]
        suffix, queue = [0] * len(children), deque(children[0].values())
        while queue:
            node = queue.popleft()
            self._complete[node] += self._complete[suffix[node]]
            self.share[node] = max(self.share[node], self.share[suffix[node]])
            for byte, child in children[node].items():
                suffix[child] = self._step[suffix[node]].get(byte, 0)
                queue.append(child)
            self._step[node] = {**self._step[suffix[node]], **children[node]}

    def __call__(self, node: int, text: bytes) -> tuple[int, int]:
        """The node after ``text``, and how many patterns it completes."""
        found = 0
        for byte in text:
            if byte == SPACE and self._blank[node]:
                continue
            node = self._step[node].get(byte, 0)
            found += self._complete[node]
        return node, found


def written(words: Sequence[str], lang: Any, where: str) -> list[str]:
    """The normalised hot words. UserError: the tokens of ``lang`` cannot write one; ``where`` names the list."""
    found = []
    for word in words:
        text = lang.normalise(word)
        if not text:
            raise UserError(f"{where}: nothing of {word!r} is left after normalisation; remove it")
        if unseen := lang.tokens.unseen(text):
            shown = ", ".join(map(repr, sorted(unseen)))
            raise UserError(
                f"{where}: {word!r} cannot be written in the tokens of the model, which lack {shown}; remove it, or "
                f"spell it with the characters of the training transcripts"
            )
        found.append(text)
    return found
