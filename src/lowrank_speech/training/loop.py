"""The training loop: epochs of updates (``step``), each followed by an evaluation on dev.

The loop saves the whole state to ``folder`` after every epoch and every ``save_minutes`` within one (``state``,
``process.checkpoint``). A run that was killed, or stopped by a signal, continues from there with the same result as
without the interruption. A state is a position between two updates. The evaluation belongs to the last update of its
epoch: the state does not change until the evaluation is over.

With several processes (``process.distributed``), each runs the same loop. They synchronise where they decide whether
to save, stop or evaluate, so they all decide the same. Only the first one writes.
"""

import json
import logging
import math
import time
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from lowrank_speech.artefact import atomic
from lowrank_speech.errors import Stopped, UserError
from lowrank_speech.features.batches import Cuts, Loader
from lowrank_speech.features.kept import KeptCuts, ListedCuts, numbered
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.dropout import set_dropout
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import Runtime, TrainConfig
from lowrank_speech.training.data.plan import batching, plan
from lowrank_speech.training.evaluate import Dev, evaluate
from lowrank_speech.training.losses.objective import Objective
from lowrank_speech.training.memory.dry_run import rehearse
from lowrank_speech.training.memory.layers import as_before, checkpoint_layers, compile_layers, length_buckets
from lowrank_speech.training.memory.precision import DTYPES, FrozenWeights
from lowrank_speech.training.memory.precision import check as check_precision
from lowrank_speech.training.memory.running_out import explained
from lowrank_speech.training.process.checkpoint import Checkpoints
from lowrank_speech.training.process.distributed import Ranks, grouped
from lowrank_speech.training.process.rng import same_draws
from lowrank_speech.training.process.signals import Signals
from lowrank_speech.training.progress import Curves, Progress
from lowrank_speech.training.result import Outcome, choose, note, out_of_patience, outcome, watch_blank
from lowrank_speech.training.state import Parts, State, Sums, pack, unpack
from lowrank_speech.training.step import Stepper

log = logging.getLogger(__name__)


class Trainer:
    """Trains the parameters of ``model`` that have ``requires_grad`` when the trainer is created.

    ``key``: identifies settings, inputs and code; ``folder``: where states are saved; ``events``: where TensorBoard's
    files go, if they are wanted; ``ranks``: the processes that share the work. ``constraint`` (optional) has
    ``step()``, ``deviation()``, ``state_dict()`` and ``load_state_dict()``. ``truncation`` (optional) lowers ranks
    while the model trains (``training.truncation``). Raises UserError if every parameter is frozen.
    """

    def __init__(
        self,
        model: SpeechModel,
        objective: Objective,
        config: TrainConfig,
        seed: int,
        folder: Path,
        key: str,
        loader: Loader,
        constraint: Any = None,
        events: Path | None = None,
        ranks: Ranks | None = None,
        runtime: Runtime | None = None,
        truncation: Any = None,
    ):
        self.truncation = truncation
        self.config, self.runtime, self.seed = config, runtime or Runtime(), seed
        self.loader, self.constraint, self.events = loader, constraint, events
        self.device, self.ranks = pick_device(self.runtime.device), ranks or Ranks()
        check_precision(config.precision, self.device)
        self.checkpoints, self.state = Checkpoints(folder), State()
        self.activations: int | None = None
        with explained(None, config):
            self.objective = objective.to(self.device)
        if config.dropout is not None:
            set_dropout(model, config.dropout)
        if not config.train_front_end:
            for parameter in model.front_end():
                parameter.requires_grad_(False)
        self.frozen = None
        if config.frozen_dtype != "fp32":
            file = folder / "frozen.safetensors" if self.ranks.first else None
            self.frozen = FrozenWeights(model, DTYPES[config.frozen_dtype], file)
            self.frozen.hold()
        with explained(None, config):
            self.model = model.to(self.device)
        if config.gradient_checkpointing:
            checkpoint_layers(model)
        if config.compile:
            compile_layers(model, static=config.compile_buckets is not None)
        self.stepper = Stepper(model, objective, config, self.device, seed, constraint, self.ranks)
        self.parts = Parts(key, model, self.objective, self.stepper, self.ranks, self.device, truncation)
        self.ranks.copy_from_first(self.stepper.parameters)
        if not self.ranks.first:  # each process draws its own dropout
            torch.manual_seed(seed + self.ranks.rank)

    @property
    def step(self) -> int:
        """Number of updates so far, including skipped ones."""
        return self.stepper.steps

    # -- one run -----------------------------------------------------------------------------------------------------

    def run(self, train: Cuts, dev: Cuts, metrics: Path) -> Outcome:
        """Train to the end. Leaves the best (or last, or mean) weights in the model; ``metrics`` gets a row per epoch.

        The caller removes the states once its outputs are written. After SIGTERM or SIGUSR1, saves the state and raises
        Stopped.
        """
        train, dev, first = numbered(train), numbered(dev), self.ranks.first
        with Signals() as self.signals, logging_redirect_tqdm():
            self._ready(train)
            state = self.state
            self.progress = Progress(state.steps, self.step, shown=first)
            self.curves = Curves(self.events if first else None, self.step)
            self.last_save = time.monotonic()
            try:
                # A run that continues may have done the last step of an epoch, but not its evaluation.
                while state.epoch < self.config.epochs and (
                    state.batch or (self.step < state.steps and not out_of_patience(state, self.config))
                ):
                    self._epoch(train)
                    self._end_of_epoch(dev)
                    self._save()
            except Stopped as stop:
                path = self._save()
                self.ranks.stop()
                raise Stopped(
                    f"{stop}: the state is in {path}; the same command continues from step {self.step}"
                ) from None
            finally:
                self.progress.close()
                self.curves.close()
            means = ["loss", *(f"loss_{name}" for name in self.objective.shown)]
            if not any(row.get(mean) is not None for row in state.history for mean in means):
                raise UserError(
                    f"none of {self.step} steps changed the weights: no loss or gradient was finite; listen to the "
                    f"recordings of the utterances named above, or lower lr and head_lr"
                )
            chosen = choose(state, self.model, self.config, lambda: self._evaluate(dev).metric)
        self.model.eval()
        deviation = None if self.constraint is None else self.deviation()
        found = outcome(chosen, state, self.parts, deviation, self.activations)
        if self.frozen is not None:
            self.model.to("cpu")  # the float32 weights may not fit on a GPU that the training filled
            self.frozen.restore()
        as_before(self.model)
        if first:
            with atomic(metrics) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in state.history), encoding="utf-8")
        self.ranks.stop()
        return found

    def _ready(self, train: KeptCuts | ListedCuts) -> None:
        """Do everything that precedes the first step: load the state of an earlier run, plan, do the dry run."""
        self._load()
        state = self.state
        if state.steps is None:
            state.steps, state.largest = plan(
                train, self.config, self.seed, self.ranks.world, self.model.window_seconds, self.loader.crops
            )
        crops = self.loader.crops
        durations = train.durations if crops is None else np.minimum(train.durations, crops.high)
        log.info(
            "%d utterances, %.0f s of speech, %d steps in %d epochs",
            *(len(train), float(train.durations.sum()), state.steps, self.config.epochs),
        )
        most, *_ = batching(self.config, self.seed, 0)
        if longer := int((durations > most).sum()):
            log.info(
                "%d utterances are longer than batch_seconds allows (%.1f s): each is a batch of its own", longer, most
            )
        if self.config.compile_buckets is not None and self.model.frame_rate is not None:
            longest = durations / min((1.0, *self.config.speed))
            self.model.buckets = length_buckets(longest, self.config.compile_buckets, self.model.frame_rate)
            log.info("compiling encoder layers for these numbers of frames: %s", self.model.buckets)
        if self.runtime.dry_run or (self.runtime.dry_run is None and self.device.type == "cuda"):
            cuts = [train[i] for i in state.largest]
            self._rehearse(cuts if crops is None else [crops.longest(cut) for cut in cuts])

    def _rehearse(self, cuts: list[Any]) -> None:
        """Run a batch of ``cuts``, at the lowest speed, forward and backward without an update."""
        loader = copy(self.loader)
        if loader.augmentation is not None:
            loader.augmentation = loader.augmentation.at_the_slowest()
        with same_draws():
            batch = loader.collate(cuts, (self.seed, 0))
        self.activations = rehearse(self.stepper, batch)

    def _epoch(self, train: Cuts) -> None:
        """Train for the rest of an epoch, from batch number ``state.batch`` on."""
        self.model.train()
        state, rank, world = self.state, self.ranks.rank, self.ranks.world
        if self.step >= state.steps:
            return
        how = batching(self.config, self.seed, state.epoch)
        dealt = self.loader.train(train, *how, skip=state.batch, rank=rank, world=world)
        for batches in grouped(dealt, self.config.accumulate * world):
            start = time.perf_counter()
            if self.truncation is not None:
                self._truncate(self.truncation.due(self.step, state.steps))
            result = self.stepper.step(batches, state.steps)
            state.seconds += time.perf_counter() - start
            speech = sum(cut.duration for batch in batches for cut in batch["cuts"])
            state.speech += speech
            state.batch += len(batches)
            if result is None:
                state.sums.skipped += 1
            else:
                state.sums.add(result)
                values = {"loss": result.task_sum / max(result.units, 1), "gradient_norm": self.stepper.norm}
                values |= {f"loss_{name}": total / max(n, 1) for name, (total, n) in result.shown.items()}
                self.curves.add(self.step, "step", values)
            self.progress.step(state.epoch + 1, state.sums.mean, speech)
            due = self.ranks.first and time.monotonic() - self.last_save >= 60 * self.runtime.save_minutes
            stopped, due = self.ranks.sum([self.signals.received is not None, due])
            if stopped:
                raise self.signals.stop()
            if due:
                self._save()
            if self.step >= state.steps:
                break

    def _end_of_epoch(self, dev: Cuts) -> None:
        """Evaluate, add a row to the history, and move to the start of the next epoch."""
        state, number = self.state, self.state.epoch + 1
        last = number == self.config.epochs or self.step >= state.steps
        if self.truncation is not None and last:  # the run may have had fewer steps than were planned
            self._truncate(self.truncation.stages)
        row = {"step": self.step, "epoch": number, "loss": state.sums.mean, "skipped": state.sums.skipped}
        row |= state.sums.means
        row["lr"] = self.stepper.optimiser.param_groups[0]["lr"]
        if self.constraint is not None:
            row["deviation"] = self.deviation()
        if self.truncation is not None:
            row["parameters"] = self.model.parameters_total()
            row["truncations_left"] = self.truncation.stages - state.truncations
        if self.objective.backend is not None:
            row["ctc_impossible"] = state.sums.impossible
        due = number % self.config.evaluate_every == 0 or last
        # Until the evaluation is over, the state must stay that of the epoch's last step.
        found = self._evaluate(dev) if due else None
        if state.sums.impossible:
            log.warning(
                "epoch %d: %d targets need more frames than their utterances have; CTC leaves them out",
                number,
                state.sums.impossible,
            )
        if found is not None:
            row |= {"dev_loss": found.loss if math.isfinite(found.loss) else None, "dev_metric": found.metric}
            row |= {} if found.blank is None else {"dev_blank": found.blank}
            shown = "-" if row["loss"] is None else f"{row['loss']:.4f}"
            log.info("epoch %d: loss %s, dev loss %.4f, dev error %.4f", number, shown, found.loss, found.metric)
            if not row.get("truncations_left"):
                note(state, found, self.model, self.config)
            watch_blank(state, found, self.step, self.config)
        state.history.append(row)
        self.curves.add(self.step, "epoch", row)
        self.objective.end_epoch()
        state.epoch, state.batch, state.sums = number, 0, Sums()

    def _truncate(self, number: int) -> None:
        """Truncate until ``number`` truncations are done."""
        if number > self.state.truncations:
            self.truncation.apply(number, self.stepper.optimiser, self.ranks)
            self.state.truncations = number

    def _evaluate(self, dev: Cuts) -> Dev:
        batches = self.loader.all(dev, 2 * self.config.batch_seconds, rank=self.ranks.rank, world=self.ranks.world)
        return evaluate(self.model, self.objective, self.config, batches, self.device, self.signals, self.ranks)

    def deviation(self) -> float:
        """The largest deviation from semi-orthogonality among the constrained factors."""
        return max(self.constraint.deviation().values(), default=0.0)

    # -- state -------------------------------------------------------------------------------------------------------

    def _save(self) -> Path:
        """Save the state; returns its path once it is on disk. Every process must call this."""
        state = pack(self.state, self.parts)
        path = self.ranks.from_first(lambda: self.checkpoints.save(self.step, state))
        self.last_save = time.monotonic()
        return path

    def _load(self) -> None:
        if not self.ranks.first:  # the first process removes broken states
            self.ranks.wait()
        found = self.checkpoints.newest()
        if self.ranks.first:
            self.ranks.wait()
        if found is not None:
            self.state = unpack(*found, self.parts)
