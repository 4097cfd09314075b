"""Costs of pairs of languages, as in NIST LRE 2011: which languages does a system confuse?

For a pair (a, b), only the segments of a and b count, with the ratio l_a - l_b and equal priors:

    C(a, b) = 1/2 P(decides b | a) + 1/2 P(decides a | b)

Actual: threshold 0 (a tie counts half). Minimum: the best threshold of the pair. 0.5 is chance.
Source: NIST, "The 2011 NIST Language Recognition Evaluation Plan".
"""

from typing import Any

import numpy as np

SINGLE = 20_000_000
"""Trials up to which differences are float64."""
ALL, MOST = 20_000, 1_000
"""Pairs up to which all have a minimum cost, and how many have one if there are more."""


def pair_costs(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Actual and minimum cost (N, N) of each pair, symmetric with diagonal 0, from log-likelihoods (S, N).

    With more than ``ALL`` pairs, the minimum is computed only for the ``MOST`` pairs with the highest actual costs,
    which include all that a system confuses; the others are NaN.
    """
    n = scores.shape[1]
    dtype = np.float64 if scores.size <= SINGLE else np.float32
    won = [_margins(scores[truth == j], j).astype(dtype) for j in range(n)]
    lost = np.stack([(margins < 0).mean(axis=1) + (margins == 0).mean(axis=1) / 2 for margins in won])
    np.fill_diagonal(lost, 0.0)
    actual = (lost + lost.T) / 2
    first, second = np.triu_indices(n, 1)
    minimum = np.zeros((n, n))
    if len(first) > ALL:
        minimum[first, second] = minimum[second, first] = np.nan
        chosen = np.argsort(-actual[first, second], kind="stable")[:MOST]
        first, second = first[chosen], second[chosen]
    for a, b in zip(first, second, strict=True):
        minimum[a, b] = minimum[b, a] = _minimum(won[a][b], -won[b][a])
    return actual, minimum


def _minimum(target: np.ndarray, other: np.ndarray) -> float:
    """Cost at the best threshold, from l_a - l_b of the segments of a and of those of b."""
    u = np.unique(target)
    miss = np.searchsorted(np.sort(target), u, side="left") / len(target)
    alarm = 1 - np.searchsorted(np.sort(other), u, side="left") / len(other)
    return min(1.0, float((miss + alarm).min())) / 2


def _margins(scores: np.ndarray, j: int) -> np.ndarray:
    """l_j - l_i of the segments of language j, (N, n_j). Two scores of -inf are a tie."""
    with np.errstate(invalid="ignore"):
        margins = (scores[:, j : j + 1] - scores).T
    margins[np.isnan(margins)] = 0.0
    return np.ascontiguousarray(margins)


def summary(actual: np.ndarray, minimum: np.ndarray, languages: list[str], most: int = 50) -> dict[str, Any]:
    """As JSON values: means over all pairs (None: not computed), and the ``most`` worst pairs by minimum cost."""
    first, second = np.triu_indices(len(languages), 1)
    least = minimum[first, second]
    order = np.lexsort((second, first, -actual[first, second], -np.nan_to_num(least, nan=-1.0)))[:most]
    return {
        "pairs": len(first),
        "actual": float(actual[first, second].mean()),
        "minimum": None if np.isnan(least).any() else float(least.mean()),
        "worst": [
            [languages[first[k]], languages[second[k]], *(_short(m[first[k], second[k]]) for m in (actual, minimum))]
            for k in order
        ],
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")
