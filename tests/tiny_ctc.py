"""Tiny CTC problems for the tests of decoders: random emissions, exhaustive search, token sets, a language model."""

import itertools
import math
from types import SimpleNamespace

import numpy as np

from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
from lowrank_speech.lang.tokens import BLANK, BOUNDARY, UNK, CharTokens


def emissions(rng, frames, symbols, scale=2.0):
    """Random natural-log probabilities (F, V)."""
    logits = rng.normal(0, scale, (frames, symbols))
    return (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)).astype(np.float32)


def collapsed(path):
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol)


def exhaustive(log_probs):
    """Label sequence -> log probability, summed over all of its alignments."""
    found = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = sum(float(log_probs[t, symbol]) for t, symbol in enumerate(path))
        labels = collapsed(path)
        found[labels] = np.logaddexp(found.get(labels, -np.inf), score)
    return found


def characters(letters="ab"):
    """A token set of characters, as ``Lang.load`` returns it."""
    tokens = CharTokens([BLANK, UNK, BOUNDARY, *letters])
    return SimpleNamespace(kind="char", tokens=tokens, sha256="tokens", normalise=Normaliser(NormaliseConfig()))


class Bigrams:
    """A bigram model with fixed random log10 probabilities; its state is the word before. Unknown words are <unk>."""

    def __init__(self, words, unit="word", seed=0):
        self.unit, self.vocabulary, self.order = unit, tuple(words), 2
        rng = np.random.default_rng(seed)
        known = [*words, "<unk>", "</s>"]
        self._table = {(a, b): -float(rng.uniform(0.1, 3)) for a in [None, "<s>", *known] for b in known}

    def check_lang(self, lang, where):
        assert lang.sha256 == "tokens"

    def scorer(self):
        return self

    def start(self):
        return "<s>"

    def empty(self):
        return None

    def score(self, state, word):
        word = word if word in self.vocabulary else "<unk>"
        return self._table[state, word], word

    def end(self, state):
        return self._table[state, "</s>"]

    def sentence(self, words, unknown=0.0):
        """Natural-log probability of a sentence with its end; ``unknown`` is added for each unknown word."""
        total, state = 0.0, "<s>"
        for word in words:
            total += 0.0 if word in self.vocabulary else unknown
            score, state = self.score(state, word)
            total += math.log(10) * score
        return total + math.log(10) * self.end(state)
