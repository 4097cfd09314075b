"""Back end gaussian: a Gaussian for each language, with one covariance for all, on scores or on embeddings.

l_j = m_j' S^-1 x - m_j' S^-1 m_j / 2, with the means m_j and the within-class covariance S of dev, in which all
languages have the same weight. S is shrunk to a multiple of the identity. This is linear discriminant analysis with
equal priors, so scikit-learn estimates it. Scores first lose their constant per segment, which leaves L - 1 dimensions.

Source: Martinez et al., "Language recognition in iVectors space", Interspeech 2011; Ledoit and Wolf, Journal of
Multivariate Analysis 88, 2004 (``shrinkage: null``).
"""

from typing import Literal

import numpy as np

from lowrank_speech.backend import fitting
from lowrank_speech.settings import Share, key, settings


@settings
class Settings:
    """Gaussians with a shared covariance."""

    kind: Literal["gaussian"] = key("gaussian", "a Gaussian for each language, with one covariance for all")
    on: Literal["scores", "embeddings"] = key(
        "scores", "what it reads; embeddings: those that a decoder of kind embeddings writes"
    )
    shrinkage: Share | None = key(
        None, "share of a multiple of the identity in the covariance; null: chosen by Ledoit and Wolf's formula"
    )


def fit(inputs: list[np.ndarray], truth: np.ndarray, languages: int, settings: Settings) -> fitting.Fitted:
    """Train on dev scores (n, L) or embeddings (n, D), with the true language ``truth`` (n,)."""
    from scipy.linalg import helmert
    from sklearn.covariance import LedoitWolf, ShrunkCovariance
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    (x,) = inputs
    basis = helmert(languages) if settings.on == "scores" else np.eye(x.shape[1])  # rows are orthonormal
    x = x @ basis.T
    priors = np.full(languages, 1 / languages)
    # Its own key `shrinkage` would standardise each dimension first, so the result would depend on the basis.
    spread = LedoitWolf() if settings.shrinkage is None else ShrunkCovariance(shrinkage=settings.shrinkage)
    found = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=spread, priors=priors).fit(x, truth)
    weights = np.linalg.lstsq(found.covariance_, found.means_.T, rcond=None)[0].T
    offsets = -0.5 * (weights * found.means_).sum(axis=1)
    # Means are taken from their centre, so that offsets stay small.
    weights = weights - weights.mean(axis=0)
    return fitting.Fitted((weights @ basis,), offsets - offsets.mean())
