"""The base class of classifiers: an embedding of the utterance, then an output layer.

    linear       W e + b
    orthonormal  the same; W starts semi-orthogonal, and ``lowrank.constraint`` keeps it so
    cosine       s max_k cos(w_jk, e) for class j with its sub-centres k, without a bias

Source: Deng et al., "ArcFace", CVPR 2019 (cosine), and "Sub-center ArcFace", ECCV 2020.

B batch, F frames, D size of the states, E size of the embedding, N classes, K sub-centres.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_speech.lowrank.linear import OrthonormalLinear
from lowrank_speech.models.heads.base import Head
from lowrank_speech.models.heads.settings import ClassifierSettings


class CosineLinear(nn.Module):
    """Embeddings (B, E) -> scale times the cosine to the nearest sub-centre of each class (B, N)."""

    def __init__(self, size: int, outputs: int, subcentres: int, scale: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs * subcentres, size))
        self.subcentres, self.scale = subcentres, scale

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embedding: Tensor) -> Tensor:
        # In float32 also under autocast: with 8 bits, cosines near 1 would all be the same.
        with torch.autocast(embedding.device.type, enabled=False):
            cosines = F.linear(F.normalize(embedding.float()), F.normalize(self.weight.float()))
        return self.scale * cosines.unflatten(1, (-1, self.subcentres)).amax(-1)


class ClassifierHead(Head):
    """States (B, F, D) -> logits (B, N), by ``embed`` and ``classifier``, which ``finish`` adds to a subclass."""

    TASK = "classify"

    def finish(self, size: int, outputs: int) -> None:
        """Add the output layer for embeddings of ``size``."""
        settings: ClassifierSettings = self.settings
        match settings.classifier:
            case "linear":
                self.classifier = nn.Linear(size, outputs)
            case "orthonormal":
                self.classifier = OrthonormalLinear(size, outputs)
            case "cosine":
                self.classifier = CosineLinear(size, outputs, settings.subcentres, settings.scale)

    def embed(self, states: Tensor, frames: Tensor) -> Tensor:
        """Embeddings (B, E) for states (B, F, D), of which ``frames`` (B,) are valid."""
        raise NotImplementedError

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        return self.classifier(self.embed(states, frames))
