"""Search the tokens of windows of speech: language detection, no-speech probability, guards with temperature fallback.

B batch, C mel bands, W frames of the window, T encoder frames, D hidden size, L prompt length.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrank_speech.decoding.whisper.codes import Codes
from lowrank_speech.decoding.whisper.generate import Generated, Options, generate
from lowrank_speech.models.speech import SpeechModel

NO_SPEECH = "no_speech"


@dataclass(frozen=True)
class Window:
    """A window to search. ``prompt``: all tokens before the text; ``sot``: the place of <|startoftranscript|> in it;
    ``bound``: maximum number of tokens; ``name``: identifies the window, for the draws."""

    prompt: tuple[int, ...]
    sot: int
    bound: int
    name: str


@dataclass(frozen=True)
class Found:
    """The result for a window: ``best``, and ``nbest`` alternatives with it as the first.

    ``no_speech``: probability that there is no speech, if it was asked for; ``dropped``: it says that there is none.
    """

    best: Generated
    nbest: tuple[Generated, ...]
    temperature: float
    no_speech: float | None = None
    dropped: bool = False


@dataclass(frozen=True)
class Guards:
    """See ``whisper.settings``. ``text``: tokens -> text."""

    temperatures: tuple[float, ...]
    compression_ratio: float | None
    log_prob: float | None
    no_speech: float | None
    seed: int
    text: Callable[[list[int]], str]

    def dropped(self, best: Generated, no_speech: float | None) -> bool:
        if self.no_speech is None or no_speech is None or no_speech <= self.no_speech:
            return False
        return self.log_prob is None or average(best) < self.log_prob

    def refuses(self, best: Generated) -> bool:
        """Whether to try the next temperature."""
        if self.compression_ratio is not None and compression_ratio(self.text(best.tokens)) > self.compression_ratio:
            return True
        return self.log_prob is not None and average(best) < self.log_prob


def average(found: Generated) -> float:
    """Mean log probability of a token, the end of text included."""
    return found.score / (len(found.tokens) + 1)


def compression_ratio(text: str) -> float:
    """Bytes of ``text`` by the bytes that zlib makes of it; high for repetitions. transformers has a ratio of token
    ids, for which another threshold holds (1.35)."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


class Search:
    """Searches with ``model``. ``probability``: compute no-speech probabilities."""

    def __init__(self, model: SpeechModel, codes: Codes, options: Options, guards: Guards, probability: bool):
        self.model, self.codes, self.options, self.guards = model, codes, options, guards
        self.probability = probability or guards.no_speech is not None

    def encode(self, mel: Tensor) -> Tensor:
        """Log-mel (B, C, W) -> encoder states (B, T, D)."""
        return self.model.body.encoder(mel).last_hidden_state

    def detect(self, states: Tensor, allowed: Sequence[str] | None) -> list[str]:
        """The most likely language of each row, of those ``allowed`` (None: of all)."""
        names = list(self.codes.languages if allowed is None else allowed)
        start = torch.full((len(states), 1), self.codes.sot, device=states.device)
        logits = self.model.decoder_logits(states, start)[:, -1]
        best = logits[:, [self.codes.languages[name] for name in names]].argmax(-1)
        return [names[i] for i in best.tolist()]

    def __call__(self, states: Tensor, windows: Sequence[Window]) -> list[Found]:
        """The results for ``states`` (B, T, D) of B windows."""
        found: list[Any] = [None] * len(windows)
        # One call for each length of prompt: padding would change sums, and with them results. Beam search copies the
        # keys and values of the encoder for each hypothesis, so it gets fewer windows at once.
        for rows in _alike(windows, max(1, len(windows) // self.options.beam)):
            silence = self._no_speech(states[rows], [windows[i] for i in rows])
            for number, temperature in enumerate(self.guards.temperatures):
                picked = states if len(rows) == len(states) else states[rows]
                passed = self._pass(picked, [windows[i] for i in rows], temperature)
                last, again = number == len(self.guards.temperatures) - 1, []
                for i, results in zip(rows, passed, strict=True):
                    dropped = self.guards.dropped(results[0], silence.get(windows[i]))
                    found[i] = Found(results[0], tuple(results), temperature, silence.get(windows[i]), dropped)
                    if not last and not dropped and self.guards.refuses(results[0]):
                        again.append(i)
                rows = again
                if not rows:
                    break
        return found

    def _pass(self, states: Tensor, windows: Sequence[Window], temperature: float) -> list[list[Generated]]:
        prompts, bounds = [window.prompt for window in windows], [window.bound for window in windows]
        seeds = [_seed(self.guards.seed, window.name, temperature) for window in windows]
        return generate(self.model, self.codes, states, prompts, bounds, self.options, temperature, seeds)

    def _no_speech(self, states: Tensor, windows: Sequence[Window]) -> dict[Window, float]:
        """The probability of the no-speech token after <|startoftranscript|>, if it is asked for."""
        if not self.probability:
            return {}
        end = windows[0].sot + 1
        start = torch.tensor([window.prompt[:end] for window in windows], device=states.device)
        logits = self.model.decoder_logits(states, start)[:, -1]
        values = logits.float().softmax(-1)[:, self.codes.no_speech].tolist()
        return dict(zip(windows, values, strict=True))


def _alike(windows: Sequence[Window], most: int) -> Iterator[list[int]]:
    """The indices of at most ``most`` windows whose prompts have the same shape, until all are given."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, window in enumerate(windows):
        groups.setdefault((len(window.prompt), window.sot), []).append(i)
    for rows in groups.values():
        yield from (rows[first : first + most] for first in range(0, len(rows), most))


def _seed(seed: int, name: str, temperature: float) -> int:
    """A seed for the draws of a window, which its batch does not change."""
    return (seed << 31) ^ zlib.crc32(f"{name} {temperature}".encode())
