"""What a training minimises: the loss of the task, and auxiliary losses beside it, each with its weight.

Auxiliary losses serve the pretraining of bases from scratch (``ctc_weight``, ``language_weight``); their heads are
thrown away afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_speech.errors import UserError
from lowrank_speech.lang.select import Languages, Reason
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.data.targets import targets_of
from lowrank_speech.training.losses.loss import Errors, Loss, Materials, TargetError, Term, Utterance
from lowrank_speech.training.losses.registry import OF_TASK, loss_class


@dataclass
class Losses:
    """Sums over a batch: the loss to differentiate (a mean), the task's own loss sum and its number of units.

    ``impossible``: utterances left out of the CTC, because their target needs more frames than they have. ``terms``:
    what ``total`` is the sum of, each with its weight, its mean over the batch, and the number of units in that mean.
    ``errors``: the counts of the dev metric, where they were asked for.
    """

    total: Tensor
    task_sum: float
    units: int
    impossible: int = 0
    terms: tuple[tuple[float, Tensor, int], ...] = ()
    errors: Errors | None = None

    def share(self, whole: Sequence[int]) -> Tensor:
        """This batch's part of the ``total`` over several batches, whose terms have ``whole`` units together.

        The parts of all batches add up to what one batch of all their utterances would give.
        """
        # Empty targets have a loss and no units.
        parts = [w * mean * (max(units, 1) / max(n, 1)) for (w, mean, units), n in zip(self.terms, whole, strict=True)]
        return torch.stack(parts).sum()


class Objective(nn.Module):
    """The weighted sum of ``losses``, of which the first one is the task's; see ``make_objective``.

    Before the first step: ``prepare`` for each cut (a run that continues has prepared cuts), ``check``, ``build``.
    """

    def __init__(self, weights: Sequence[float], losses: Sequence[Loss], materials: Materials):
        super().__init__()
        self.weights, self.materials = tuple(weights), materials
        self.losses = nn.ModuleList(losses)

    @property
    def task(self) -> Loss:
        """The loss of the task."""
        return self.losses[0]

    @property
    def labels(self) -> list[str]:
        """The languages to tell apart, shared with the losses; filled while cuts are prepared."""
        return self.materials.labels

    @property
    def wants_labels(self) -> bool:
        """Whether a loss tells languages apart."""
        return any(loss.wants_labels for loss in self.losses)

    @property
    def backend(self) -> Any:
        """What computes the CTC (``backend``, ``version``); None without one."""
        return next((loss.backend for loss in self.losses if loss.backend is not None), None)

    def prepare(self, cut: Any, frames: Callable[[Any], int]) -> dict[str, Any] | Reason:
        """The targets of a cut by the names of the losses; or why it cannot be used. ``frames``: see ``Utterance``."""
        utterance, found = Utterance(cut, self.materials.lang, frames), {}
        for loss in self.losses:
            target = loss.prepare(utterance)
            if isinstance(target, Reason):
                return target
            found[loss.name] = target
        return found

    def check(self, languages: Languages) -> None:
        """UserError where the training cuts, which have these languages, do not suffice."""
        for loss in self.losses:
            loss.check(languages)

    def build(self, model: SpeechModel) -> "Objective":
        """Draw the weights of auxiliary heads; returns itself."""
        for loss in self.losses:
            loss.build(model)
        return self

    def forward(
        self, model: SpeechModel, features: Tensor, lengths: Tensor, cuts: Sequence[Any], errors: bool = False
    ) -> Losses:
        """Losses of one batch, and with ``errors`` the counts of the dev metric from the same pass.

        Features and lengths as in ``batches``, on the model's device.
        """
        states, frames = model.states(features, lengths)
        found: list[Term] = []
        for loss, target in zip(self.losses, self._targets(cuts), strict=True):
            try:
                found.append(loss(model, states, frames, target, errors=errors and not found))
            except TargetError as error:
                raise UserError(f"{error}; the batch: {', '.join(cut.id for cut in cuts)}") from error
        total, first = found[0].mean, found[0]
        for weight, term in zip(self.weights[1:], found[1:], strict=True):
            total = total + weight * term.mean
        terms = tuple((w, term.mean, term.units) for w, term in zip(self.weights, found, strict=True))
        task_sum = first.mean.item() * max(first.units, 1)
        return Losses(total, task_sum, first.units, sum(term.impossible for term in found), terms, first.errors)

    def units(self, model: SpeechModel, batch: dict[str, Any]) -> list[int]:
        """The units of each term of a batch's loss, in the order of ``Losses.terms``, before anything is computed."""

        @cache
        def frames() -> Tensor:
            return model.output_lengths(batch["features"], batch["lengths"])

        targets = self._targets(batch["cuts"])
        return [loss.units(target, frames) for loss, target in zip(self.losses, targets, strict=True)]

    def _targets(self, cuts: Sequence[Any]) -> list[Any]:
        given = [targets_of(cut) for cut in cuts]
        return [loss.collate([targets[loss.name] for targets in given]) for loss in self.losses]


def make_objective(task: str, materials: Materials) -> Objective:
    """The objective of a model's ``task`` (``SpeechModel.task``) by the recipe in ``materials``.

    UserError where its loss does not fit the task. Auxiliary losses that do not go with the task are left out, because
    one recipe may serve several tasks.
    """
    recipe = materials.recipe
    name = recipe.loss or OF_TASK[task]
    main = loss_class(name)
    if task not in main.tasks:
        raise UserError(f"training.loss: {name} is not a loss for {task}; remove it to train by {OF_TASK[task]}")
    weights, losses = [1.0], [main(materials)]
    for name, weight in recipe.auxiliary.items():
        cls = loss_class(name)
        if weight and task in cls.beside:
            weights.append(weight)
            losses.append(cls(materials, auxiliary=True))
    return Objective(weights, losses, materials)
