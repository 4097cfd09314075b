"""Greedy CTC decoding: take the best symbol of each frame, merge repeats, drop blanks.

The score is the log probability of that path, summed over its frames.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from lowrank_speech.decoding.base import Decoding, Hypothesis
from lowrank_speech.settings import key, settings

if TYPE_CHECKING:
    from torch import Tensor

    from lowrank_speech.models.speech import SpeechModel

READS = "model"


@settings
class Settings(Decoding):
    """Greedy decoding of a CTC model."""

    kind: Literal["greedy"] = key("greedy", "the best symbol of each frame")


def open(source: Any, lang: Any, settings: Settings) -> Callable[[dict[str, Any]], list[Hypothesis]]:
    """Decoder for the network ``source``; see ``decoding.base``. UserError: the model was trained with another lang."""
    from lowrank_speech.decoding.ctc.paths import tokens_of

    tokens = tokens_of(source, lang)

    def decode(batch: dict[str, Any]) -> list[Hypothesis]:
        found = best_paths(source.model, batch["features"], batch["lengths"])
        return [Hypothesis(tuple(ids), tokens.decode(ids), score) for ids, score in found]

    return decode


def best_paths(model: "SpeechModel", features: "Tensor", lengths: "Tensor") -> list[tuple[list[int], float]]:
    """Labels and log probability of the best path of each utterance. ``features``, ``lengths``: input of ``model``."""
    from lowrank_speech.decoding.ctc.paths import collapse

    logits, frames = model.ctc_logits(features, lengths)
    best = logits.max(-1)
    log_probs = (best.values - logits.logsumexp(-1)).cpu()
    rows = zip(best.indices.cpu(), log_probs, frames.tolist(), strict=True)
    return [(collapse(path[:n]), float(scores[:n].sum())) for path, scores, n in rows]
