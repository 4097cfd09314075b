"""One update of the weights, over one or several batches.

An update takes a list of batches (``accumulate`` of them for each process). Every loss is a mean per unit (label,
token, utterance). The batches' losses are weighted by their units, so that several small batches give the gradient of
one large batch. Trained weights stay in float32, also for the optimiser; ``precision`` only concerns the computation.
The constraint on the factors is applied after the optimiser's step.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.data.masks import spec_augment
from lowrank_speech.training.losses.objective import Losses, Objective
from lowrank_speech.training.memory.layers import compiling
from lowrank_speech.training.memory.precision import autocast
from lowrank_speech.training.memory.running_out import explained, padded_seconds
from lowrank_speech.training.optimisers import make_optimiser
from lowrank_speech.training.process.distributed import Ranks

log = logging.getLogger(__name__)

SHOWN = 5  # number of utterances that a message names
HEAD = "head."  # begins the names of the head's layers in the constraint


def schedule(step: int, steps: int, config: TrainConfig) -> float:
    """Factor on the learning rate at ``step`` of ``steps``: linear warm-up, hold, linear decay."""
    done = (step + 1) / steps
    if done < config.warmup:
        return done / config.warmup
    if done <= config.warmup + config.hold:
        return 1.0
    left = (1.0 - done) / max(1.0 - config.warmup - config.hold, 1e-9)
    return config.final + (1.0 - config.final) * left


@dataclass(frozen=True)
class StepResult:
    """The task's loss sum and its units over all batches of all processes in an update; see ``Losses``.

    ``shown``: name -> sum and units of the terms that the objective shows.
    """

    task_sum: float
    units: int
    impossible: int
    shown: dict[str, tuple[float, int]] = field(default_factory=dict)


class Stepper:
    """Updates the parameters of ``model`` and ``objective`` (both on ``device``) that have ``requires_grad`` now.

    ``constraint`` (optional) has ``step()``, ``state_dict()`` and ``load_state_dict()``. Raises UserError if nothing
    trains, or if ``config`` asks for what the device cannot do or for a package that is not installed.
    """

    def __init__(
        self,
        model: SpeechModel,
        objective: Objective,
        config: TrainConfig,
        device: torch.device,
        seed: int,
        constraint: Any = None,
        ranks: Ranks | None = None,
    ):
        self.model, self.objective, self.config, self.device = model, objective, config, device
        self.constraint, self.ranks = constraint, ranks or Ranks()
        self.steps = self.bad_steps = self.skipped = 0
        self.norm: float | None = None  # of the last gradient, before clipping
        self.optimiser = make_optimiser(model, objective, config)
        # The scaler does nothing without fp16.
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        # Each process draws the masks for its own batches.
        self.generator = torch.Generator().manual_seed(seed + self.ranks.rank)
        if config.spec_augment is not None:
            model.mask = partial(spec_augment, config=config.spec_augment, generator=self.generator)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the optimiser updates."""
        return [p for group in self.optimiser.param_groups for p in group["params"]]

    # -- one update --------------------------------------------------------------------------------------------------

    def step(self, batches: Sequence[dict[str, Any]], steps: int) -> StepResult | None:
        """Do update number ``self.steps`` of ``steps`` from ``batches``. Returns None if the update was skipped.

        Batches without ``features`` belong to another process. Raises UserError after too many skipped steps in a row,
        and if memory runs out.
        """
        factor = schedule(self.steps, steps, self.config)
        frozen_body = self.steps < self.config.freeze_encoder_steps
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        own = [batch for batch in batches if "features" in batch]
        whole = self._units(own) if len(batches) > 1 else None
        self.steps += 1
        names = self.objective.shown
        sums, bad, seen = [0.0] * (3 + 2 * len(names)), None, []
        with self._body_frozen() if frozen_body else contextlib.nullcontext():
            for batch in own:
                with explained(batch, self.config), compiling(self.config.compile):
                    losses = self.losses(batch)
                    total = losses.total if whole is None else losses.share(whole)
                    if not torch.isfinite(total):
                        bad = total.item()
                        break
                    if total.requires_grad:  # while the body is frozen, this loss may have nothing to train
                        self.scaler.scale(total).backward()
                seen.append(losses.seen)
                found = [losses.task_sum, losses.units, losses.impossible]
                for _, mean, units in losses.terms[len(losses.terms) - len(names) :]:
                    found += [mean.item() * max(units, 1), units]
                sums = [a + b for a, b in zip(sums, found, strict=True)]
        *sums, bad_ranks = self.ranks.sum([*sums, float(bad is not None)])
        if bad_ranks:
            return self._skip("loss", bad or "not finite in another process", own)
        # The first update may run out of memory, because it allocates the optimiser's state.
        largest = max(own, key=lambda batch: padded_seconds(batch["cuts"]), default=None)
        with explained(largest, self.config) if own else contextlib.nullcontext():
            if not self._update(constrained=not frozen_body):
                return self._skip("gradient's norm", self.norm, own)
        self.objective.observe(seen, self.ranks)
        shown = {name: (sums[3 + 2 * i], int(sums[4 + 2 * i])) for i, name in enumerate(names)}
        return StepResult(sums[0], int(sums[1]), int(sums[2]), shown)

    def _update(self, constrained: bool) -> bool:
        """Update the weights; returns False, without an update, if the gradients are not finite.

        ``constrained``: apply the constraint afterwards to all factors; else only to those of the head, because the
        others are frozen in this step.
        """
        self.ranks.sum_gradients(self.parameters)
        if all(p.grad is None for p in self.parameters):  # everything is frozen in this step; the scaler would fail
            self.norm, self.bad_steps = 0.0, 0
            return True
        self.scaler.unscale_(self.optimiser)
        self.norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip).item()
        if not math.isfinite(self.norm):
            self.scaler.update()
            return False
        self.bad_steps = 0
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if self.constraint is not None:
            self.constraint.step("" if constrained else HEAD)
        return True

    def losses(self, batch: dict[str, Any]) -> Losses:
        """The losses of one batch, with SpecAugment masks, in the training's precision."""
        features, lengths = batch["features"].to(self.device), batch["lengths"].to(self.device)
        with autocast(self.config.precision, self.device, keep=not self.config.gradient_checkpointing):
            return self.objective(self.model, features, lengths, batch["cuts"])

    def _units(self, own: Sequence[dict[str, Any]]) -> list[int]:
        """Units of each term of the loss, over all batches of all processes in this update."""
        counts = [0] * len(self.objective.weights)
        for batch in own:
            counts = [a + b for a, b in zip(counts, self.objective.units(self.model, batch), strict=True)]
        return [int(n) for n in self.ranks.sum(counts)]

    def _skip(self, what: str, value: float | str, own: Sequence[dict[str, Any]]) -> None:
        """Skip this step without changing the weights. Raises UserError after too many skipped steps in a row."""
        self.optimiser.zero_grad(set_to_none=True)
        self.bad_steps += 1
        self.skipped += 1
        names = [cut.id for batch in own for cut in batch["cuts"]]
        shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        log.warning("skipping step %d: the %s is %s, for %s", self.steps, what, value, shown)
        if self.bad_steps > self.config.bad_patience:
            raise UserError(
                f"the {what} was not finite in {self.bad_steps} steps in a row, the last one for {shown}: lower lr or "
                f"head_lr; if the same utterances always cause it, listen to their recordings"
            )

    @contextlib.contextmanager
    def _body_frozen(self) -> Iterator[None]:
        """Train only the head inside; in a model that predicts with its decoder (Whisper), only the decoder."""
        model = self.model
        body = [
            p
            for name, p in model.named_parameters()
            if p.requires_grad and ("encoder" in name.split(".") if model.decodes else not model.is_head(name))
        ]
        try:
            for parameter in body:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in body:
                parameter.requires_grad_(True)

    # -- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that decides the next update, except for the weights. Every process must call this."""
        return {
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "constraint": self.constraint.state_dict() if self.constraint is not None else None,
            "counters": [self.steps, self.bad_steps, self.skipped],
            # One for each process, in their order.
            "generator": self.ranks.gather(self.generator.get_state()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        if self.constraint is not None:
            self.constraint.load_state_dict(state["constraint"])
        self.steps, self.bad_steps, self.skipped = state["counters"]
        self.generator.set_state(state["generator"][self.ranks.rank])
