"""ECAPA-TDNN: SE-Res2Blocks, multi-layer feature aggregation, channel- and context-dependent attentive statistics.

    frames       k = 5 -> C;  three SE-Res2Blocks, k = 3 with dilation 2, 3, 4;  their outputs together -> 3 C
    pooling      attention for each channel, which also sees mean and deviation of the whole utterance; norm
    embedding    a linear layer, norm

With factors (``rank``, ``fraction`` or ``reduction``) it is ECAPA-TDNN-F: linear layers of the head become two, and the
first ones are kept semi-orthogonal. Convolutions pad with zeros, so an utterance may be shorter than their context.

Source: Desplanques et al., "ECAPA-TDNN: Emphasized Channel Attention, Propagation and Aggregation in TDNN Based Speaker
Verification", Interspeech 2020. Where the paper leaves something open (the order of ReLU and norm, the tanh of the
attention), it is as in speechbrain/lobes/models/ECAPA_TDNN.py, but without its second norm after the aggregation, and
with the paper's norm after the embedding.

B batch, F frames, D size of the states, C channels, E size of the embedding.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from lowrank_speech.models.heads.base import within
from lowrank_speech.models.heads.classifier import ClassifierHead
from lowrank_speech.models.heads.frames import FrameLayer, Norm, Tdnn, attention, statistics, uniform
from lowrank_speech.models.heads.settings import FactorSettings
from lowrank_speech.settings import Count, key, settings

DILATIONS = (2, 3, 4)


@settings
class EcapaSettings(FactorSettings):
    kind: Literal["ecapa"] = key("ecapa", "ECAPA-TDNN; with factors: ECAPA-TDNN-F")
    channels: Count = key(512, "outputs of the layers over frames (1024 in the paper's large model)")
    pooled: Count = key(1536, "outputs of the aggregation, before the pooling")
    embedding: Count = key(192, "outputs of the layer after the pooling")
    scales: Count = key(8, "groups of channels in a Res2Block")
    bottleneck: Count = key(128, "hidden units of attention and squeeze-excitation")

    def __post_init__(self) -> None:
        FactorSettings.__post_init__(self)
        if self.channels % self.scales:
            raise ValueError(f"channels is {self.channels}; it must be a multiple of scales ({self.scales})")


class Res2(nn.Module):
    """The groups of channels one after the other: each is convolved together with the output of the one before."""

    def __init__(self, channels: int, scales: int, dilation: int):
        super().__init__()
        size = channels // scales
        self.layers = nn.ModuleList(FrameLayer(size, size, 3, dilation) for _ in range(scales - 1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        first, *rest = x.chunk(len(self.layers) + 1, -1)
        found = [first]
        for i, (layer, part) in enumerate(zip(self.layers, rest, strict=True)):
            found.append(layer(part + found[-1] if i else part, mask))
        return torch.cat(found, -1)


class SqueezeExcitation(nn.Module):
    """Scales each channel by what the mean over the utterance says: (B, F, C) -> (B, F, C)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mean = (x.masked_fill(~mask[..., None], 0.0) * uniform(mask)).sum(1)
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))[:, None]


class Block(nn.Module):
    """SE-Res2Block: (B, F, C) -> (B, F, C)."""

    def __init__(self, channels: int, scales: int, hidden: int, dilation: int):
        super().__init__()
        self.before = FrameLayer(channels, channels)
        self.res2 = Res2(channels, scales, dilation)
        self.after = FrameLayer(channels, channels)
        self.excitation = SqueezeExcitation(channels, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + self.excitation(self.after(self.res2(self.before(x, mask), mask), mask), mask)


class Pooling(nn.Module):
    """Attentive statistics: a weight for each channel, with the utterance's statistics as context.

    (B, F, C) -> (B, 2 C).
    """

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.hidden = FrameLayer(3 * channels, hidden)
        self.weight = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x.masked_fill(~mask[..., None], 0.0)
        whole = [part[:, None].expand_as(x) for part in statistics(x, uniform(mask))]
        scores = self.weight(torch.tanh(self.hidden(torch.cat([x, *whole], -1), mask)))
        return torch.cat(statistics(x, attention(scores, mask)), 1)


class EcapaHead(ClassifierHead):
    """States (B, F, D) -> logits (B, N)."""

    KIND, SETTINGS = "ecapa", EcapaSettings

    def __init__(self, settings: EcapaSettings, width: int, outputs: int):
        super().__init__(settings)
        channels = settings.channels
        self.first = FrameLayer(width, channels, 5)
        self.blocks = nn.ModuleList(Block(channels, settings.scales, settings.bottleneck, d) for d in DILATIONS)
        self.aggregation = Tdnn(len(DILATIONS) * channels, settings.pooled)
        self.pooling = Pooling(settings.pooled, settings.bottleneck)
        self.pooling_norm = Norm(2 * settings.pooled)
        self.embedding = nn.Linear(2 * settings.pooled, settings.embedding)
        self.norm = Norm(settings.embedding)
        self.finish(settings.embedding, outputs)

    def embed(self, states: Tensor, frames: Tensor) -> Tensor:
        mask = within(frames, states.shape[1])
        x, found = self.first(states, mask), []
        for block in self.blocks:
            x = block(x, mask)
            found.append(x)
        x = torch.relu(self.aggregation(torch.cat(found, -1), mask))
        return self.norm(self.embedding(self.pooling_norm(self.pooling(x, mask))))
