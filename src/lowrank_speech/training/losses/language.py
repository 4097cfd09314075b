"""Cross-entropy over the languages of utterances, from pooled encoder states. Dev metric: error rate.

As a task's loss it uses the model's head. As an auxiliary loss (``language_weight``, for pretraining bases from
scratch) it has its own linear layer over the mean of the states.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.losses.classification import Classification
from lowrank_speech.training.losses.loss import Materials, Term


class Classify(Classification):
    name = "language"
    beside = ("ctc", "seq2seq")

    def __init__(self, materials: Materials, auxiliary: bool = False):
        super().__init__(materials, auxiliary)
        self.head: nn.Linear | None = None

    def build(self, model: SpeechModel) -> None:
        if self.auxiliary:
            self.head = nn.Linear(model.width, len(self.materials.labels))

    def forward(self, model: SpeechModel, states: Tensor, frames: Tensor, target: Tensor, errors: bool = False) -> Term:
        logits = self.logits(model, states, frames, target).float()
        smoothing = self.materials.recipe.label_smoothing if self.head is None else 0.0
        loss = F.cross_entropy(logits, target.to(states.device), label_smoothing=smoothing)
        return Term(loss, len(target), errors=self.errors(logits, frames, target) if errors else None, logits=logits)

    def logits(self, model: SpeechModel, states: Tensor, frames: Tensor, target: Tensor) -> Tensor:
        if self.head is None:
            return model.head_logits(states, frames)
        mask = torch.arange(states.shape[1], device=states.device)[None, :] < frames[:, None]
        return self.head((states * mask[..., None]).sum(1) / frames[:, None])
