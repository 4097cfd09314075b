"""The x-vector network: time-delay layers over frames, statistics pooling, two layers over the utterance.

With factors (``rank``, ``fraction`` or ``reduction``) it is TDNN-F: layers with three taps get Kaldi's factors, which
read two frames each (``frames.KaldiFactors``), the others plain ones, and 0.66 of a layer's input is added to its
output where both have the same size (``bypass``). The embedding is the output of the first layer after the pooling.

Convolutions pad with zeros, so an utterance shorter than the receptive field of 15 frames has an embedding too.

Source: Snyder et al., "X-vectors: robust DNN embeddings for speaker recognition", ICASSP 2018; Povey et al.,
"Semi-orthogonal low-rank matrix factorization for deep neural networks", Interspeech 2018 (TDNN-F).

B batch, F frames, D size of the states, E size of the embedding.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from lowrank_speech.lowrank.structure import replace
from lowrank_speech.models.heads.base import within
from lowrank_speech.models.heads.classifier import ClassifierHead
from lowrank_speech.models.heads.frames import FrameLayer, KaldiFactors, Norm, statistics, uniform
from lowrank_speech.models.heads.settings import FactorSettings
from lowrank_speech.settings import Count, NotNegative, key, settings

CONTEXTS = ((5, 1), (3, 2), (3, 3), (1, 1))
"""Taps and dilation of the layers over frames; one more, of another size, follows before the pooling."""
BYPASS = 0.66


@settings
class TdnnSettings(FactorSettings):
    kind: Literal["tdnn"] = key("tdnn", "x-vector network; with factors: TDNN-F")
    channels: Count = key(512, "outputs of the layers over frames")
    pooled: Count = key(1500, "outputs of the layer before the pooling")
    embedding: Count = key(512, "outputs of the layers after the pooling")
    bypass: NotNegative | None = key(
        None, "share of a layer's input that is added to its output; null: 0.66 with factors, as in TDNN-F, else 0"
    )


class TdnnHead(ClassifierHead):
    """States (B, F, D) -> logits (B, N)."""

    KIND, SETTINGS = "tdnn", TdnnSettings

    def __init__(self, settings: TdnnSettings, width: int, outputs: int):
        super().__init__(settings)
        sizes = [width] + [settings.channels] * len(CONTEXTS)
        self.layers = nn.ModuleList(
            FrameLayer(inputs, settings.channels, *context) for inputs, context in zip(sizes, CONTEXTS, strict=False)
        )
        self.last = FrameLayer(settings.channels, settings.pooled)
        self.embedding = nn.Linear(2 * settings.pooled, settings.embedding)
        self.norm = Norm(settings.embedding)
        self.hidden = nn.Linear(settings.embedding, settings.embedding)
        self.hidden_norm = Norm(settings.embedding)
        self.finish(settings.embedding, outputs)
        given = settings.bypass
        self.bypass = given if given is not None else (BYPASS if settings.ranks else 0.0)

    def factorised(self, plan: Mapping[str, int]) -> "TdnnHead":
        rest = dict(plan)
        for name, layer in self.layers.named_children():
            full = f"layers.{name}.tdnn.linear"
            if layer.tdnn.kernel == 3 and full in rest:
                replace(self, full, KaldiFactors(layer.tdnn.linear, rest.pop(full)))
        super().factorised(rest)
        return self

    def embed(self, states: Tensor, frames: Tensor) -> Tensor:
        mask, x = within(frames, states.shape[1]), states
        for layer in self.layers:
            y = layer(x, mask)
            x = y + self.bypass * x if self.bypass and x.shape == y.shape else y
        x = self.last(x, mask).masked_fill(~mask[..., None], 0.0)
        return self.embedding(torch.cat(statistics(x, uniform(mask)), 1))

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        embedding = self.embed(states, frames)
        if self.settings.classifier == "cosine":
            return self.classifier(self.norm(embedding))  # the class vectors lie in the space of the embeddings
        hidden = self.hidden(self.norm(torch.relu(embedding)))
        return self.classifier(self.hidden_norm(torch.relu(hidden)))
