"""Estimate an interpolated modified Kneser-Ney model from counts, as KenLM's lmplz does.

    corpus = Corpus()
    corpus.add(["a", "sentence"])
    model, facts = estimate(corpus, order=3, prune=(0, 0, 1))

Counts. N-grams of the highest order, and those that begin with <s>, have their count in the text; the others have
the number of different words before them. Each sentence is read as <s> w1 ... wn </s>.

Discounts. For each order, D1, D2 and D3+ from the numbers n1 ... n4 of n-grams with (adjusted) count 1 ... 4:
Y = n1 / (n1 + 2 n2), Dk = k - (k + 1) Y n(k+1) / nk. On small texts some nk is zero or Dk leaves its range; then
``FALLBACK`` takes their place, as lmplz does with --discount_fallback, and ``facts`` names the order.

Probabilities. p(w | h) = (a(h w) - D) / a(h .) + g(h) p(w | h'), where h' is h without its first word and g(h), the
back-off weight in the ARPA file, is what the discounts leave. The lowest order is the uniform distribution over all
words with </s> and <unk>, but without <s>. So <unk> gets the share of a word that never occurred. A text may contain
<unk> (token sets write rare characters so); then it counts like a word.

Pruning. Order n loses n-grams whose count in the text is at most prune[n - 1]; what they had goes into g. Discounts
are computed before. <unk>, <s> and </s> are never pruned.

Source: Chen and Goodman 1998, An Empirical Study of Smoothing Techniques for Language Modeling, eq. 26 and section 4.1;
Heafield et al. 2013, Scalable Modified Kneser-Ney Language Model Estimation; lm/builder of KenLM.
"""

from array import array
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm.config import HIGHEST_ORDER, thresholds
from lowrank_speech.lang.lm.ngrams import BOS, EOS, SPECIAL, NGrams

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of lmplz where a text is too small or too regular to compute them."""

_UNK, _BOS, _EOS = range(3)


class Corpus:
    """The sentences to count, as one array of word ids (4 bytes a word)."""

    def __init__(self) -> None:
        self._ids: defaultdict[str, int] = defaultdict(count().__next__)
        for word in SPECIAL:
            self._ids.__getitem__(word)  # takes the next id
        self._text = array("i")
        self.sentences = 0

    def add(self, words: Sequence[str], times: int = 1) -> None:
        """Add a sentence, ``times`` times. UserError: it contains <s> or </s>, which only the model may add."""
        for word in (BOS, EOS):
            if word in words:
                raise UserError(f"the text contains the word {word}, which marks the ends of sentences; remove it")
        sentence = array("i", [_BOS, *map(self._ids.__getitem__, words), _EOS])
        self._text.extend(sentence if times == 1 else sentence * times)
        self.sentences += times

    @property
    def words(self) -> int:
        """Number of words, without <s> and </s>."""
        return len(self._text) - 2 * self.sentences

    def arrays(self) -> tuple[list[str], np.ndarray]:
        """The words, first the special ones, then the others sorted; and the text as (int32) ids in that order."""
        words = [*SPECIAL, *sorted(self._ids.keys() - set(SPECIAL))]
        rank = np.empty(len(words), dtype=np.int32)
        rank[[self._ids[word] for word in words]] = np.arange(len(words), dtype=np.int32)
        return words, rank[np.frombuffer(self._text, dtype=np.int32)]

    def counts(self) -> dict[str, int]:
        """Word -> its count in the text, sorted; without <s> and </s>, and without <unk> if it does not occur."""
        words, text = self.arrays()
        found = np.bincount(text, minlength=len(words)).tolist()
        return {word: n for word, n in zip(words, found, strict=True) if n and word not in (BOS, EOS)}


@dataclass(frozen=True)
class _Level:
    """The different n-grams of one order in the text, sorted by context and last word.

    context, word   index of the context in the order below, id of the last word
    raw             count in the text
    suffix          index of the n-gram without its first word, in the order below
    begins          whether its first word is <s>
    """

    context: np.ndarray
    word: np.ndarray
    raw: np.ndarray
    suffix: np.ndarray
    begins: np.ndarray


def estimate(corpus: Corpus, order: int, prune: Sequence[int] = ()) -> tuple[NGrams, dict[str, Any]]:
    """Estimate a model of ``order``; ``prune``: see ``config.thresholds``.

    Also returns the facts: for each order, 1 first, n-grams in the text (``counted``), n-grams in the model
    (``ngrams``), and ``discounts``; and the orders whose discounts are the fallback (``fallback``). The model has a
    lower order if no n-grams of the highest ones are left: KenLM reads no empty orders.
    UserError: the order is out of range, or there is no sentence.
    """
    if not 1 <= order <= HIGHEST_ORDER:
        raise UserError(f"order is {order}; it must be from 1 to {HIGHEST_ORDER}")
    if not corpus.sentences:
        raise UserError("there is no sentence to count")
    limits = thresholds(order, tuple(prune))
    words, text = corpus.arrays()
    levels = _levels(text, len(words), order)
    level = next(levels)
    facts: dict[str, Any] = {"counted": [], "ngrams": [], "discounts": [], "fallback": []}
    parts = _Parts(words)
    for n in range(1, order + 1):
        above = next(levels, None)
        adjusted = level.raw if above is None else _adjusted(level, above)
        if n == 1:
            adjusted[_BOS] = 0
        kept = level.raw > limits[n - 1]
        if n == 1:
            kept[: len(SPECIAL)] = True
        discounts = _discounts(adjusted)
        if discounts is None:
            discounts = FALLBACK
            facts["fallback"].append(n)
        parts.add(level, adjusted, kept, np.array([0.0, *discounts]))
        facts["counted"].append(int(np.count_nonzero(level.raw)))
        facts["ngrams"].append(int(np.count_nonzero(kept)))
        facts["discounts"].append([round(d, 6) for d in discounts])
        level = above
    return parts.model(max(n for n, left in enumerate(facts["ngrams"], start=1) if left)), facts


def _levels(text: np.ndarray, words: int, order: int):
    """Yield the n-grams of each order. ``at`` holds the index of the n-gram that ends at each position of the text."""
    counted = np.bincount(text, minlength=words)
    nothing = np.zeros(words, dtype=np.int32)
    word = np.arange(words, dtype=np.int32)
    yield _Level(nothing, word, np.where(word == _BOS, 0, counted), nothing, word == _BOS)
    begins = word == _BOS
    starts = np.flatnonzero(text == _BOS)
    offset = np.arange(len(text), dtype=np.int32)
    offset -= np.repeat(starts, np.diff(np.append(starts, len(text)))).astype(np.int32)
    at = text
    for n in range(2, order + 1):
        # From its n-th word on, a sentence has an n-gram at each position.
        ends = np.flatnonzero(offset >= n - 1).astype(np.int32)
        key, inverse, raw = np.unique(
            at[ends - 1] * np.int64(words) + text[ends], return_inverse=True, return_counts=True
        )
        inverse = inverse.astype(np.int32)
        suffix = np.empty(len(key), dtype=np.int32)
        suffix[inverse] = at[ends]
        context, word = (part.astype(np.int32) for part in np.divmod(key, words))
        del key
        begins = begins[context]
        at = np.full(len(text), -1, dtype=np.int32)
        at[ends] = inverse
        del ends, inverse
        yield _Level(context, word, raw, suffix, begins)


def _adjusted(level: _Level, above: _Level) -> np.ndarray:
    """Numbers of different words before each n-gram; counts in the text for those that begin with <s>."""
    return np.where(level.begins, level.raw, np.bincount(above.suffix, minlength=len(level.raw)))


def _discounts(adjusted: np.ndarray) -> tuple[float, ...] | None:
    """D1, D2 and D3+; None: they cannot be computed, or are out of range."""
    n = np.bincount(np.minimum(adjusted, 5), minlength=6)
    if not n[1:4].all():
        return None
    y = n[1] / (n[1] + 2.0 * n[2])
    found = tuple(float(k - (k + 1) * y * n[k + 1] / n[k]) for k in (1, 2, 3))
    # lmplz accepts a discount of 0, which would give a context the back-off weight 0 and words the probability 0.
    return found if all(0 < d <= k for k, d in enumerate(found, start=1)) else None


class _Parts:
    """Collects the nodes of the model, order by order."""

    def __init__(self, words: Sequence[str]):
        self._words = list(words)
        self._starts, self._keys = [0, 1], [np.array([-1], dtype=np.int64)]
        self._probs, self._backoffs = [np.zeros(1)], []
        self._nodes = np.zeros(1, dtype=np.int64)  # of the order below: index in the text -> node
        self._below: np.ndarray | None = None  # probabilities of the order below
        self._kept = np.ones(1, dtype=bool)
        self._ids: np.ndarray | None = None

    def add(self, level: _Level, adjusted: np.ndarray, kept: np.ndarray, discounts: np.ndarray) -> None:
        """Add an order; ``discounts`` by count 0 to 3+."""
        contexts = len(self._nodes)
        total = np.bincount(level.context, weights=adjusted, minlength=contexts)
        taken = discounts[np.minimum(adjusted, 3)]
        gamma = np.bincount(level.context, weights=np.where(kept, taken, adjusted), minlength=contexts)
        # N-grams that are no context have weight 1.
        gamma = np.divide(gamma, total, out=np.ones(contexts), where=total > 0)
        if self._below is None:
            below = np.full(len(adjusted), 1 / (np.count_nonzero(kept) - 1))  # without <s>
            self._ids = np.cumsum(kept) - 1
            self._words = [word for word, stays in zip(self._words, kept.tolist(), strict=True) if stays]
        else:
            below = self._below[level.suffix]
        prob = (adjusted - taken) / total[level.context] + gamma[level.context] * below
        if self._below is None:
            prob[_BOS] = 1  # never predicted; as in lmplz
        self._backoffs.append(np.log10(gamma[self._kept]))
        self._keys.append(self._nodes[level.context[kept]] * len(self._words) + self._ids[level.word[kept]])
        self._probs.append(np.minimum(np.log10(prob[kept]), 0))
        self._nodes = np.cumsum(kept) - 1 + self._starts[-1]
        self._starts.append(self._starts[-1] + int(np.count_nonzero(kept)))
        self._below, self._kept = prob, kept

    def model(self, order: int) -> NGrams:
        """The model of the orders up to ``order``; higher ones have no n-gram."""
        backoffs = [*self._backoffs, np.zeros(np.count_nonzero(self._kept))]
        backoffs[0] = np.zeros(1)  # of the empty context, which has no shorter one
        arrays = [np.concatenate(part) for part in (self._keys, self._probs, backoffs)]
        return NGrams(tuple(self._words), order, tuple(self._starts[: order + 2]), *arrays)
