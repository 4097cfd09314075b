"""Stop utterances that do not end by themselves in Whisper's ``generate``, and sum their log probabilities.

Each row of a batch stops on its own, so the hypothesis of an utterance does not depend on its batch.

B batch, L tokens generated so far, P periods.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

PERIODS = 16
"""Length of the longest n-gram whose repetition is detected."""
REPEATS, LEAST = 4, 32
"""Minimum number of repetitions, and of repeated tokens, in a loop. Nobody says a word 32 times in a row."""

_WINDOW = max(REPEATS * PERIODS, LEAST)


def looping(tokens: Tensor) -> Tensor:
    """Which rows (B,) of ``tokens`` (B, L) end with a repeated n-gram."""
    if tokens.shape[1] < LEAST:
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    # Pad before the first token with negative numbers, all different, which cannot be tokens.
    missing = max(0, _WINDOW - tokens.shape[1])
    before = -1 - torch.arange(missing, device=tokens.device).expand(len(tokens), -1)
    tail = torch.cat([before, tokens[:, -_WINDOW:]], dim=1)
    period = torch.arange(1, PERIODS + 1, device=tokens.device)[:, None]
    place = torch.arange(_WINDOW, device=tokens.device)[None, :]
    same = tail[:, None, :] == tail[:, (place - period).clamp(min=0)]  # (B, P, _WINDOW)
    # A run of n tokens has period p if each of its last n - p tokens equals the one p positions before.
    outside = place < _WINDOW - (REPEATS * period).clamp(min=LEAST) + period
    return (same | outside).all(-1).any(-1)


class Stop(StoppingCriteria):
    """Stops a row at its own token limit, or when it loops.

    ``bounds``: (B,) maximum number of tokens of each row. After ``generate``, ``lengths`` (B,) has the number of tokens
    of the rows that were stopped, and 0 for those that ended by themselves; ``looped`` (B,) marks the loops.
    """

    def __init__(self, bounds: Tensor, eot: int, loops: bool):
        self.bounds, self.eot, self.loops = bounds, eot, loops
        self.prompt: int | None = None
        self.ended = torch.zeros_like(bounds, dtype=torch.bool)
        self.looped = torch.zeros_like(bounds, dtype=torch.bool)
        self.lengths = torch.zeros_like(bounds)

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        """Which rows (B,) to stop. ``input_ids``: prompt and tokens so far."""
        if self.prompt is None:
            self.prompt = input_ids.shape[1] - 1  # called with the first token
        number = input_ids.shape[1] - self.prompt
        self.ended |= input_ids[:, -1] == self.eot
        going = ~self.ended & (self.lengths == 0)
        loops = looping(input_ids[:, self.prompt :]) if self.loops else torch.zeros_like(going)
        stop = going & (loops | (number >= self.bounds))
        self.looped |= stop & loops
        self.lengths = torch.where(stop, number, self.lengths)
        return self.lengths > 0


class Likelihood(LogitsProcessor):
    """Records the log probability of each greedy choice, and does not change the scores."""

    def __init__(self):
        self.steps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.steps.append(scores.amax(-1) - scores.logsumexp(-1))
        return scores

    def sums(self, counts: list[int]) -> list[float]:
        """Log probability of the first ``counts`` choices of each row."""
        steps = torch.stack(self.steps, dim=1).double().cpu()
        return [float(row[:n].sum()) for row, n in zip(steps, counts, strict=True)]
