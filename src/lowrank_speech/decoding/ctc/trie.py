"""The spellings of words as a trie of bytes, and the step of each token in it.

A token may write part of a word, so a word may be cut into tokens in any way. Node 0 is the root, node ``outside`` is
where no word is spelled any more.
"""

from collections.abc import Sequence

import numpy as np

from lowrank_speech.decoding.ctc.spelling import SPACE
from lowrank_speech.errors import UserError

DENSE = 1 << 25
"""Largest table nodes x tokens, in entries of 4 bytes."""


class Trie:
    """``words``: spellings (bytes) in ascending order. ``spelled``: what each token writes, with leading blanks.

    word       (nodes + 1,): number of the word that ends at a node; len(words) for none
    separates  (V,): whether a token begins with a blank, and so ends the word before it
    """

    def __init__(self, words: Sequence[bytes], spelled: Sequence[bytes]):
        self._parents, self._bytes, ends = _built(words)
        self.outside = len(self._parents)
        self.word = np.full(self.outside + 1, len(words), np.int64)
        self.word[ends] = np.arange(len(words))
        self.separates = np.array([text[:1] == b" " for text in spelled])
        self._written = [text.lstrip(b" ") for text in spelled]
        for text in self._written:
            if SPACE in text:
                raise UserError(f"the token {text.decode(errors='replace')!r} writes more than one word")
        self._columns = {byte: self._column(byte) for byte in set(b"".join(self._written))}
        dense = (self.outside + 1) * len(spelled) <= DENSE
        self._table = np.stack([self._stepped(text) for text in self._written], axis=1) if dense else None

    def _column(self, byte: int) -> np.ndarray:
        """(nodes + 1,): the child of each node along ``byte``."""
        column = np.full(self.outside + 1, self.outside, np.int32)
        children = np.flatnonzero(self._bytes == byte)
        column[self._parents[children]] = children
        return column

    def _stepped(self, text: bytes) -> np.ndarray:
        nodes = np.arange(self.outside + 1, dtype=np.int32)
        for byte in text:
            nodes = self._columns[byte][nodes]
        return nodes

    def step(self, nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The node (N,) after each token, without regard to its leading blank."""
        if self._table is not None:
            return self._table[nodes, tokens]
        after = nodes.copy()
        for token in np.unique(tokens).tolist():
            where = np.flatnonzero(tokens == token)
            for byte in self._written[token]:
                after[where] = self._columns[byte][after[where]]
        return after

    def best(self, values: np.ndarray, outside: float) -> np.ndarray:
        """(nodes + 1,): the largest of ``values`` (one per word) of the words that a node begins; ``outside`` there."""
        found = np.append(np.full(self.outside, -np.inf), outside)
        ends = np.flatnonzero(self.word[:-1] < len(values))
        found[ends] = values[self.word[ends]]
        # A child has a higher number than its parent, and the children of one depth are done before that depth.
        for level in reversed(self._levels()):
            np.maximum.at(found, self._parents[level], found[level])
        return found

    def _levels(self) -> list[np.ndarray]:
        depth = np.zeros(self.outside, np.int64)
        for node, parent in enumerate(self._parents.tolist()):
            if node:
                depth[node] = depth[parent] + 1
        return [np.flatnonzero(depth == level) for level in range(1, int(depth.max(initial=0)) + 1)]


def _built(words: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parent and byte of each node (the root's are 0 and -1), and the node at which each word ends."""
    parents, letters, ends = [0], [-1], []
    path, before = [0], b""
    for word in words:
        shared = 0
        while shared < min(len(word), len(before)) and word[shared] == before[shared]:
            shared += 1
        del path[shared + 1 :]
        for byte in word[shared:]:
            parents.append(path[-1])
            letters.append(byte)
            path.append(len(parents) - 1)
        ends.append(path[-1])
        before = word
    return np.array(parents), np.array(letters), np.array(ends, dtype=np.int64)
