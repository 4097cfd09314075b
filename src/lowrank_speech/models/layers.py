"""The linear layers of a model that a factorisation or a calibration is about."""

from collections.abc import Sequence

from torch import nn

from lowrank_speech.lowrank.select import select
from lowrank_speech.models.speech import SpeechModel


def dense_layers(model: SpeechModel, layers: str | Sequence[str]) -> dict[str, nn.Linear]:
    """Name (relative to the body) -> layer of what ``layers`` (a group, a pattern, or several) means in the family."""
    return select(model.body, model.layer_patterns(layers), exclude=model.KEPT_OUT)
