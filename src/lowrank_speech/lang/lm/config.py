"""Settings of a language model: a section of `lms`, without the keys that the workflow turns into files."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from lowrank_speech.settings import CountOrZero, key, settings

DEFAULT_ORDER = 3
HIGHEST_ORDER = 6
"""The highest order that can be estimated; KenLM is built for it, too."""


@settings
class LmSettings:
    """An n-gram model that is estimated from text, or one that another program made (``arpa``)."""

    unit: Literal["word", "token", "character"] = key(
        "word", "what it predicts: words, tokens of the token set, or characters with | between words"
    )
    order: Annotated[int, Field(ge=1, le=HIGHEST_ORDER)] | None = key(
        None, f"length of the longest n-grams; null: {DEFAULT_ORDER}, or that of `arpa`"
    )
    prune: tuple[CountOrZero, ...] = key(
        (),
        "drop n-grams with at most this count: a threshold for each order, the last one also for higher orders; "
        "[0, 0, 1] drops trigrams that occur once",
    )
    text: tuple[str, ...] = key((), "further text, one sentence per line: UTF-8 files, plain or .gz")
    language: str | None = key(None, "language code of `text`, for the normaliser; null: unknown")
    arpa: str | None = key(
        None, "a model to take as it is, instead of estimating one: ARPA (plain or .gz) or KenLM binary"
    )

    def __post_init__(self) -> None:
        thresholds(self.order or DEFAULT_ORDER, self.prune)
        if self.arpa is not None:
            given = next((name for name in ("prune", "text", "language") if getattr(self, name)), None)
            if given is not None:
                raise ValueError(f"{given}: the model {self.arpa} is taken as it is; remove {given}, or remove arpa")
        if self.language is not None and not self.text:
            raise ValueError("language: it is the language of `text`, but no text is given; remove it")


def thresholds(order: int, prune: tuple[int, ...]) -> list[int]:
    """The threshold of each order; the last one of ``prune`` holds for all higher orders. ValueError: not valid."""
    if len(prune) > order:
        raise ValueError(
            f"prune: {list(prune)} has {len(prune)} thresholds, but order is {order}; give at most {order}"
        )
    for lower, higher in pairwise(prune):
        if higher < lower:
            raise ValueError(
                f"prune: {list(prune)} decreases from {lower} to {higher}; give each order at least the threshold of "
                f"the order below, because n-grams need their contexts"
            )
    return [*prune, *[prune[-1] if prune else 0] * (order - len(prune))]
