"""Score words with an n-gram model, one at a time: over kenlm where it is installed, else over our own arrays.

    scorer = model.scorer()
    state = scorer.start()                      # after <s>
    score, state = scorer.score(state, "hello") # log10 probability, and the state after the word
    score += scorer.end(state)                  # </s>

States are hashable. Hypotheses with equal states get equal scores for whatever follows, so a search may merge them.
Both kinds of scorers agree to 1e-5. Source: Heafield 2011, KenLM: Faster and Smaller Language Model Queries (states).
"""

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm.ngrams import BOS, EOS, MISSING_UNK, UNK, NGrams

REMEMBERED = 1_000_000
"""Scores that a scorer remembers before it forgets all of them."""


KENLM_ORDERS = range(2, 7)
"""Orders that the package kenlm reads, as it is built by default."""
NEEDS_KENLM = (
    "{path} is a KenLM binary, but the package kenlm is not installed; install it (pip install kenlm; it compiles "
    "C++), or give the model as an ARPA file"
)


class Scorer(Protocol):
    """Interface of scorers. Scores are log10 probabilities; an unknown word gets that of <unk>."""

    def start(self) -> Hashable: ...
    def empty(self) -> Hashable: ...
    def score(self, state: Any, word: str) -> tuple[float, Hashable]: ...
    def end(self, state: Any) -> float: ...
    def knows(self, word: str) -> bool: ...


class OwnScorer:
    """Backs off through the arrays of ``NGrams``. A state is the number of a node."""

    def __init__(self, model: NGrams):
        self._ids, self._size = model.ids, len(model.words)
        first = np.searchsorted(model.key, np.arange(len(model.key) + 1, dtype=np.int64) * self._size)
        # Memory views give plain Python numbers, several times as fast as indexing arrays.
        self._key, self._first = memoryview(model.key), memoryview(first)
        self._prob, self._backoff = memoryview(model.prob), memoryview(model.backoff)
        self._suffix, self._state = memoryview(model.suffix), memoryview(model.state)
        self._known: dict[tuple[int, str], tuple[float, int]] = {}
        self._start = self._state[1 + self._ids[BOS]]

    def start(self) -> int:
        """The state at the beginning of a sentence."""
        return self._start

    def empty(self) -> int:
        """The state without any context."""
        return 0

    def score(self, state: int, word: str) -> tuple[float, int]:
        """Log10 probability of ``word`` in ``state``, and the next state."""
        found = self._known.get((state, word))
        if found is None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = self._known[state, word] = self._look_up(state, self._ids.get(word, self._ids.get(UNK)))
        return found

    def _look_up(self, node: int, word: int | None) -> tuple[float, int]:
        weight = 0.0
        while True:
            if word is not None:
                wanted = node * self._size + word
                child = bisect_left(self._key, wanted, self._first[node], self._first[node + 1])
                if child < self._first[node + 1] and self._key[child] == wanted:
                    return weight + self._prob[child], self._state[child]
            if node == 0:
                return weight + MISSING_UNK, 0
            weight += self._backoff[node]
            node = self._suffix[node]

    def end(self, state: int) -> float:
        """Log10 probability of the end of the sentence in ``state``."""
        return self.score(state, EOS)[0]

    def knows(self, word: str) -> bool:
        """Whether the model has a unigram of ``word``; <unk> does not count."""
        return word != UNK and word in self._ids


class KenlmScorer:
    """Over the package kenlm. A state is a kenlm.State."""

    def __init__(self, path: Path):
        """``path``: an ARPA file or a KenLM binary. UserError: kenlm cannot read it."""
        import kenlm

        config = kenlm.Config()
        config.show_progress = False
        config.arpa_complain = kenlm.ARPALoadComplain.NONE
        try:
            self._model = kenlm.Model(str(path), config)
        except OSError as error:
            raise UserError(f"{path}: kenlm cannot read it: {' '.join(str(error).split())}") from error
        self._new = kenlm.State

    def start(self) -> Any:
        """The state at the beginning of a sentence."""
        state = self._new()
        self._model.BeginSentenceWrite(state)
        return state

    def empty(self) -> Any:
        """The state without any context."""
        state = self._new()
        self._model.NullContextWrite(state)
        return state

    def score(self, state: Any, word: str) -> tuple[float, Any]:
        """Log10 probability of ``word`` in ``state``, and the next state."""
        after = self._new()
        return self._model.BaseScore(state, word, after), after

    def end(self, state: Any) -> float:
        """Log10 probability of the end of the sentence in ``state``."""
        return self._model.BaseScore(state, EOS, self._new())

    def knows(self, word: str) -> bool:
        """Whether the model has a unigram of ``word``."""
        return word in self._model


def has_kenlm() -> bool:
    """Whether the package kenlm is installed."""
    try:
        import kenlm  # noqa: F401
    except ImportError:
        return False
    return True


def sentence_score(scorer: Any, words: Iterable[Any]) -> float:
    """Log probability of a whole sentence with its end, as ``scorer`` scores ``words``: a :class:`Scorer` log10, in
    ``decoding.graphs`` natural logarithms of numbered symbols."""
    state, total = scorer.start(), 0.0
    for word in words:
        score, state = scorer.score(state, word)
        total += score
    return total + scorer.end(state)


def perplexity(scorer: Scorer, sentences: Iterable[Sequence[str]]) -> dict[str, float | int | None]:
    """Perplexities and the rate of unknown words on ``sentences``.

    perplexity               of words and </s>, with unknown words: `Perplexity including OOVs` of KenLM's query
    perplexity_without_oov   the same without unknown words: `Perplexity excluding OOVs`, and SRILM's ppl
    perplexity_of_words      without unknown words and without </s>: SRILM's ppl1
    sentences, words, oov    numbers; ``oov_rate`` is oov / words

    None where there is nothing to average.
    """
    count = words = unknown = 0
    known_total = unknown_total = end_total = 0.0
    for sentence in sentences:
        state = scorer.start()
        count += 1
        for word in sentence:
            score, state = scorer.score(state, word)
            words += 1
            if scorer.knows(word):
                known_total += score
            else:
                unknown += 1
                unknown_total += score
        end_total += scorer.end(state)
    known = words - unknown
    return {
        "sentences": count,
        "words": words,
        "oov": unknown,
        "oov_rate": round(unknown / words, 6) if words else None,
        "perplexity": _exponent(known_total + unknown_total + end_total, words + count),
        "perplexity_without_oov": _exponent(known_total + end_total, known + count),
        "perplexity_of_words": _exponent(known_total, known),
    }


def _exponent(total: float, events: int) -> float | None:
    # Some models give words the probability 0, and 10**400 is no float.
    return round(10.0 ** min(-total / events, 300.0), 4) if events else None
