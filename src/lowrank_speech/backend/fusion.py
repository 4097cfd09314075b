"""Back end fusion: l = sum_k a_k x_k + b, one weight for each system and an offset for each language.

Multiclass logistic regression. Source: Brummer and van Leeuwen, Odyssey 2006 (FoCal Multiclass).
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from lowrank_speech.backend import fitting
from lowrank_speech.settings import REQUIRED, NotNegative, key, settings


@settings
class Settings:
    """A weighted sum of the scores of several systems."""

    kind: Literal["fusion"] = key("fusion", "one weight for each system, and an offset for each language")
    systems: Annotated[tuple[str, ...], Field(min_length=2)] = key(
        REQUIRED, "what is fused: a list of methods (of the row's own base), or base/method"
    )
    ridge: NotNegative = key(1e-3, "penalty on the squares of weights and offsets; finite ones if dev has no errors")

    def __post_init__(self) -> None:
        if len(set(self.systems)) < len(self.systems):
            raise ValueError(f"systems is {list(self.systems)}; name each system once")


def fit(inputs: list[np.ndarray], truth: np.ndarray, languages: int, settings: Settings) -> fitting.Fitted:
    """Train on the dev scores (n, L) of every system, with the true language ``truth`` (n,)."""
    found, offsets = fitting.scales(inputs, truth, offsets=True, ridge=settings.ridge)
    weights = tuple(scale * fitting.centring(languages) for scale in found)
    return fitting.Fitted(weights, offsets, {"scales": [float(scale) for scale in found]})
