"""When tokens and words are spoken: the best alignment of a label sequence with CTC emissions.

F frames, V vocabulary, L labels.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torchaudio
from torch import Tensor

from lowrank_speech.decoding.base import Word
from lowrank_speech.decoding.ctc.paths import BLANK


class Span(NamedTuple):
    """A token in the best alignment: frames start ... end - 1. ``score``: their log probability, with the blanks that
    follow until the next token."""

    token: int
    start: int
    end: int
    score: float


def needed(ids: Sequence[int]) -> int:
    """The least number of frames for a label sequence: equal neighbours need a blank between them."""
    return len(ids) + sum(a == b for a, b in pairwise(ids))


def aligned(log_probs: Tensor, ids: Sequence[int]) -> list[Span]:
    """The best alignment of ``ids`` with ``log_probs`` (F, V); empty if there is none (F < ``needed``, or -inf)."""
    if not ids or len(log_probs) < needed(ids):
        return []
    log_probs = log_probs.nan_to_num(nan=-torch.inf, neginf=-torch.inf)[None]
    path, scores = torchaudio.functional.forced_align(
        log_probs, torch.tensor([list(ids)], dtype=torch.int32), blank=BLANK
    )
    path, scores = path[0], scores[0].double()
    if not torch.isfinite(scores).all():
        return []
    # A token begins where the path has it and did not have it in the frame before.
    begins = (path != BLANK) & (path != torch.cat([torch.tensor([BLANK], dtype=path.dtype), path[:-1]]))
    starts = begins.nonzero().flatten().tolist()
    total = torch.cat([torch.zeros(1, dtype=torch.float64), scores.cumsum(0)]).tolist()
    spans = []
    for token, start, after in zip(ids, starts, [*starts[1:], len(path)], strict=True):
        run = path[start:after]
        spans.append(Span(token, start, start + int((run == token).sum()), total[after] - total[start]))
    return spans


def words_of(spans: Sequence[Span], spelled: Sequence[bytes], seconds: float) -> tuple[Word, ...]:
    """The words that the tokens write, with times in seconds and log probabilities.

    ``spelled``: the bytes that each token writes (``decoding.ctc.spelling``); ``seconds``: duration of a frame.
    """
    groups: list[list[Span]] = []
    new = True
    for span in spans:
        text = spelled[span.token]
        new = new or text[:1] == b" "
        if text.strip(b" "):
            if new:
                groups.append([])
            groups[-1].append(span)
            new = text[-1:] == b" "
    return tuple(
        Word(
            b"".join(spelled[span.token] for span in group).decode(errors="replace").strip(),
            group[0].start * seconds,
            group[-1].end * seconds,
            sum(span.score for span in group),
        )
        for group in groups
    )
