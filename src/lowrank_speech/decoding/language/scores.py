"""Language scores: the log-likelihood of each language, up to a constant for each segment (``posteriors``)."""

from collections.abc import Callable
from typing import Any, Literal

from lowrank_speech.decoding.base import Hypothesis
from lowrank_speech.decoding.language.posteriors import LanguageDecoding, hypotheses
from lowrank_speech.settings import key, settings

READS = "model"


@settings
class Settings(LanguageDecoding):
    """Scores of a language classifier."""

    kind: Literal["scores"] = key("scores", "the log-likelihood of each language")


def open(source: Any, lang: Any, settings: Settings) -> Callable[[dict[str, Any]], list[Hypothesis]]:
    """Decoder for the network ``source``; see ``decoding.base``. ``lang`` is not used."""

    def decode(batch: dict[str, Any]) -> list[Hypothesis]:
        return hypotheses(source.model.class_logits(batch["features"], batch["lengths"]), source, settings)

    return decode
