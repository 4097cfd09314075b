"""Scores of label sequences for the prefix beam search: n-grams of words, characters or tokens, and word insertion.

The score of a sequence depends only on the sequence; ``extend`` and ``finish`` spread it over the search. A word n-gram
looks ahead: while a word is spelled, its prefix has the score of the best unigram among the words that begin so. When
the word ends, its real score replaces that. All scores are natural-log values.

N states.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log
from typing import Any

import numpy as np

from lowrank_speech.decoding.ctc.trie import Trie

LN10 = log(10.0)
LEAST = -1000.0
"""Where a model gives a word the probability 0: the search must still be able to compare."""


class Memo:
    """Remembers (score, next state) of numbered questions, in a table that forgets what collides."""

    def __init__(self, answer: Callable[[int], tuple[float, int]], bits: int = 16):
        self._answer, self._shift = answer, np.uint64(64 - bits)
        self._keys = np.full(1 << bits, -1, np.int64)
        self._scores, self._next = np.zeros(1 << bits), np.zeros(1 << bits, np.int64)

    def __call__(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score and next state of each of ``keys`` (N,) int64, not negative."""
        slots = ((keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> self._shift).astype(np.int64)
        scores, after = self._scores[slots], self._next[slots]
        for place in np.flatnonzero(self._keys[slots] != keys).tolist():
            key, slot = int(keys[place]), slots[place]
            if self._keys[slot] != key:
                self._scores[slot], self._next[slot] = self._answer(key)
                self._keys[slot] = key
            scores[place], after[place] = self._scores[slot], self._next[slot]
        return scores, after


class Contexts:
    """Numbers the states of a language model's scorer, and asks it. Probabilities are natural-log values."""

    def __init__(self, scorer: Any):
        self._scorer, self._numbers, self._states = scorer, {}, []
        self.start = self.number(scorer.start())

    def number(self, state: Any) -> int:
        found = self._numbers.setdefault(state, len(self._states))
        if found == len(self._states):
            self._states.append(state)
        return found

    def score(self, number: int, word: str) -> tuple[float, int]:
        score, state = self._scorer.score(self._states[number], word)
        return max(LN10 * score, LEAST), self.number(state)

    def end(self, number: int) -> float:
        return max(LN10 * self._scorer.end(self._states[number]), LEAST)


class Words:
    """A word n-gram over the text; open: any word can be spelled, closed: only words of the model.

    weight     scale of the model
    insertion  added for each word
    unknown    added (and scaled) for each word that the model lacks, besides its probability of <unk>

    State: node of the word's spelling in the trie, context.
    """

    columns = 2

    def __init__(
        self,
        model: Any,
        spelled: Sequence[bytes],
        weight: float,
        insertion: float = 0.0,
        unknown: float = -10.0,
        closed: bool = False,
    ):
        words = sorted(set(model.vocabulary), key=str.encode)
        scorer = model.scorer()
        self._contexts, self._words = Contexts(scorer), [*words, "<unk>"]
        self._weight, self._insertion, self._closed = weight, insertion, closed
        self._trie = Trie([word.encode() for word in words], spelled)
        empty = scorer.empty()
        alone = np.array([LN10 * scorer.score(empty, word)[0] for word in self._words])
        alone[-1] += unknown
        # What is assumed of a word that is not complete; nothing between words. A word that may still become an unknown
        # one has at least its score, so that no letter is a gain.
        best = self._trie.best(alone[:-1], alone[-1])
        self._assumed = weight * np.maximum(best, LEAST if closed else max(alone[-1], LEAST))
        self._assumed[0] = 0.0
        self._bound = np.stack([np.zeros_like(best), max(insertion, 0.0) - self._assumed], axis=1)
        self.ends = self._trie.separates
        self._extra = unknown
        self._ended = Memo(self._end_word)

    def _end_word(self, key: int) -> tuple[float, int]:
        context, word = divmod(key, len(self._words))
        score, after = self._contexts.score(context, self._words[word])
        unknown = word == len(self._words) - 1
        return self._weight * (score + (self._extra if unknown else 0.0)) + self._insertion, after

    def start(self) -> Sequence[int]:
        return 0, self._contexts.start

    def bound(self, states: np.ndarray) -> np.ndarray:
        return self._bound[states[:, 0]]

    def _closing(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What ending the words adds, and the contexts after them. The states are within words."""
        node, context = states.T
        word = self._trie.word[node]
        score, after = self._ended(context * len(self._words) + word)
        score -= self._assumed[node]
        if self._closed:
            score[word == len(self._words) - 1] = -np.inf
        return score, after

    def extend(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        node, context = states[:, 0].copy(), states[:, 1].copy()
        added = np.zeros(len(states))
        ends = np.flatnonzero(self._trie.separates[tokens] & (node != 0))
        if len(ends):
            added[ends], context[ends] = self._closing(states[ends])
            node[ends] = 0
        after = self._trie.step(node, tokens)
        added += self._assumed[after] - self._assumed[node]
        if self._closed:
            added[after == self._trie.outside] = -np.inf
        return added, np.stack([after, context], axis=1)

    def finish(self, states: np.ndarray) -> np.ndarray:
        added, context = np.zeros(len(states)), states[:, 1].copy()
        within = np.flatnonzero(states[:, 0])
        if len(within):
            added[within], context[within] = self._closing(states[within])
        return added + self._weight * np.array([self._contexts.end(number) for number in context.tolist()])


class Units:
    """An n-gram over tokens or characters. State: the context, in which a character model also keeps open blanks."""

    columns = 1

    def __init__(self, model: Any, spelled: Sequence[bytes], weight: float, unk: int):
        self.ends = np.zeros(len(spelled), bool)
        self._weight, self._size, self._spelled = weight, len(spelled), spelled
        self._contexts = Contexts(model.scorer())
        self._unk = unk
        self._characters = model.unit == "character"
        self._known = Memo(self._score)

    def _score(self, key: int) -> tuple[float, int]:
        state, token = divmod(key, self._size)
        context, blank = divmod(state, 3)
        if not self._characters:
            score, after = self._contexts.score(context, "<unk>" if token == self._unk else str(token))
            return self._weight * score, after * 3
        # blank: 0 nothing is written, 1 after a character, 2 a blank is due before the next one
        total = 0.0
        for character in self._spelled[token].decode():
            if character == " ":
                blank = 2 if blank else 0
                continue
            for unit in ("|", character) if blank == 2 else (character,):
                score, context = self._contexts.score(context, "<unk>" if unit == "\ufffd" else unit)
                total += score
            blank = 1
        return self._weight * total, context * 3 + blank

    def start(self) -> Sequence[int]:
        return (self._contexts.start * 3,)

    def bound(self, states: np.ndarray) -> np.ndarray:
        return np.zeros((len(states), 2))

    def extend(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        score, after = self._known(states[:, 0] * self._size + tokens)
        return score, after[:, None]

    def finish(self, states: np.ndarray) -> np.ndarray:
        return self._weight * np.array([self._contexts.end(number // 3) for number in states[:, 0].tolist()])


class WordEnds:
    """Adds ``insertion`` for each word. State: whether a word is being spelled."""

    columns = 1

    def __init__(self, spelled: Sequence[bytes], insertion: float):
        self._insertion = insertion
        self.ends = np.zeros(len(spelled), bool)
        self._words = np.array([len(text.split()) for text in spelled])
        self._before = np.array([text[:1] == b" " for text in spelled])
        self._after = np.array([text[-1:] == b" " for text in spelled])
        self._writes = np.array([bool(text) for text in spelled])

    def start(self) -> Sequence[int]:
        return (0,)

    def bound(self, states: np.ndarray) -> np.ndarray:
        return np.full((len(states), 2), max(self._insertion, 0.0) * self._words.max(initial=0))

    def extend(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        within = states[:, 0] == 1
        # A token that goes on with a word begins one word less than it writes.
        new = self._words[tokens] - (within & ~self._before[tokens] & (self._words[tokens] > 0))
        after = np.where(self._writes[tokens], ~self._after[tokens], within)
        return self._insertion * new, after.astype(np.int64)[:, None]

    def finish(self, states: np.ndarray) -> np.ndarray:
        return np.zeros(len(states))


class Sum:
    """Several scorers together."""

    def __init__(self, parts: Sequence[Any]):
        self._parts = parts
        ends = np.cumsum([0, *(part.columns for part in parts)]).tolist()
        self._slices = [slice(a, b) for a, b in pairwise(ends)]
        self.columns = ends[-1]
        self.ends = np.any([part.ends for part in parts], axis=0)

    def _each(self, states: np.ndarray) -> list[tuple[Any, np.ndarray]]:
        return [(part, states[:, own]) for part, own in zip(self._parts, self._slices, strict=True)]

    def start(self) -> Sequence[int]:
        return tuple(number for part in self._parts for number in part.start())

    def bound(self, states: np.ndarray) -> np.ndarray:
        return sum((part.bound(own) for part, own in self._each(states)), np.zeros((len(states), 2)))

    def extend(self, states: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        added, after = np.zeros(len(states)), np.zeros_like(states)
        for (part, own), place in zip(self._each(states), self._slices, strict=True):
            score, after[:, place] = part.extend(own, tokens)
            added += score
        return added, after

    def finish(self, states: np.ndarray) -> np.ndarray:
        return sum((part.finish(own) for part, own in self._each(states)), np.zeros(len(states)))
