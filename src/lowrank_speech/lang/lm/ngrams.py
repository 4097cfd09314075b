"""A back-off n-gram model in memory, as arrays: what the estimator makes, what an ARPA file holds, what a query reads.

The n-grams are the nodes of a tree. Node 0 is the empty context; the child of a context by a word is the n-gram that
the word completes. Nodes are numbered by order, within an order by context, within a context by word. So the keys
``context * words + word`` ascend over the whole model, the children of a node are neighbours, and one binary search
finds any n-gram.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
SPECIAL = (UNK, BOS, EOS)
"""Unknown word, begin and end of sentence, as KenLM and ARPA files write them."""

MISSING_UNK = -100.0
"""Log10 probability of an unknown word in a model without <unk>, as in KenLM."""


@dataclass(frozen=True, eq=False)
class NGrams:
    """A model with the nodes described above.

    words    the words in the order of their ids
    order    length of the longest n-grams
    starts   first node of each order 0 ... ``order``, then the number of nodes
    key      (nodes,) int64, ascending: node of the context * len(words) + id of the last word; -1 for node 0
    prob     (nodes,) log10 of the probability of the last word after the context
    backoff  (nodes,) log10 of the weight of shorter contexts, where the n-gram is a context; else 0
    """

    words: tuple[str, ...]
    order: int
    starts: tuple[int, ...]
    key: np.ndarray
    prob: np.ndarray
    backoff: np.ndarray

    @property
    def counts(self) -> list[int]:
        """Number of n-grams of each order, 1 first."""
        return [self.starts[n + 1] - self.starts[n] for n in range(1, self.order + 1)]

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Word -> id."""
        return {word: i for i, word in enumerate(self.words)}

    def find(self, context: np.ndarray, word: np.ndarray) -> np.ndarray:
        """Nodes of the n-grams that ``word`` (ids) completes after ``context`` (nodes); -1 where there is none."""
        return find(self.key, context.astype(np.int64) * len(self.words) + word)

    @functools.cached_property
    def suffix(self) -> np.ndarray:
        """(nodes,) int32: the longest proper suffix of each n-gram that is in the model; 0 for unigrams and node 0."""
        return suffixes(self.key, self.starts, len(self.words))

    @functools.cached_property
    def state(self) -> np.ndarray:
        """(nodes,) int32: the node that predicts like each n-gram as a context: its longest suffix with an effect.

        Contexts of full length, and those without continuation and with weight 1, predict as their suffix does.
        """
        first = np.searchsorted(self.key, np.arange(len(self.key) + 1, dtype=np.int64) * len(self.words))
        void = (np.diff(first) == 0) & (self.backoff == 0)
        state = np.arange(len(self.key), dtype=np.int32)
        for n in range(1, self.order + 1):
            nodes = slice(self.starts[n], self.starts[n + 1])
            state[nodes] = np.where(void[nodes] | (n == self.order), state[self.suffix[nodes]], state[nodes])
        return state

    def columns(self, nodes: np.ndarray, n: int) -> list[np.ndarray]:
        """The word ids of ``nodes`` of order ``n``: an array for each position."""
        found: list[np.ndarray] = []
        for _ in range(n):
            nodes, word = np.divmod(self.key[nodes], len(self.words))
            found.append(word)
        return found[::-1]


def find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Indices of ``wanted`` in the ascending ``keys``; -1 where there is none."""
    if not len(keys):
        return np.full(len(wanted), -1)
    at = np.searchsorted(keys, wanted)
    at[at == len(keys)] = 0
    return np.where(keys[at] == wanted, at, -1)


def suffixes(key: np.ndarray, starts: Sequence[int], words: int) -> np.ndarray:
    """See ``NGrams.suffix``. Pruned models may lack the next shorter suffix; then a shorter one takes its place."""
    result = np.zeros(len(key), dtype=np.int32)
    for n in range(2, len(starts) - 1):
        nodes = np.arange(starts[n], starts[n + 1])
        context, word = np.divmod(key[nodes], words)
        at = result[context].astype(np.int64)  # a suffix of the context, ever shorter
        while len(nodes):
            found = find(key, at * words + word)
            hit = found >= 0
            result[nodes[hit]] = found[hit]
            # Without a context left, the suffix is empty: the word has no unigram of its own.
            left = ~hit & (at > 0)
            nodes, word, at = nodes[left], word[left], result[at[left]].astype(np.int64)
    return result
