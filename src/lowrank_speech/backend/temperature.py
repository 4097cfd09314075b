"""Back end temperature: all scores of a system are divided by one number; decisions do not change.

l = x / T, with T from a multiclass logistic regression on dev. Source: Guo et al., "On calibration of modern neural
networks", ICML 2017; the scale of FoCal Multiclass without its offsets.
"""

from typing import Literal

import numpy as np

from lowrank_speech.backend import fitting
from lowrank_speech.settings import NotNegative, key, settings


@settings
class Settings:
    """One temperature for all languages."""

    kind: Literal["temperature"] = key("temperature", "one scale for all languages")
    ridge: NotNegative = key(1e-3, "penalty on the square of the scale; keeps it finite if dev has no errors")


def fit(inputs: list[np.ndarray], truth: np.ndarray, languages: int, settings: Settings) -> fitting.Fitted:
    """Train on dev scores (n, L) with the true language ``truth`` (n,)."""
    (scale,), offsets = fitting.scales(inputs, truth, offsets=False, ridge=settings.ridge)
    weights = scale * fitting.centring(languages)
    return fitting.Fitted((weights,), offsets, {"scale": float(scale)})
