"""Pooled classifier: a linear layer, the mean over the valid frames, and another linear layer.

transformers: ``...ForSequenceClassification``, with the same outputs. ``WhisperForAudioClassification`` has the same
weights, but averages over the whole window of 30 s including padding; this head leaves padding out of the mean.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from lowrank_speech.models.heads.base import Head, draw_linear, within
from lowrank_speech.models.heads.settings import LAYERS, Layers
from lowrank_speech.settings import Count, key, settings


@settings
class PooledSettings:
    kind: Literal["pooled"] = key("pooled", "mean over the frames between two linear layers")
    size: Count = key(256, "outputs of the first linear layer")
    layers: Layers = key("last", LAYERS)


class PooledHead(Head):
    """States (B, F, D) -> logits (B, N)."""

    KIND, SETTINGS, TASK = "pooled", PooledSettings, "classify"
    NAMES: ClassVar = {"projector": "projector", "classifier": "classifier"}

    def __init__(self, settings: PooledSettings, width: int, outputs: int):
        super().__init__(settings)
        self.projector = nn.Linear(width, settings.size)
        self.classifier = nn.Linear(settings.size, outputs)

    def embed(self, states: Tensor, frames: Tensor) -> Tensor:
        """Embeddings (B, E) for states (B, F, D), of which ``frames`` (B,) are valid."""
        hidden = self.projector(states)
        mask = within(frames, hidden.shape[1])
        return (hidden * mask[..., None]).sum(1) / frames.clamp(min=1)[:, None]

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        return self.classifier(self.embed(states, frames))

    def initialise(self, std: float) -> None:
        draw_linear(self.projector, std)
        draw_linear(self.classifier, std)

    @classmethod
    def settings_of(cls, config: Any) -> PooledSettings:
        return PooledSettings(size=config.classifier_proj_size)

    @classmethod
    def configure(cls, config: Any, settings: PooledSettings, outputs: int, labels: Sequence[str] = ()) -> None:
        super().configure(config, settings, outputs, labels)
        config.classifier_proj_size = settings.size
