"""Points to draw: DET curve and reliability diagram, few enough for score.json.

DET: P_fa and P_miss with one threshold for all languages, weighted as in C_avg. The points are operating points of the
system: the corners of the convex hull, and others at even distances along the curve on normal-deviate axes.
Reliability: segments in bins of their confidence (the posterior of the decision, with equal priors); a calibrated
system is right on 80 % of the segments of confidence 0.8. ECE is the mean distance over all segments.
Sources: Martin et al., "The DET curve in assessment of detection task performance", Eurospeech 1997; Guo et al., "On
calibration of modern neural networks", ICML 2017 (ECE).
"""

from statistics import NormalDist
from typing import Any

import numpy as np

from lowrank_speech.scoring.cllr import hull
from lowrank_speech.scoring.trials import Curve

POINTS = 200


def det(curve: Curve, number: int = POINTS) -> dict[str, list[float]]:
    """At most ``number`` operating points: ``threshold`` (lowest accepted ratio), ``p_fa``, ``p_miss``.

    The ends, where everything is accepted or rejected, are left out.
    """
    inside = np.arange(1, len(curve.threshold) - 1)
    if len(inside) > number:
        corners = hull(curve.p_miss, curve.p_fa)
        corners = corners[(corners > 0) & (corners < len(curve.threshold) - 1)]
        corners = corners[np.linspace(0, len(corners) - 1, min(len(corners), number // 2)).round().astype(int)]
        x, y = (_deviates(rate[inside]) for rate in (curve.p_fa, curve.p_miss))
        along = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
        even = np.searchsorted(along, np.linspace(0, along[-1], number - len(corners)))
        inside = np.union1d(corners, inside[np.minimum(even, len(inside) - 1)])
    columns = {"threshold": curve.threshold, "p_fa": curve.p_fa, "p_miss": curve.p_miss}
    # A ratio can be infinite (likelihood 0), which JSON does not know.
    inside = inside[np.isfinite(curve.threshold[inside])]
    return {name: [float(f"{v:.6g}") for v in values[inside]] for name, values in columns.items()}


def _deviates(rates: np.ndarray) -> np.ndarray:
    """Normal deviates by interpolation, from 1e-5 to 1 - 1e-5; enough to space points evenly."""
    z = np.linspace(-4.3, 4.3, 1000)
    return np.interp(rates, [NormalDist().cdf(v) for v in z], z)


def reliability(bins: np.ndarray) -> dict[str, Any]:
    """From ``Survey.reliability`` (K, 3): bins with segments as ``segments``, ``confidence``, ``accuracy``; ``ece``."""
    count, confidence, right = bins[bins[:, 0] > 0].T
    return {
        "ece": float(np.abs(right - confidence).sum() / count.sum()),
        "segments": [int(c) for c in count],
        "confidence": [float(f"{v:.6g}") for v in confidence / count],
        "accuracy": [float(f"{v:.6g}") for v in right / count],
    }
