"""Cllr: how many bits a system's likelihoods lose, as they are and after the best monotone calibration.

Multiclass Cllr, from log-likelihoods l (S, N), with equal priors:

    Cllr = mean over languages j of the mean over segments s of j of  -log2( exp l_sj / sum_k exp l_sk )

0: all posteriors are 1 for the true language; log2 N: equal likelihoods say nothing. Detection Cllr, from the ratios
lambda of each language against the mean of the others (``detection.llr``), with the weights of C_avg:

    Cllr_det = 1/2 mean_i mean_{s of i} log2(1 + exp -lambda_si)
             + 1/2 mean_{i, j != i} mean_{s of j} log2(1 + exp lambda_si)

Its minimum replaces the ratios by those of pool adjacent violators (PAV): the best function of lambda that never falls.
PAV is the convex hull of the ROC. On a hull edge that takes the share a of the target and b of the non-target weight,
the calibrated ratio is log(a / b), so

    min Cllr_det = 1/2 sum over edges of  a log2(1 + b / a) + b log2(1 + a / b)

Sources: Brummer and van Leeuwen, "On calibration of language recognition scores", Odyssey 2006 (multiclass; FoCal
Multiclass); Brummer and du Preez, "Application-independent evaluation of speaker detection", Computer Speech and
Language 20, 2006 (Cllr and its minimum); Fawcett and Niculescu-Mizil, "PAV and the ROC convex hull", Machine Learning
68, 2007; PYLLR (bsxfan), whose PAV and ROCCH these formulae follow.
"""

from typing import Any

import numpy as np


def log_loss(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """-log2 of the posterior of the true language with equal priors, (S,), from log-likelihoods (S, N)."""
    own = scores[np.arange(len(truth)), truth]
    top = scores.max(axis=1)
    total = np.log(np.exp(scores - top[:, None]).sum(axis=1)) + top
    return (total - own) / np.log(2)


def softplus_bits(x: np.ndarray) -> np.ndarray:
    """log2(1 + exp x), without overflow."""
    return np.logaddexp(0.0, x) / np.log(2)


def hull(p_miss: np.ndarray, p_fa: np.ndarray) -> np.ndarray:
    """Indices of the vertices of the lower convex hull of operating points (K,), from accepting to rejecting.

    The points are sorted: P_miss never falls, P_fa never rises. Both ends, (0, 1) and (1, 0), must be among them.
    """
    kept = np.arange(len(p_miss))
    # Whole passes over the array first: each removes the points above the line through their neighbours.
    for _ in range(8):
        x, y = p_miss[kept], p_fa[kept]
        above = np.zeros(len(kept), dtype=bool)
        above[1:-1] = _turn(x[:-2], y[:-2], x[1:-1], y[1:-1], x[2:], y[2:]) <= 0
        above[1::2] = False  # never two neighbours at once, because each is the reference of the other
        if not above.any():
            break
        kept = kept[~above]
    chain: list[int] = []
    x, y = p_miss[kept].tolist(), p_fa[kept].tolist()
    for i in range(len(kept)):
        while len(chain) > 1 and _turn(x[chain[-2]], y[chain[-2]], x[chain[-1]], y[chain[-1]], x[i], y[i]) <= 0:
            chain.pop()
        chain.append(i)
    return kept[chain]


def _turn(ax: Any, ay: Any, bx: Any, by: Any, cx: Any, cy: Any) -> Any:
    """Positive if the path a, b, c (floats or arrays) turns to the left, that is, b is below the line from a to c."""
    return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)


def minimum(p_miss: np.ndarray, p_fa: np.ndarray) -> float:
    """Minimum detection Cllr in bits, from all operating points (K,) as in :func:`hull`."""
    corners = hull(p_miss, p_fa)
    a, b = np.diff(p_miss[corners]), -np.diff(p_fa[corners])
    a, b = a[(a > 0) & (b > 0)], b[(a > 0) & (b > 0)]  # the other edges are certain: their ratios are infinite
    return float(0.5 * (a * np.log2(1 + b / a) + b * np.log2(1 + a / b)).sum())
