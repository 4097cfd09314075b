"""Statistics pooling: mean and standard deviation of the states over the valid frames, then the output layer.

Without the deviation and with ``classifier: orthonormal`` it is the orthonormal-linear classifier.

Source: Snyder et al., "Deep neural network embeddings for text-independent speaker verification", Interspeech 2017.

B batch, F frames, D size of the states, E size of the embedding.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from lowrank_speech.models.heads.base import within
from lowrank_speech.models.heads.classifier import ClassifierHead
from lowrank_speech.models.heads.frames import statistics, uniform
from lowrank_speech.models.heads.settings import ClassifierSettings
from lowrank_speech.settings import Count, key, settings


@settings
class StatisticsSettings(ClassifierSettings):
    kind: Literal["statistics"] = key("statistics", "mean and standard deviation over the frames, and the output layer")
    deviation: bool = key(True, "false: only the mean")
    embedding: Count | None = key(None, "outputs of a linear layer between statistics and output layer; null: none")


class StatisticsHead(ClassifierHead):
    """States (B, F, D) -> logits (B, N)."""

    KIND, SETTINGS = "statistics", StatisticsSettings

    def __init__(self, settings: StatisticsSettings, width: int, outputs: int):
        super().__init__(settings)
        size = width * (2 if settings.deviation else 1)
        self.embedding = None if settings.embedding is None else nn.Linear(size, settings.embedding)
        self.finish(settings.embedding or size, outputs)

    def embed(self, states: Tensor, frames: Tensor) -> Tensor:
        mask = within(frames, states.shape[1])
        mean, deviation = statistics(states.masked_fill(~mask[..., None], 0.0), uniform(mask))
        found = torch.cat([mean, deviation], 1) if self.settings.deviation else mean
        return found if self.embedding is None else self.embedding(found)
