"""Attentive statistics pooling: mean and standard deviation with learnt weights of the frames, then the output layer.

    e_t = v' tanh(W h_t + b) + k        alpha_t = softmax of e over the valid frames
    mean = sum alpha_t h_t              deviation² = sum alpha_t (h_t - mean)²

Source: Okabe et al., "Attentive statistics pooling for deep speaker embedding", Interspeech 2018.

B batch, F frames, D size of the states, E size of the embedding.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from lowrank_speech.models.heads.base import within
from lowrank_speech.models.heads.classifier import ClassifierHead
from lowrank_speech.models.heads.frames import attention, statistics
from lowrank_speech.models.heads.settings import ClassifierSettings
from lowrank_speech.settings import Count, key, settings


@settings
class AttentiveSettings(ClassifierSettings):
    kind: Literal["attentive"] = key("attentive", "attentive statistics pooling, and the output layer")
    attention: Count = key(64, "hidden units of the attention")
    embedding: Count | None = key(None, "outputs of a linear layer between statistics and output layer; null: none")


class AttentiveHead(ClassifierHead):
    """States (B, F, D) -> logits (B, N)."""

    KIND, SETTINGS = "attentive", AttentiveSettings

    def __init__(self, settings: AttentiveSettings, width: int, outputs: int):
        super().__init__(settings)
        self.hidden = nn.Linear(width, settings.attention)
        self.weight = nn.Linear(settings.attention, 1)
        self.embedding = None if settings.embedding is None else nn.Linear(2 * width, settings.embedding)
        self.finish(settings.embedding or 2 * width, outputs)

    def embed(self, states: Tensor, frames: Tensor) -> Tensor:
        mask = within(frames, states.shape[1])
        weights = attention(self.weight(torch.tanh(self.hidden(states))), mask)
        found = torch.cat(statistics(states.masked_fill(~mask[..., None], 0.0), weights), 1)
        return found if self.embedding is None else self.embedding(found)
