"""Stop hypotheses that do not end by themselves in Whisper's ``generate``.

Each row of a batch stops on its own, so the hypothesis of an utterance does not depend on its batch. Whether to stop
depends only on the row's tokens: beam search reorders its rows.

B batch, L tokens generated so far, P periods.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import StoppingCriteria

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
    """Stops a row at its utterance's token limit, or when it loops.

    ``bounds``: maximum number of tokens of each utterance; with several rows per utterance, they follow each other.
    ``prompt``: number of tokens before the first one that is generated.
    """

    def __init__(self, bounds: Sequence[int], eot: int, loops: bool, prompt: int):
        self.bounds, self.eot, self.loops, self.prompt = list(bounds), eot, loops, prompt

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        """Which rows (B,) to stop. ``input_ids``: prompt and tokens so far."""
        tokens = input_ids[:, self.prompt :]
        bounds = torch.tensor(self.bounds, device=tokens.device).repeat_interleave(len(tokens) // len(self.bounds))
        stop = tokens.shape[1] >= bounds
        if self.loops:
            stop = stop | looping(tokens)
        # What follows the end of text is padding.
        return stop & ~(tokens == self.eot).any(-1)

    def reason(self, tokens: Sequence[int], ended: bool, row: int) -> str | None:
        """Why utterance ``row`` stopped at ``tokens``: ``loop``, ``bound``, or None if it ``ended`` by itself.

        generate() pads rows that were stopped with the end of text, so that ``ended`` alone does not tell.
        """
        if self.loops and looping(torch.tensor([list(tokens)], dtype=torch.long)).item():
            return "loop"
        return "bound" if not ended or len(tokens) >= self.bounds[row] else None
