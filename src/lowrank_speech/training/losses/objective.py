"""The training objective: the loss of the task plus weighted auxiliary losses.

Auxiliary losses are for pretraining bases from scratch (``ctc_weight``, ``language_weight``); their heads are not
saved.
"""

from collections.abc import Callable, Iterable, Sequence
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
    """The losses of a batch: ``total``, the mean to differentiate; the sum and number of units of the task's loss.

    ``impossible``: number of utterances that CTC leaves out, because their target needs more frames than they have.
    ``terms``: the summands of ``total``, each with its weight, its mean over the batch, and the units in that mean. A
    weight of 0 leaves a term out of ``total``, even if the term is not finite.
    ``errors``: the counts for the dev metric, if they were requested.
    ``seen``: what each term has for ``Loss.observe``, or None.
    """

    total: Tensor
    task_sum: float
    units: int
    impossible: int = 0
    terms: tuple[tuple[float, Tensor, int], ...] = ()
    errors: Errors | None = None
    seen: tuple[Tensor | None, ...] = ()

    def share(self, whole: Sequence[int]) -> Tensor:
        """This batch's share of the ``total`` over several batches, whose terms have ``whole`` units together.

        The shares of all batches add up to the ``total`` of one batch with all their utterances.
        """
        # Empty targets have a loss and no units.
        terms = zip(self.terms, whole, strict=True)
        return torch.stack([w * mean * (max(units, 1) / max(n, 1)) for (w, mean, units), n in terms if w]).sum()


class Objective(nn.Module):
    """The weighted sum of ``losses``; the first one is the task's. See ``make_objective``.

    ``shown``: names of the last terms, whose means the history shows beside the task's loss (see ``distil``).

    Before the first step, call ``prepare`` for each cut (a run that continues has prepared cuts), ``check``, ``build``.
    """

    shown: tuple[str, ...] = ()

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
        """The languages to distinguish. The losses share this list; it is filled while cuts are prepared."""
        return self.materials.labels

    @property
    def wants_labels(self) -> bool:
        """Whether a loss distinguishes languages."""
        return any(loss.wants_labels for loss in self.losses)

    @property
    def backend(self) -> Any:
        """The CTC back end (``backend``, ``version``); None without a CTC loss."""
        return next((loss.backend for loss in self.losses if loss.backend is not None), None)

    def prepare(self, cut: Any, frames: Callable[[Any], int]) -> dict[str, Any] | Reason:
        """The targets of a cut by the names of the losses, or why it cannot be used. ``frames``: see ``Utterance``."""
        utterance, found = Utterance(cut, self.materials.lang, frames), {}
        for loss in self.losses:
            target = loss.prepare(utterance)
            if isinstance(target, Reason):
                return target
            found[loss.name] = target
        return found

    def check(self, languages: Languages) -> None:
        """Raise UserError if the training cuts, which have these languages, do not suffice."""
        for loss in self.losses:
            loss.check(languages)

    def fit(self, cuts: Callable[[], Iterable[Any]]) -> None:
        """Let the losses learn from all training cuts with transcripts, which ``cuts()`` reads; see ``Loss.fit``."""
        for loss in self.losses:
            loss.fit(lambda name=loss.name: (targets_of(cut)[name] for cut in cuts()))

    def build(self, model: SpeechModel) -> "Objective":
        """Initialise the auxiliary heads; returns itself."""
        for loss in self.losses:
            loss.build(model)
        return self

    def forward(
        self, model: SpeechModel, features: Tensor, lengths: Tensor, cuts: Sequence[Any], errors: bool = False
    ) -> Losses:
        """The losses of one batch, and with ``errors`` the counts for the dev metric from the same pass.

        Features and lengths have the shapes of those in ``batches`` and must be on the model's device.
        """
        states, frames = model.states(features, lengths)
        return summed(self.weights, self.terms(model, states, frames, cuts, errors))

    def terms(
        self, model: SpeechModel, states: Tensor, frames: Tensor, cuts: Sequence[Any], errors: bool = False
    ) -> list[Term]:
        """The terms of ``losses`` for encoder states (B, F, D) with (B,) valid frames; ``errors``: see ``forward``."""
        found: list[Term] = []
        for loss, target in zip(self.losses, self._targets(cuts), strict=True):
            try:
                found.append(loss(model, states, frames, target, errors=errors and not found))
            except TargetError as error:
                raise UserError(f"{error}; the batch: {', '.join(cut.id for cut in cuts)}") from error
        return found

    def units(self, model: SpeechModel, batch: dict[str, Any]) -> list[int]:
        """The units of each term of a batch's loss, in the order of ``Losses.terms``, without computing the loss."""

        @cache
        def frames() -> Tensor:
            return model.output_lengths(batch["features"], batch["lengths"])

        targets = self._targets(batch["cuts"])
        return [loss.units(target, frames) for loss, target in zip(self.losses, targets, strict=True)]

    def observe(self, seen: Sequence[Sequence[Tensor | None]], ranks: Any) -> None:
        """Tell the losses what the batches of an update had for them: ``Losses.seen`` of each batch of this process."""
        for number, loss in enumerate(self.losses):
            if loss.observes:
                total = torch.zeros(loss.observes, dtype=torch.float64)
                for batch in seen:
                    if batch[number] is not None:
                        total += batch[number].to("cpu", torch.float64)
                loss.observe(torch.tensor(ranks.sum(total.tolist()), dtype=torch.float64))

    def end_epoch(self) -> None:
        """Tell the losses that an epoch and its evaluation are over."""
        for loss in self.losses:
            loss.end_epoch()

    def _targets(self, cuts: Sequence[Any]) -> list[Any]:
        given = [targets_of(cut) for cut in cuts]
        return [loss.collate([targets[loss.name] for targets in given]) for loss in self.losses]


def summed(weights: Sequence[float], found: Sequence[Term]) -> Losses:
    """The weighted sum of the terms ``found``, the first of which is the task's loss."""
    first, terms = found[0], tuple((w, t.mean, t.units) for w, t in zip(weights, found, strict=True))
    total, *others = (mean if w == 1 else w * mean for w, mean, _ in terms if w)
    for term in others:
        total = total + term
    seen = tuple(term.seen for term in found)
    task_sum = first.mean.item() * max(first.units, 1)
    return Losses(total, task_sum, first.units, sum(term.impossible for term in found), terms, first.errors, seen)


def make_objective(task: str, materials: Materials) -> Objective:
    """The objective for a model's ``task`` (``SpeechModel.task``), from the recipe in ``materials``.

    Leaves out auxiliary losses that do not support the task, because one recipe may serve several tasks. Raises
    UserError if the recipe's ``loss`` does not support the task.
    """
    recipe = materials.recipe
    name = recipe.loss or OF_TASK[task]
    main = loss_class(name)
    if task not in main.tasks:
        raise UserError(f"training.loss: {name} is not a loss for {task}; remove it to train with {OF_TASK[task]}")
    weights, losses = [1.0], [main(materials)]
    for name, weight in recipe.auxiliary.items():
        # The code hash leaves out losses without a weight.
        if weight and task in (cls := loss_class(name)).beside:
            weights.append(weight)
            losses.append(cls(materials, auxiliary=True))
    return Objective(weights, losses, materials)
