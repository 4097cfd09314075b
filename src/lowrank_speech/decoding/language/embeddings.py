"""Language scores, and the embedding of each utterance from which the head computes them: a back end reads either."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from lowrank_speech.decoding.base import Hypothesis
from lowrank_speech.decoding.language.posteriors import LanguageDecoding, hypotheses
from lowrank_speech.errors import UserError
from lowrank_speech.settings import key, settings

READS = "model"


@settings
class Settings(LanguageDecoding):
    """Scores and embeddings of a language classifier."""

    kind: Literal["embeddings"] = key(
        "embeddings", "the log-likelihood of each language, and what the head's output layer reads"
    )


def open(source: Any, lang: Any, settings: Settings) -> Callable[[dict[str, Any]], list[Hypothesis]]:
    """Decoder for the network ``source``; see ``decoding.base``. ``lang`` is not used.

    UserError: the head has no embedding, as the language tokens of Whisper's decoder.
    """
    head = source.model.head
    if not hasattr(head, "embed"):
        raise UserError(
            f"decoder: the head {head.KIND} of {source.folder} has no embeddings; use another head, or decoder: scores"
        )

    def decode(batch: dict[str, Any]) -> list[Hypothesis]:
        embedding = head.embed(*source.model.states(batch["features"], batch["lengths"]))
        found = hypotheses(head.classifier(embedding), source, settings)
        rows = embedding.float().cpu().tolist()
        return [replace(one, embedding=tuple(row)) for one, row in zip(found, rows, strict=True)]

    return decode
