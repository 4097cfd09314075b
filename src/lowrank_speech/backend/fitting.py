"""What all kinds of back end share: weights by language, and the multiclass logistic regression of scales and offsets.

Every language has the same total weight, so the loss in nats is Cllr (``scoring.cllr``) times log 2, and calibrated
scores are log-likelihoods whatever the shares of the languages in dev.

Source: Brummer and van Leeuwen, "On calibration of language recognition scores", Odyssey 2006 (FoCal Multiclass).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowrank_speech.backend.model import log_sum_exp


@dataclass(frozen=True)
class Fitted:
    """What training gives: for each input the weights (L, D), the offsets (L,), and facts for the manifest."""

    weights: tuple[np.ndarray, ...]
    offsets: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)


def shares(truth: np.ndarray, number: int) -> np.ndarray:
    """Weights (n,) of segments with the true language ``truth`` (n,): 1 / (L n_language), so that their sum is 1."""
    return 1.0 / (number * np.bincount(truth, minlength=number)[truth])


def centred(scores: np.ndarray) -> np.ndarray:
    """Scores (n, L) less the mean of each row: a constant per segment says nothing."""
    return scores - scores.mean(axis=1, keepdims=True)


def spread(scores: np.ndarray, truth: np.ndarray) -> float:
    """The root mean square of centred scores (n, L), with equal weights of the languages; 1 if all are equal."""
    return float(np.sqrt(shares(truth, scores.shape[1]) @ (centred(scores) ** 2).mean(axis=1))) or 1.0


def centring(number: int) -> np.ndarray:
    """The matrix (L, L) of ``centred``: centred(x) = x @ centring(L)."""
    return np.eye(number) - 1.0 / number


def scales(
    inputs: Sequence[np.ndarray], truth: np.ndarray, offsets: bool, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """The scales a (K,) and offsets b (L,) that minimise the weighted loss of sum_k a_k x_k + b, x_k (n, L) centred.

        loss = sum_s w_s (log sum_j exp l_sj - l_s,truth) + ridge / 2 * K sum_k (a_k r_k)^2 + ridge / 2 |b|^2

    r_k is the root mean square of x_k, so the unit of the scores does not matter. The loss is convex. Scikit-learn's
    LogisticRegression has a weight for each class and input, so it cannot tie them. Offsets have the sum 0. ``ridge``
    draws towards posteriors of chance, and keeps scales finite if dev has no errors; K copies of a system get a K-th
    each. Without ``offsets`` a scale is at least 0, because a negative one would reverse all decisions.
    """
    from scipy.optimize import minimize

    units = np.array([spread(one, truth) for one in inputs])
    stacked = np.stack([centred(one) for one in inputs]) / units[:, None, None]
    k, n, number = stacked.shape
    weights, rows = shares(truth, number), np.arange(n)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = values[:k], values[k:]
        logits = np.tensordot(a, stacked, axes=1) + (b if offsets else 0.0)
        logs = logits - log_sum_exp(logits)
        slope = np.exp(logs)
        slope[rows, truth] -= 1.0
        slope *= weights[:, None]
        value = -(weights * logs[rows, truth]).sum() + ridge / 2 * (k * (a**2).sum() + (b**2).sum())
        by_scale = np.tensordot(stacked, slope, axes=2) + ridge * k * a
        by_offset = slope.sum(axis=0) + ridge * b if offsets else np.zeros(0)
        return value, np.concatenate([by_scale, by_offset])

    start = np.concatenate([np.full(k, 1 / k), np.zeros(number if offsets else 0)])
    options = {"maxiter": 10_000, "maxfun": 100_000, "ftol": 1e-15, "gtol": 1e-9}
    bounds = None if offsets else [(0.0, None)] * k
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    b = found[k:] if offsets else np.zeros(number)
    return found[:k] / units, b - b.mean()
