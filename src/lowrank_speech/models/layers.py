"""Select the linear layers of a model for factorisation or calibration."""

from collections.abc import Sequence

from torch import nn

from lowrank_speech.lowrank.select import select
from lowrank_speech.models.speech import SpeechModel


def dense_layers(model: SpeechModel, layers: str | Sequence[str]) -> dict[str, nn.Linear]:
    """Name (relative to the body) -> layer, for the ``layers`` (a group of the family, a pattern, or several)."""
    return select(model.body, model.layer_patterns(layers), exclude=model.KEPT_OUT)
