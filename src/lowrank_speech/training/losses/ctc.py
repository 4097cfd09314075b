"""CTC over characters or pieces, per label, computed by k2 or torch. Dev metric: token error rate of the greedy path.

As a task's loss it uses the model's head. As an auxiliary loss it has its own head on a Whisper encoder, as in hybrid
CTC / attention training (Watanabe et al. 2017).

``ctc.prior_scale`` subtracts label priors, ``ctc.delay_penalty`` favours early labels; see ``ctc_losses``. The priors
are the mean posteriors over all frames of the epoch before; the first epoch has none. Dev's loss has them, too, but not
the outputs, nor the dev metric.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lowrank_speech.errors import UserError
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.heads.base import within
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.losses.backends import choose_backend
from lowrank_speech.training.losses.ctc_losses import ctc_losses
from lowrank_speech.training.losses.frame_labels import FrameLabels
from lowrank_speech.training.losses.loss import Materials, TargetError, Term

LOWEST = -12.0
"""Lowest log prior, as in Huang et al.'s recipe: labels that hardly ever occur must not become free."""


class Ctc(FrameLabels):
    name = "ctc"
    tasks = ("ctc",)
    beside = ("seq2seq",)

    def __init__(self, materials: Materials, auxiliary: bool = False):
        super().__init__(materials, auxiliary)
        self.head: nn.Linear | None = None
        if materials.lang is None or materials.lang.tokens is None:
            raise UserError(
                "training.ctc_weight: CTC needs a token set of kind char or sentencepiece, but this model uses "
                "Whisper's own tokenizer; set ctc_weight: 0"
                if auxiliary
                else "train: CTC needs a token set of kind char or sentencepiece, not Whisper's own tokenizer"
            )
        self.settings = materials.recipe.ctc
        if self.settings.prior_scale:
            size = materials.lang.tokens.size
            self.observes = size + 1
            # A part of the training's state. ``seen``: summed posteriors in this epoch, and their number of frames.
            self.register_buffer("log_priors", torch.zeros(size))
            self.register_buffer("seen", torch.zeros(size + 1, dtype=torch.float64))

    def build(self, model: SpeechModel) -> None:
        if self.auxiliary:
            self.head = nn.Linear(model.width, self.materials.tokens.size)
        self.backend = choose_backend(self.settings, pick_device(self.materials.device))

    def forward(
        self, model: SpeechModel, states: Tensor, frames: Tensor, target: tuple[Tensor, Tensor], errors: bool = False
    ) -> Term:
        labels, sizes = target
        logits = self.logits(model, states, frames, target)
        variant: dict[str, Any] = {"delay_penalty": self.settings.delay_penalty}
        if self.observes:
            variant["log_priors"] = self.settings.prior_scale * self.log_priors
        try:
            losses, possible = ctc_losses(
                logits, frames, labels, sizes, self.backend.k2, self.backend.output_beam, **variant
            )
        except ValueError as error:
            raise TargetError(str(error)) from error
        units = int(sizes[possible].sum())
        found = self.errors(logits, frames, target) if errors else None
        seen = _posteriors(logits.detach(), frames) if self.observes and model.training else None
        return Term(losses.sum() / max(units, 1), units, int((~possible).sum()), found, logits, seen)

    def logits(self, model: SpeechModel, states: Tensor, frames: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        return super().logits(model, states, frames, target) if self.head is None else self.head(states)

    # -- priors --------------------------------------------------------------------------------------------------------

    def observe(self, total: Tensor) -> None:
        self.seen += total

    def end_epoch(self) -> None:
        if self.observes and self.seen[-1] > 0:
            self.log_priors.copy_((self.seen[:-1] / self.seen[-1]).log().clamp(min=LOWEST))
            self.seen.zero_()


def _posteriors(logits: Tensor, frames: Tensor) -> Tensor:
    """The sum of the posteriors over all frames that are not padding, and the number of these frames: (V + 1,)."""
    valid = within(frames, logits.shape[1]).to(logits.device)
    total = (logits.float().softmax(-1) * valid[..., None]).sum((0, 1), dtype=torch.float64)
    return torch.cat([total, valid.sum().double()[None]])
