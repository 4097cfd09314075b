"""Token error rate: hypotheses as decoded against the tokens of the references.

Tokens are the symbols of the token set: characters with the word boundary, pieces, or Whisper's byte-level pieces. The
text normaliser of scoring does not change them. A decoder may write a word in other pieces than the token set does;
each difference counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lowrank_speech.scoring import asr, bootstrap
from lowrank_speech.scoring.options import ScoreOptions

COUNTS = ["tokens", "token_substitutions", "token_deletions", "token_insertions"]


def counts(pairs: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> np.ndarray:
    """(S, 4) int: tokens of each reference, substitutions, deletions, insertions."""
    return np.array([asr.count(ref, hyp) for ref, hyp in pairs.values()], dtype=np.int64).reshape(-1, 4)


def rates(sums: np.ndarray) -> np.ndarray:
    """Token error rate (...) of summed counts (..., 4); NaN without a token."""
    total = sums[..., 0]
    return np.divide(sums[..., 1:].sum(-1), total, out=np.full(total.shape, np.nan), where=total > 0)


def summary(found: np.ndarray, units: np.ndarray, options: ScoreOptions, seed: int) -> dict[str, Any]:
    """``ter``, its ``interval`` ([low, high] or None) and the summed counts; ``found`` (S, 4) from :func:`counts`.

    ``units`` (S,): the bootstrap unit of each row.
    """
    ter, interval = float(rates(found.sum(0).astype(np.float64))), None
    if options.bootstrap and bootstrap.varies(units):
        blocks = bootstrap.weights(units, options.bootstrap, seed)
        interval = bootstrap.interval(np.concatenate([rates(block @ found) for block in blocks]), options.confidence)
    sums = dict(zip(COUNTS, map(int, found.sum(0)), strict=True))
    return {"ter": None if np.isnan(ter) else ter, "interval": interval, **sums}
