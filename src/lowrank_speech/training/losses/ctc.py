"""CTC over characters or pieces, per label, computed by k2 or torch. Dev metric: token error rate of the greedy path.

As a task's loss it uses the model's head. As an auxiliary loss it has its own head on a Whisper encoder, as in hybrid
CTC / attention training (Watanabe et al. 2017).
"""

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from kaldialign import edit_distance
from torch import Tensor, nn

from lowrank_speech.errors import UserError
from lowrank_speech.lang.select import Reason
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.heads.base import within
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import CtcConfig
from lowrank_speech.training.losses.ctc_losses import ctc_losses, import_k2, k2_version, possible_targets
from lowrank_speech.training.losses.loss import Errors, Loss, Materials, TargetError, Term, Utterance

log = logging.getLogger(__name__)


class Ctc(Loss):
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

    def prepare(self, utterance: Utterance) -> list[int] | Reason:
        """The ids of the text, unless they need more frames than the utterance has."""
        if isinstance(utterance.text, Reason):
            return utterance.text
        ids = self.materials.lang.tokens.encode(utterance.text)
        needed = ctc_frames_needed(ids)
        if needed > utterance.frames:
            return Reason("CTC target longer than its frames", f"{needed} needed, {utterance.frames} frames")
        return ids

    def untranscribed(self, tokens: Sequence[int] | None) -> list[int]:
        return []  # every frame is a prediction

    def build(self, model: SpeechModel) -> None:
        if self.auxiliary:
            self.head = nn.Linear(model.width, self.materials.tokens.size)
        self.backend = choose_ctc(self.materials.recipe.ctc, pick_device(self.materials.device))

    def collate(self, targets: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Concatenated labels of all utterances, (sum of lengths,) int64, and the lengths (B,) int64."""
        labels = torch.tensor([i for row in targets for i in row], dtype=torch.int64)
        return labels, torch.tensor([len(row) for row in targets])

    def forward(
        self, model: SpeechModel, states: Tensor, frames: Tensor, target: tuple[Tensor, Tensor], errors: bool = False
    ) -> Term:
        labels, sizes = target
        logits = self.logits(model, states, frames, target)
        try:
            losses, possible = self.backend(logits, frames, labels, sizes)
        except ValueError as error:
            raise TargetError(str(error)) from error
        units = int(sizes[possible].sum())
        found = self.errors(logits, frames, target) if errors else None
        return Term(losses.sum() / max(units, 1), units, int((~possible).sum()), found, logits)

    def units(self, target: tuple[Tensor, Tensor], frames: Callable[[], Tensor]) -> int:
        labels, sizes = target
        return int(sizes[possible_targets(frames().cpu(), labels.split(sizes.tolist()))].sum())

    def logits(self, model: SpeechModel, states: Tensor, frames: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        return model.head_logits(states, frames) if self.head is None else self.head(states)

    def predicted(self, target: tuple[Tensor, Tensor], frames: Tensor, size: int) -> Tensor:
        return within(frames, size)

    def errors(self, logits: Tensor, frames: Tensor, target: tuple[Tensor, Tensor]) -> Errors:
        """Edit distance between the targets and the greedy paths of ``logits`` (B, F, V)."""
        labels, sizes = target
        errors = blank = 0
        for row, n, ids in zip(logits.argmax(-1).cpu(), frames.tolist(), labels.split(sizes.tolist()), strict=True):
            path = torch.unique_consecutive(row[:n])
            hypothesis = path[path != 0].tolist()
            errors += edit_distance(hypothesis, ids.tolist())["total"]
            blank += not hypothesis
        return Errors(errors, int(sizes.sum()), blank)


def ctc_frames_needed(ids: Sequence[int]) -> int:
    """The minimum number of frames in which CTC can emit ``ids``: one per label, and a blank between equal neighbours.

    With fewer frames the loss is infinite and torch's gradient is NaN. Source: Graves et al. 2006, section 3.
    """
    return len(ids) + sum(left == right for left, right in itertools.pairwise(ids))


# -- back end ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backend:
    """A back end (k2 or torch), its version, and for k2 the module and the beam."""

    backend: str
    version: str
    k2: ModuleType | None = None
    output_beam: float = 20.0

    def __call__(self, logits: Tensor, frames: Tensor, labels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (B,) and possible (B,); see ``ctc_losses``."""
        return ctc_losses(logits, frames, labels, sizes, self.k2, self.output_beam)


def choose_ctc(config: CtcConfig, device: Any) -> Backend:
    """The back end for ``config`` on ``device``; ``auto`` uses k2 if it works. Raises UserError if ``k2`` does not."""
    torch_ctc = Backend("torch", str(torch.__version__))
    if config.backend == "torch":
        return torch_ctc
    try:
        k2 = import_k2(device.type)
    except ImportError as error:
        if config.backend == "k2":
            raise UserError(
                f"training.ctc.backend: {error}; install the k2 for this torch (docs/k2.md), or set backend: torch"
            ) from error
        log.info("CTC runs with torch: %s", error)
        return torch_ctc
    chosen = Backend("k2", k2_version(), k2, config.output_beam)
    log.info("CTC runs with k2 %s, output_beam %g", chosen.version, chosen.output_beam)
    return chosen
