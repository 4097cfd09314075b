"""What CTC and LF-MMI share: a label or blank for each frame. Dev metric: token error rate of the greedy path."""

import itertools
from collections.abc import Callable, Sequence

import torch
from kaldialign import edit_distance
from torch import Tensor

from lowrank_speech.lang.select import Reason
from lowrank_speech.models.heads.base import within
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.losses.ctc_losses import possible_targets
from lowrank_speech.training.losses.loss import Errors, Loss, Utterance


class FrameLabels(Loss):
    """The base class of losses whose target is the labels of an utterance, and whose model has logits per frame."""

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

    def collate(self, targets: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Concatenated labels of all utterances, (sum of lengths,) int64, and the lengths (B,) int64."""
        labels = torch.tensor([i for row in targets for i in row], dtype=torch.int64)
        return labels, torch.tensor([len(row) for row in targets])

    def units(self, target: tuple[Tensor, Tensor], frames: Callable[[], Tensor]) -> int:
        labels, sizes = target
        return int(sizes[possible_targets(frames().cpu(), labels.split(sizes.tolist()))].sum())

    def logits(self, model: SpeechModel, states: Tensor, frames: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
        return model.head_logits(states, frames)

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
