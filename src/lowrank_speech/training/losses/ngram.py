"""The token n-gram of LF-MMI, estimated from the targets of the training cuts.

    ngram = NGram.of(targets, vocabulary=30, order=2)   # deterministic
    ngram.graph()                                       # for ``denominator``
    ngram.log_probability([3, 5])                       # of these tokens and the end of the sentence
    arpa.write(ngram.model, "ngram.arpa")               # its words are the ids

Interpolated modified Kneser-Ney (``lang.lm.estimate``). The share of unknown words goes to the tokens that no target
has, in equal parts; if there are none, the unigrams are scaled to sum to one. So every token sequence has a
probability, and all of them sum to one.

A context is a tuple of token ids, the latest last; 0, which is blank elsewhere, stands for the start of the sentence.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from lowrank_speech.lang.lm.estimate import Corpus, estimate
from lowrank_speech.lang.lm.ngrams import BOS, EOS, UNK, NGrams
from lowrank_speech.training.losses.denominator import Graph

START, END = 0, -1
Context = tuple[int, ...]


class NGram:
    """An n-gram over the tokens 1 to ``vocabulary`` - 1; ``model``: over their ids as text."""

    def __init__(self, model: NGrams, vocabulary: int):
        self.model, self.vocabulary = model, vocabulary
        self._probs: dict[Context, dict[int, float]] = {}
        self._weights: dict[Context, float] = {}
        self._unpack()
        self._contexts = [(token,) for token in range(1, vocabulary)] + [(START,)]
        self._contexts += sorted(c for c in self._probs if len(c) > 1)
        self._index = {context: i for i, context in enumerate(self._contexts)}

    @classmethod
    def of(cls, targets: Iterable[Sequence[int]], vocabulary: int, order: int) -> "NGram":
        """Estimate it. UserError: there are no targets, or the order is out of range."""
        corpus = Corpus()
        for target in targets:
            corpus.add([str(token) for token in target])
        return cls(estimate(corpus, order)[0], vocabulary)

    def _unpack(self) -> None:
        """Read probabilities and back-off weights from the model, in the order of their lengths."""
        model, special = self.model, {UNK: None, BOS: START, EOS: END}
        ids = [special[word] if word in special else int(word) for word in model.words]
        probs, weights = np.power(10.0, model.prob).tolist(), np.power(10.0, model.backoff).tolist()
        for n in range(1, model.order + 1):
            nodes = np.arange(model.starts[n], model.starts[n + 1])
            for node, *gram in zip(nodes.tolist(), *(c.tolist() for c in model.columns(nodes, n)), strict=True):
                context = tuple(ids[word] for word in gram)
                if None not in context and (n == 1 or context[-1] != START):
                    self._probs.setdefault(context[:-1], {})[context[-1]] = probs[node]
                self._weights[context] = weights[node]
        unigrams = self._probs[()]
        unknown = probs[1 + model.ids[UNK]]
        unigrams.pop(START, None)
        unseen = [token for token in range(1, self.vocabulary) if token not in unigrams]
        explicit = self._explicit()
        unigrams.update(dict.fromkeys(unseen, unknown / max(len(unseen), 1)))
        scale = 1.0 if unseen else 1.0 / (1.0 - unknown)
        for token in unigrams:
            unigrams[token] *= scale
        # The longer contexts on top of the new unigrams.
        for context in sorted(explicit, key=len):
            shorter, weight = self._shorter(context)
            for token, value in explicit[context].items():
                self._probs[context][token] = value + weight * self.probability(shorter, token)

    def _explicit(self) -> dict[Context, dict[int, float]]:
        """What each context adds to the probabilities of shorter ones; at least 0, apart from rounding."""
        found = {}
        for context in filter(None, self._probs):
            shorter, weight = self._shorter(context)
            found[context] = {
                token: max(value - weight * self.probability(shorter, token), 0.0)
                for token, value in self._probs[context].items()
            }
        return found

    def _shorter(self, context: Context) -> tuple[Context, float]:
        """The context that ``context`` backs off to, and its weight."""
        return context[1:], self._weights.get(context, 1.0)

    def probability(self, context: Context, token: int) -> float:
        """P(token | context); ``END`` is the end of the sentence."""
        weight = 1.0
        while token not in self._probs.get(context, ()):
            context, factor = self._shorter(context)
            weight *= factor
        return weight * self._probs[context][token]

    def _after(self, context: Context) -> Context:
        """The longest suffix of ``context`` that predicts differently from shorter ones."""
        while context not in self._index:
            context = context[1:]
        return context

    def log_probability(self, tokens: Sequence[int]) -> float:
        """log P of a sequence and its end. ValueError: a token is not in the vocabulary."""
        context, total = (START,), 0.0
        for token in tokens:
            if not 0 < token < self.vocabulary:
                raise ValueError(f"the token {token} is not one of the n-gram's, 1 to {self.vocabulary - 1}")
            total += math.log(self.probability(context, token))
            context = self._after((*context, token))
        return total + math.log(self.probability(context, END))

    def graph(self) -> Graph:
        """The arcs between contexts, on the CPU."""
        index, arcs, shorter, empty = self._index, [], [], []
        for context, here in index.items():
            below, weight = self._shorter(context)
            for token in self._probs.get(context, ()):
                if token == END:
                    continue
                own, other = self.probability(context, token), weight * self.probability(below, token)
                there, elsewhere = (index[self._after((*c, token))] for c in (context, below))
                if there == elsewhere:
                    arcs.append((here, there, max(own - other, 0.0)))
                else:
                    arcs += [(here, there, own), (here, elsewhere, -other)]
            share, at = 1.0, context
            while at:
                if at in index:
                    shorter.append((here, index[at], share))
                at, weight = self._shorter(at)
                share *= weight
            empty.append(share)
        rows = [torch.tensor([row[:2] for row in part], dtype=torch.int64).reshape(-1, 2).T for part in (arcs, shorter)]
        values = [torch.tensor([row[2] for row in part], dtype=torch.float64) for part in (arcs, shorter)]
        return Graph(
            last=torch.tensor([context[-1] for context in self._contexts]),
            start=torch.tensor(index[START,]),
            arcs=rows[0],
            weights=values[0],
            shorter=rows[1],
            share=values[1],
            empty=torch.tensor(empty, dtype=torch.float64),
            unigram=torch.tensor([self._probs[()][t] for t in range(1, self.vocabulary)], dtype=torch.float64),
            final=torch.tensor([self.probability(c, END) for c in self._contexts], dtype=torch.float64),
        )
