"""Costs of pairs of languages, as in NIST LRE 2011: which languages does a system confuse?

For a pair (a, b), only the segments of a and b count, with the ratio l_a - l_b and equal priors:

    C(a, b) = 1/2 P(decides b | a) + 1/2 P(decides a | b)

Actual: threshold 0 (a tie counts half). Minimum: the best threshold of the pair. 0.5 is chance.
Source: NIST, "The 2011 NIST Language Recognition Evaluation Plan".
"""

import numpy as np

SINGLE = 20_000_000
"""Trials from which differences are float32."""


def pair_costs(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Actual and minimum cost (N, N) of each pair, symmetric with diagonal 0, from log-likelihoods (S, N)."""
    n = scores.shape[1]
    dtype = np.float64 if scores.size <= SINGLE else np.float32
    won = [_margins(scores[truth == j], j).astype(dtype) for j in range(n)]
    actual, minimum = np.zeros((n, n)), np.zeros((n, n))
    for a in range(n):
        for b in range(a):
            target, other = won[a][b], -won[b][a]  # l_a - l_b of the segments of a, and of those of b
            lost = (target < 0).mean() + (target == 0).mean() / 2 + (other > 0).mean() + (other == 0).mean() / 2
            u = np.unique(target)
            miss = np.searchsorted(np.sort(target), u, side="left") / len(target)
            alarm = 1 - np.searchsorted(np.sort(other), u, side="left") / len(other)
            actual[a, b] = actual[b, a] = lost / 2
            minimum[a, b] = minimum[b, a] = min(1.0, (miss + alarm).min()) / 2
    return actual, minimum


def _margins(scores: np.ndarray, j: int) -> np.ndarray:
    """l_j - l_i of the segments of language j, (N, n_j). Two scores of -inf are a tie."""
    with np.errstate(invalid="ignore"):
        margins = (scores[:, j : j + 1] - scores).T
    margins[np.isnan(margins)] = 0.0
    return np.ascontiguousarray(margins)


def summary(
    actual: np.ndarray, minimum: np.ndarray, languages: list[str], most: int = 50
) -> dict[str, float | int | list]:
    """As JSON values: means over all pairs, and the ``most`` worst pairs by minimum cost, the worst first."""
    first, second = np.triu_indices(len(languages), 1)
    order = np.lexsort((second, first, -actual[first, second], -minimum[first, second]))[:most]
    return {
        "pairs": len(first),
        "actual": float(actual[first, second].mean()),
        "minimum": float(minimum[first, second].mean()),
        "worst": [
            [languages[first[k]], languages[second[k]], *(_short(m[first[k], second[k]]) for m in (actual, minimum))]
            for k in order
        ],
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")
