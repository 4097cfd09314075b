"""How results are scored: the settings of the stage ``score`` and of ``lowrank-speech score``, with their defaults.

Standard library only, so that a command line can show the defaults without loading NumPy.
"""

import math
from dataclasses import dataclass
from typing import Literal

Characters = Literal["with-spaces", "without-spaces"]
Eer = Literal["rocch", "nearest"]
EerOver = Literal["pooled", "languages"]
Minimum = Literal["common", "per-language"]
Resample = Literal["auto", "utterances", "speakers"]


@dataclass(frozen=True)
class ScoreOptions:
    """Settings of both scorers; each takes what concerns it.

    bootstrap:  resamples behind an interval; 0 for no intervals
    confidence: mass of the (percentile) interval
    resample:   what is drawn with replacement: utterances, or whole speakers, which is the honest choice where one
                speaker says many utterances; "auto" takes speakers where a speaker map is given
    characters: CER counts the single space between two words as a character (as jiwer and ESPnet do), or not
    confusions: how many of the most frequent confusions to report
    worst:      how many of the worst utterances to report
    minimum:    minimum C_primary with one threshold per cost common to all languages, or with one per language
    eer:        "rocch" (convex hull of the ROC, the value that PAV gives) or "nearest" (point of least |P_miss - P_fa|)
    eer_over:   one EER over the trials of all languages, or the mean of the languages' EERs
    p_target:   the target priors over which C_primary averages; 0.5 and 0.1 are LRE17's and LRE22's
    c_miss, c_fa: costs of a miss and of a false alarm
    """

    bootstrap: int = 1000
    confidence: float = 0.95
    resample: Resample = "auto"
    characters: Characters = "with-spaces"
    confusions: int = 20
    worst: int = 10
    minimum: Minimum = "common"
    eer: Eer = "rocch"
    eer_over: EerOver = "pooled"
    p_target: tuple[float, ...] = (0.5, 0.1)
    c_miss: float = 1.0
    c_fa: float = 1.0

    def __post_init__(self) -> None:
        if self.bootstrap < 0 or self.bootstrap == 1:
            raise ValueError(f"bootstrap: expected 0 (no intervals) or at least 2 resamples, got {self.bootstrap}")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence: expected a value between 0 and 1 (0.95, say), got {self.confidence}")
        for name in ("confusions", "worst"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not self.p_target:
            raise ValueError("p_target: expected at least one target prior, got none")
        for p in self.p_target:
            if not 0 < p < 1:
                raise ValueError(f"p_target: expected priors between 0 and 1, got {p}")
        for name in ("c_miss", "c_fa"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name}: expected a positive cost, got {getattr(self, name)}")

    @property
    def betas(self) -> tuple[float, ...]:
        """beta = C_fa (1 - P) / (C_miss P) for each target prior P."""
        return tuple(self.c_fa * (1 - p) / (self.c_miss * p) for p in self.p_target)
