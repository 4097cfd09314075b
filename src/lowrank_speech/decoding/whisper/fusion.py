"""Shallow fusion: an n-gram model scores hypotheses while Whisper searches them.

    score = log p(tokens) + lm_weight * log p(text) + insertion * words

p(text) includes the end of the sentence. ``unit: word``: the text is normalised, as for the model, and a word counts
as soon as a token begins the next word or the text ends; until then nobody knows which word it is. It works for every
Whisper, if the language separates words by blanks. ``unit: token``: the model scores every token; for the token sets of
bases from scratch.

Source: Gulcehre et al. 2015, On Using Monolingual Corpora in Neural Machine Translation (shallow fusion).

R rows (hypotheses), V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from lowrank_speech.decoding.whisper.codes import Codes
from lowrank_speech.errors import UserError

TEN = math.log(10)
REMEMBERED = 100_000
"""Texts whose scores are kept."""

Fused = Callable[[int], LogitsProcessor]
"""Length of the prompt -> processor for a search."""


def fusion(model: Any, lang: Any, tokens: Any, codes: Codes, weight: float, insertion: float, size: int) -> Fused:
    """The processor for the language model ``model``; ``size``: V. UserError: the model does not fit."""
    model.check_lang(lang, "decoder.lm")
    if model.unit == "word":
        shared: Any = Words(model.scorer(), lang, tokens, codes, size)
    elif model.unit == "token" and lang.tokens is not None:
        shared = Tokens(model.scorer(), tokens, codes, size)
    else:
        raise UserError(
            f"decoder.lm: {model.folder} is a model of {model.unit}s; this decoder takes one with unit: word"
            + (" or token" if lang.tokens is not None else "")
        )
    return lambda prompt: Fusion(shared, codes, weight, insertion, prompt)


class Fusion(LogitsProcessor):
    """Turns scores (R, V) into log probabilities and adds the language model's."""

    def __init__(self, shared: Any, codes: Codes, weight: float, insertion: float, prompt: int):
        self.shared, self.weight, self.insertion, self.prompt = shared, weight, insertion, prompt
        self.codes, self.names = codes, {i: name for name, i in codes.languages.items()}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        log_probs = scores.float().log_softmax(-1)
        added = [
            self.shared(
                self.codes.written(row[self.prompt :]),
                next((self.names[token] for token in row[: self.prompt] if token in self.names), None),
            )
            for row in input_ids.tolist()
        ]
        lm, words = (torch.stack(parts).to(log_probs) for parts in zip(*added, strict=True))
        return log_probs + self.weight * lm + self.insertion * words


class Words:
    """What a word model says of each token: log probability of the words that it ends (nats), and their number."""

    def __init__(self, scorer: Any, lang: Any, tokens: Any, codes: Codes, size: int):
        self.scorer, self.lang, self.tokens, self.codes = scorer, lang, tokens, codes
        self.letter = tokens.encode("a")
        self.begins = torch.tensor([self._begins(token) for token in range(size)])
        self.known: dict[tuple[str, ...], tuple[float, Any]] = {(): (0.0, scorer.start())}

    def _begins(self, token: int) -> bool:
        """Whether a word begins at this token, or after it: its text begins or ends with a blank."""
        if token in (self.codes.eot, self.codes.sot) or self.codes.is_time(token):
            return False
        # Between letters, because some token sets remove blanks at the ends of a text.
        said = self.tokens.decode([*self.letter, token, *self.letter])
        return any(character.isspace() for character in said)

    def __call__(self, tokens: Sequence[int], language: str | None) -> tuple[Tensor, Tensor]:
        tokens = list(tokens)
        cut = next((i for i in range(len(tokens) - 1, 0, -1) if self.begins[tokens[i]]), 0)
        before, now = self._words(tokens[:cut], language), self._words(tokens, language)
        (first, _), (last, state) = self._score(before), self._score(now)
        lm = torch.zeros(len(self.begins))
        lm[self.begins] = last - first
        lm[self.codes.eot] = last - first + TEN * self.scorer.end(state)
        words = torch.zeros(len(self.begins))
        words[self.begins] = words[self.codes.eot] = len(now) - len(before)
        return lm, words

    def _words(self, tokens: list[int], language: str | None) -> tuple[str, ...]:
        return tuple(self.lang.normalise(self.tokens.decode(tokens), language).split())

    def _score(self, words: tuple[str, ...]) -> tuple[float, Any]:
        found = self.known.get(words)
        if found is None:
            if len(self.known) >= REMEMBERED:
                self.known = {(): self.known[()]}
            total, state = self._score(words[:-1])
            score, state = self.scorer.score(state, words[-1])
            found = self.known[words] = total + TEN * score, state
        return found


class Tokens:
    """The same for a model of tokens, which scores each of them at once."""

    def __init__(self, scorer: Any, tokens: Any, codes: Codes, size: int):
        self.scorer, self.codes, self.size = scorer, codes, size
        special = {codes.eot, codes.sot, codes.no_timestamps, *codes.languages.values(), *codes.tasks.values()}
        self.symbols = {i: "<unk>" if i == tokens.unk else str(i) for i in range(size) if i not in special}
        self.known: dict[tuple[int, ...], tuple[Any, Tensor]] = {}

    def __call__(self, tokens: Sequence[int], language: str | None) -> tuple[Tensor, Tensor]:
        lm = self._after(tuple(tokens))[1]
        words = torch.zeros(self.size)
        words[list(self.symbols)] = 1.0
        return lm, words

    def _after(self, tokens: tuple[int, ...]) -> tuple[Any, Tensor]:
        """The state after ``tokens``, and what the model says of each token that may follow."""
        found = self.known.get(tokens)
        if found is None:
            if len(self.known) >= REMEMBERED // 100:
                self.known.clear()
            state = self.scorer.start()
            for token in tokens:
                state = self.scorer.score(state, self.symbols.get(token, "<unk>"))[1]
            lm = torch.zeros(self.size)
            for token, symbol in self.symbols.items():
                lm[token] = TEN * self.scorer.score(state, symbol)[0]
            lm[self.codes.eot] = TEN * self.scorer.end(state)
            found = self.known[tokens] = state, lm
        return found
