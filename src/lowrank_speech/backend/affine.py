"""Back end affine: l = W x + b by multiclass logistic regression on dev scores.

``scale: matrix`` has a full matrix W (L, L), ``scale: one`` one number for all languages, as FoCal Multiclass. The
matrix can undo confusions that one number cannot, but it has L (L + 1) parameters, so it needs more dev speech.
"""

from typing import Literal

import numpy as np

from lowrank_speech.backend import fitting
from lowrank_speech.settings import NotNegative, key, settings


@settings
class Settings:
    """A matrix (or a scale), and an offset for each language."""

    kind: Literal["affine"] = key("affine", "a matrix and an offset for each language")
    scale: Literal["matrix", "one"] = key(
        "matrix", "matrix: every score depends on all languages; one: a scale for all languages, as FoCal"
    )
    ridge: NotNegative = key(1e-3, "penalty on the squares of the weights; finite ones if dev has no errors")


def fit(inputs: list[np.ndarray], truth: np.ndarray, languages: int, settings: Settings) -> fitting.Fitted:
    """Train on dev scores (n, L) with the true language ``truth`` (n,)."""
    if settings.scale == "one":
        (scale,), offsets = fitting.scales(inputs, truth, offsets=True, ridge=settings.ridge)
        return fitting.Fitted((scale * fitting.centring(languages),), offsets, {"scale": float(scale)})
    from sklearn.linear_model import LogisticRegression

    unit = fitting.spread(inputs[0], truth)  # so that the penalty does not depend on the unit of the scores
    x = fitting.centred(inputs[0]) / unit
    # Scikit-learn sums the loss over segments, with class weights of mean 1: ridge / 2 |W|^2 + its mean.
    strength = np.inf if settings.ridge == 0 else 1.0 / (settings.ridge * len(x))
    # newton-cg, because lbfgs stops where probabilities still move by 1e-5.
    fit = LogisticRegression(C=strength, class_weight="balanced", solver="newton-cg", tol=1e-8, max_iter=1000)
    found = fit.fit(x, truth)
    weights, offsets = _both(found.coef_ / unit, found.intercept_)
    return fitting.Fitted((weights @ fitting.centring(languages),), offsets - offsets.mean())


def _both(coefficients: np.ndarray, intercepts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A row for each language; for two languages, scikit-learn has only the difference."""
    if len(coefficients) > 1:
        return coefficients, intercepts
    return np.vstack([-coefficients, coefficients]) / 2, np.concatenate([-intercepts, intercepts]) / 2
