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
    """A token in the best alignment: frames start ... end - 1.

    score   log probability of these frames
    before  that of the blanks before them, back to the token before
    after   last token: that of the blanks after it; else 0
    """

    token: int
    start: int
    end: int
    score: float
    before: float = 0.0
    after: float = 0.0


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
    spans, ended = [], 0
    for token, start, after in zip(ids, starts, [*starts[1:], len(path)], strict=True):
        end = start + int((path[start:after] == token).sum())
        spans.append(Span(token, start, end, total[end] - total[start], total[start] - total[ended]))
        ended = end
    spans[-1] = spans[-1]._replace(after=total[-1] - total[ended])
    return spans


def score_of(spans: Sequence[Span]) -> float:
    """Log probability of the whole alignment."""
    return sum(span.score + span.before + span.after for span in spans)


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
            sum(span.score for span in group) + sum(span.before for span in group[1:]),
        )
        for group in groups
    )
