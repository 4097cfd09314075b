"""Settings of the stage ``score`` and of ``lowrank-speech score``.

Imports only pydantic, so that the command line can show defaults without loading NumPy.
"""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, PositiveFloat
from pydantic.dataclasses import dataclass

Characters = Literal["with-spaces", "without-spaces"]
Eer = Literal["rocch", "nearest"]
EerOver = Literal["pooled", "languages"]
Form = Literal["table", "lines", "lre07"]
Minimum = Literal["common", "per-language"]
Normaliser = Literal["none", "house", "whisper-basic", "whisper-english"]
Numbers = Literal["as-written", "words"]
Resample = Literal["auto", "utterances", "speakers", "sources"]


def _none_or_several(number: int) -> int:
    if number == 1:
        raise ValueError("is 1; it must be 0 (no intervals) or at least 2")
    return number


def _rising(edges: tuple[float, ...]) -> tuple[float, ...]:
    if any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"is {list(edges)}; each edge must be above the one before")
    return edges


Most = Annotated[int, Field(ge=0, le=1_000_000)]
Length = Annotated[int, Field(ge=1, le=1_000_000)]
Cost = Annotated[float, Field(gt=0)]
Prior = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ScoreOptions:
    """Settings of both scorers; each one uses only its own.

    Resample speakers if a speaker has many utterances; otherwise the intervals are too narrow.
    """

    bootstrap: Annotated[Most, AfterValidator(_none_or_several)] = Field(
        1000, description="number of bootstrap resamples; 0: no intervals"
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="confidence level of the (percentile) intervals")
    resample: Resample = Field(
        "auto",
        description="units that are drawn with replacement; auto: speakers if they are known, else utterances; "
        "sources: only in language recognition",
    )
    characters: Characters = Field(
        "with-spaces",
        description="whether CER counts the space between two words as a character, as jiwer and ESPnet do",
    )
    normaliser: Normaliser = Field(
        "none",
        description="normalises references and hypotheses before their words are compared; none: as decoded, house: "
        "lower case without punctuation, whisper-basic and whisper-english: as Whisper was scored (docs/stages.md)",
    )
    numbers: Numbers = Field(
        "as-written",
        description="words: spell out digits first, in the language of the utterance; whisper-english does the "
        "opposite in English",
    )
    word_bins: tuple[Length, ...] = Field(
        (5, 10, 20, 40), description="upper ends of the ranges of reference words for the error by length"
    )
    second_bins: tuple[PositiveFloat, ...] = Field(
        (2.0, 5.0, 10.0, 20.0), description="the same in seconds, where the durations are known"
    )
    confusions: Most = Field(20, description="number of most frequent word errors to list")
    worst: Most = Field(10, description="number of worst utterances to list")
    minimum: Minimum = Field(
        "common", description="minimum C_primary: one threshold per cost for all languages, or one per language"
    )
    eer: Eer = Field(
        "rocch", description="EER on the convex hull of the ROC (as with PAV), or where P_miss and P_fa are nearest"
    )
    eer_over: EerOver = Field("pooled", description="one EER over the trials of all languages, or the languages' mean")
    p_target: tuple[Prior, ...] = Field(
        (0.5, 0.1), min_length=1, description="target priors that C_primary averages over; default: LRE17 and LRE22"
    )
    c_miss: Cost = Field(1.0, description="cost of a miss")
    c_fa: Cost = Field(1.0, description="cost of a false alarm")
    durations: Annotated[tuple[Cost, ...], AfterValidator(_rising)] = Field(
        (5.0, 20.0), description="edges in seconds between the durations for which costs are shown apart"
    )

    def __post_init__(self) -> None:
        if self.numbers == "words" and self.normaliser == "none":
            raise ValueError("numbers is words, but normaliser is none; set normaliser: house or whisper-basic")
        for name in ("word_bins", "second_bins"):
            bins = getattr(self, name)
            if any(low >= high for low, high in pairwise(bins)):
                raise ValueError(f"{name} is {list(bins)}; the ends must rise")

    @property
    def betas(self) -> tuple[float, ...]:
        """beta = C_fa (1 - P) / (C_miss P) for each target prior P."""
        return tuple(self.c_fa * (1 - p) / (self.c_miss * p) for p in self.p_target)
