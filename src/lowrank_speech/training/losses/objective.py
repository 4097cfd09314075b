"""Losses of the tasks over a batch, and the dev metric of each.

    ctc        CTC over characters or pieces, by k2 or torch, per label; dev metric: token error rate of the greedy path
    seq2seq    Whisper's cross-entropy with teacher forcing, per token; dev metric: error rate of its tokens
    classify   cross-entropy over pooled states, per utterance; dev metric: error rate

Two auxiliary losses serve the pretraining of bases from scratch: CTC on the encoder of a Whisper (``ctc_weight``, as in
hybrid CTC / attention training, Watanabe et al. 2017) and language classification over pooled states
(``language_weight``). Their heads are thrown away afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from kaldialign import edit_distance
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_speech.errors import UserError
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.losses.ctc import choose_ctc
from lowrank_speech.training.losses.ctc_losses import possible_targets
from lowrank_speech.training.losses.targets import IGNORE, class_targets, ctc_targets, seq2seq_targets


@dataclass
class Losses:
    """Sums over a batch: the loss to differentiate (a mean), the task's own loss sum and its number of units.

    ``impossible``: utterances left out of the CTC, because their target needs more frames than they have. ``terms``:
    what ``total`` is the sum of, each with its weight, its mean over the batch, and the number of units in that mean.
    ``errors``: the dev metric's numbers, where they were asked for.
    """

    total: Tensor
    task_sum: float
    units: int
    impossible: int = 0
    terms: tuple[tuple[float, Tensor, int], ...] = ()
    errors: "Errors | None" = None

    def share(self, whole: Sequence[int]) -> Tensor:
        """This batch's part of the ``total`` over several batches, whose terms have ``whole`` units together.

        The parts of all batches add up to what one batch of all their utterances would give.
        """
        # Empty targets have a loss and no units.
        parts = [w * mean * (max(units, 1) / max(n, 1)) for (w, mean, units), n in zip(self.terms, whole, strict=True)]
        return torch.stack(parts).sum()


class Errors(NamedTuple):
    """Of one batch: errors and units of the dev metric. ``blank``, CTC: utterances whose greedy path is all blank."""

    errors: int
    units: int
    blank: int = 0


class Objective(nn.Module):
    """The loss of one task. ``lang`` and ``tokens`` for the recognition tasks, ``labels`` for classification.

    ``tokens``: the token set of the seq2seq decoder (a Lang's own, or Whisper's tokenizer).
    """

    def __init__(
        self,
        model: SpeechModel,
        config: TrainConfig,
        lang: Any = None,
        tokens: Any = None,
        labels: Sequence[str] = (),
    ):
        super().__init__()
        self.task, self.config, self.lang, self.tokens, self.labels = model.task, config, lang, tokens, list(labels)
        width = model.width
        self.aux_ctc = nn.Linear(width, tokens.size) if self.task == "seq2seq" and config.ctc_weight else None
        self.aux_language = (
            nn.Linear(width, len(labels)) if config.language_weight and self.task != "classify" else None
        )
        needs_ctc = self.task == "ctc" or self.aux_ctc is not None
        self.ctc = choose_ctc(config.ctc, pick_device(config.device)) if needs_ctc else None

    @property
    def terms(self) -> int:
        """How many terms the loss is the sum of."""
        return 1 + (self.aux_ctc is not None) + (self.aux_language is not None)

    def forward(
        self, model: SpeechModel, features: Tensor, lengths: Tensor, cuts: Sequence[Any], errors: bool = False
    ) -> Losses:
        """Loss of one batch, and with ``errors`` the dev metric's numbers of the same pass.

        Features and lengths as in ``batches``, on the model's device.
        """
        device, impossible, wrong = features.device, 0, None
        if self.task == "classify":
            logits = model.class_logits(features, lengths).float()
            targets = class_targets(cuts, self.labels).to(device)
            loss = F.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)
            wrong = self.errors(logits, targets, cuts) if errors else None
            return Losses(loss, loss.item() * len(cuts), len(cuts), terms=((1.0, loss, len(cuts)),), errors=wrong)
        if self.task == "ctc":
            states, frames = model.states(features, lengths)
            logits = model.hf.lm_head(model.hf.dropout(states))
            loss, units, impossible = self._ctc(logits, frames, cuts)
            wrong = self.errors(logits, frames, cuts) if errors else None
        else:
            inputs, labels = (t.to(device) for t in seq2seq_targets(cuts, self.lang, self.tokens))
            logits, states, frames = model.seq2seq_logits(features, lengths, inputs)
            loss = F.cross_entropy(
                logits.float().flatten(0, 1),
                labels.flatten(),
                ignore_index=IGNORE,
                label_smoothing=self.config.label_smoothing,
            )
            units = int((labels != IGNORE).sum())
            wrong = self.errors(logits, labels, cuts) if errors else None
        total, terms = loss, [(1.0, loss, units)]
        if self.aux_ctc is not None:
            auxiliary, labelled, impossible = self._ctc(self.aux_ctc(states), frames, cuts)
            total = total + self.config.ctc_weight * auxiliary
            terms.append((self.config.ctc_weight, auxiliary, labelled))
        if self.aux_language is not None:
            mask = torch.arange(states.shape[1], device=device)[None, :] < frames[:, None]
            pooled = (states * mask[..., None]).sum(1) / frames[:, None]
            targets = class_targets(cuts, self.labels).to(device)
            auxiliary = F.cross_entropy(self.aux_language(pooled).float(), targets)
            total = total + self.config.language_weight * auxiliary
            terms.append((self.config.language_weight, auxiliary, len(cuts)))
        return Losses(total, loss.item() * max(units, 1), units, impossible, tuple(terms), wrong)

    def units(self, model: SpeechModel, batch: dict[str, Any]) -> list[int]:
        """The units of each term of a batch's loss, in the order of ``Losses.terms``, before anything is computed."""
        cuts, found = batch["cuts"], []
        if self.task == "classify":
            return [len(cuts)]
        if self.task == "ctc" or self.aux_ctc is not None:
            labels, sizes = ctc_targets(cuts, self.lang)
            frames = model.output_lengths(batch["features"], batch["lengths"]).cpu()
            found.append(int(sizes[possible_targets(frames, labels.split(sizes.tolist()))].sum()))
        if self.task == "seq2seq":
            found.insert(0, int((seq2seq_targets(cuts, self.lang, self.tokens)[1] != IGNORE).sum()))
        return [*found, len(cuts)] if self.aux_language is not None else found

    def _ctc(self, logits: Tensor, frames: Tensor, cuts: Sequence[Any]) -> tuple[Tensor, int, int]:
        """Loss per label of the possible targets, their labels (0: none is possible), and how many are impossible."""
        labels, sizes = ctc_targets(cuts, self.lang)
        try:
            losses, possible = self.ctc(logits, frames, labels, sizes)
        except ValueError as error:
            raise UserError(f"{error}; the batch: {', '.join(cut.id for cut in cuts)}") from error
        units = int(sizes[possible].sum())
        return losses.sum() / max(units, 1), units, int((~possible).sum())

    def errors(self, logits: Tensor, given: Tensor, cuts: Sequence[Any]) -> Errors:
        """The dev metric's numbers from a batch's logits. ``given``: targets, or for CTC the lengths of the rows."""
        best = logits.argmax(-1).cpu()
        if self.task != "ctc":
            learnt = given.cpu() != IGNORE
            return Errors(int(((best != given.cpu()) & learnt).sum()), int(learnt.sum()))
        labels, sizes = ctc_targets(cuts, self.lang)
        errors = blank = 0
        for row, n, target in zip(best, given.tolist(), labels.split(sizes.tolist()), strict=True):
            path = torch.unique_consecutive(row[:n])
            hypothesis = path[path != 0].tolist()
            errors += edit_distance(hypothesis, target.tolist())["total"]
            blank += not hypothesis
        return Errors(errors, int(sizes.sum()), blank)
