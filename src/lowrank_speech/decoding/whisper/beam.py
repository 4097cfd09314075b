"""Beam search with Whisper, with transformers' ``generate``.

The search ranks hypotheses by log probability / tokens ** ``length_penalty``; the end of text counts as a token. It
ends once no running hypothesis can become better than the ``beam`` finished ones, by transformers' estimate. A
hypothesis that only repeats itself, or reaches its token limit (both as in greedy decoding), is finished too, but a
hypothesis that ended by itself always comes first, because repetitions are likely.

``nbest`` alternatives differ in their text. The score of each is its log probability, as in greedy decoding, without
the length penalty. With ``beam: 1`` the result is that of greedy decoding. At temperatures above 0 the decoder draws
one sample instead of searching.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from lowrank_speech.decoding.base import Hypothesis
from lowrank_speech.decoding.whisper.settings import WhisperDecoding
from lowrank_speech.settings import Count, key, settings

READS = "model"


@settings
class Settings(WhisperDecoding):
    """Beam search with Whisper."""

    kind: Literal["beam"] = key("beam", "the best of several hypotheses that are searched at once")
    beam: Annotated[int, Field(ge=1, le=100)] = key(5, "number of hypotheses that are searched at once")
    nbest: Count = key(1, "number of alternatives to write, at most beam")
    length_penalty: float = key(
        1.0, "hypotheses are ranked by log probability / tokens ** length_penalty", ge=-10, le=10
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nbest > self.beam:
            raise ValueError(f"nbest is {self.nbest}, but beam is {self.beam}; nbest must be at most beam")
        if self.temperatures[0] > 0:
            raise ValueError(
                f"temperatures begins with {self.temperatures[0]}, so the beam would never be used; begin with 0, or "
                f"use kind: greedy"
            )


def open(source: Any, lang: Any, settings: Settings) -> Callable[[dict[str, Any]], list[Hypothesis]]:
    """Decoder for the network ``source``; see ``decoding.base``. UserError: the model was trained with another lang.

    If an utterance has no language, or one that the model does not know, the model detects one.
    """
    from lowrank_speech.decoding.whisper.decoder import Decoder

    return Decoder(source, lang, settings, settings.beam, settings.nbest, settings.length_penalty)
