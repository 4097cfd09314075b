"""Additive angular margin (AAM-softmax, ArcFace), for heads with ``classifier: cosine``. Dev metric: error rate.

With theta_j the angle between embedding and class j (its nearest sub-centre), y the true class, scale s of the head and
margin m of the recipe (``aam``), the loss is the cross-entropy of the logits

    s cos(theta_j)          for j != y
    s cos(theta_y + m)      for y; s (cos(theta_y) - m sin m) above theta_y = pi - m, where the cosine would rise

The margin only counts in training: on dev, and in the scores, the logits are s cos(theta_j).

Source: Deng et al., "ArcFace: additive angular margin loss for deep face recognition", CVPR 2019, and its code.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lowrank_speech.errors import UserError
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.losses.classification import Classification
from lowrank_speech.training.losses.loss import Term


def with_margin(cosines: Tensor, target: Tensor, margin: float) -> Tensor:
    """``cosines`` (B, N) with ``margin``, in radians, added to the angle of each ``target`` (B,)."""
    true = cosines.gather(1, target[:, None])
    # The square's floor keeps the root's gradient finite where the embedding lies on its class vector.
    sines = (1 - true.square()).clamp(min=1e-7).sqrt()
    moved = true * math.cos(margin) - sines * math.sin(margin)
    beyond = true <= math.cos(math.pi - margin)
    return cosines.scatter(1, target[:, None], torch.where(beyond, true - margin * math.sin(margin), moved))


class Aam(Classification):
    name = "aam"

    def build(self, model: SpeechModel) -> None:
        if getattr(model.head.settings, "classifier", None) != "cosine":
            raise UserError(
                f"training.loss: aam needs a head with classifier: cosine, but the head {model.head.KIND} has another "
                f"output layer; set head: {{kind: ..., classifier: cosine}}, or remove the loss"
            )

    def forward(self, model: SpeechModel, states: Tensor, frames: Tensor, target: Tensor, errors: bool = False) -> Term:
        logits = self.logits(model, states, frames, target).float()
        true, recipe, scale = target.to(states.device), self.materials.recipe, model.head.settings.scale
        margin = recipe.aam.margin if model.training else 0.0
        loss = F.cross_entropy(
            scale * with_margin(logits / scale, true, margin) if margin else logits,
            true,
            label_smoothing=recipe.label_smoothing,
        )
        return Term(loss, len(target), errors=self.errors(logits, frames, target) if errors else None, logits=logits)
