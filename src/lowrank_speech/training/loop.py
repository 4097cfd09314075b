"""The training loop: epochs of updates (``step``), best on dev.

The whole state goes to ``scratch`` after every epoch and every ``save_minutes`` within one (state.py, checkpoint.py). A
run that was killed, or stopped by a signal, goes on from there and ends as it would have ended. A state is a position
between two updates: epoch, batches done in it, what the epoch has summed up. The evaluation belongs to the last update
of its epoch: nothing changes before it is over.

Of several processes (distributed.py) each goes through the same loop: whether to save, stop or evaluate is the same in
all of them, since each waits for the others there. The first one alone writes.
"""

import json
import logging
import math
import time
from collections import deque
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.contrib.logging import logging_redirect_tqdm

from lowrank_speech.artefact import atomic
from lowrank_speech.errors import Stopped, UserError
from lowrank_speech.features.batches import Cuts, Loader
from lowrank_speech.features.kept import KeptCuts, ListedCuts, numbered
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.sources import set_dropout
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.cost import cost
from lowrank_speech.training.data.plan import batching, plan
from lowrank_speech.training.evaluate import Dev, evaluate
from lowrank_speech.training.losses.objective import Objective
from lowrank_speech.training.memory.dry_run import explained, rehearse, same_draws
from lowrank_speech.training.memory.layers import as_before, checkpoint_layers, compile_layers, length_buckets
from lowrank_speech.training.memory.precision import DTYPES, FrozenWeights
from lowrank_speech.training.memory.precision import check as check_precision
from lowrank_speech.training.process.checkpoint import Checkpoints
from lowrank_speech.training.process.distributed import Ranks, grouped
from lowrank_speech.training.process.signals import Signals
from lowrank_speech.training.progress import Curves, Progress
from lowrank_speech.training.state import go_on, state_of
from lowrank_speech.training.step import Stepper
from lowrank_speech.training.weights import changing, copied, mean, put

log = logging.getLogger(__name__)


class Trainer:
    """Trains ``model`` on one task. ``heads``: names (relative to .hf) of modules with the head's learning rate.

    ``scratch``: folder of the states; ``events``: of TensorBoard's files, if there are to be any; ``ranks``: the
    processes that share the work. What trains is what has ``requires_grad`` when the trainer is made. ``constraint``
    (optional) has ``step()``, ``deviation()``, ``state_dict()`` and ``load_state_dict()``. UserError where every
    parameter is frozen.
    """

    def __init__(
        self,
        model: SpeechModel,
        objective: Objective,
        config: TrainConfig,
        seed: int,
        scratch: Path,
        key: str,
        loader: Loader,
        constraint: Any = None,
        events: Path | None = None,
        ranks: Ranks | None = None,
    ):
        self.config, self.seed, self.key, self.loader, self.constraint = config, seed, key, loader, constraint
        self.device = pick_device(config.device)
        check_precision(config.precision, self.device)
        self.ranks = ranks or Ranks()
        self.objective = objective.to(self.device)
        self.checkpoints, self.events = Checkpoints(scratch), events
        self.history: list[dict[str, Any]] = []
        self.epoch = self.batch = self.blank_evaluations = 0
        self.steps: int | None = None  # of the whole run
        self.largest: list[int] = []
        self.speech = self.seconds = 0.0
        self.peak_bytes = 0
        self.activations: int | None = None
        self.sums = self._no_sums()
        self.best: dict[str, torch.Tensor] | None = None
        self.best_metric = math.inf
        self.recent: deque[dict[str, torch.Tensor]] = deque(maxlen=config.average or 0)
        self.averaged = 0
        if config.dropout is not None:
            set_dropout(model, config.dropout)
        if not config.train_front_end:
            for parameter in model.front_end():
                parameter.requires_grad_(False)
        self.frozen = None
        if config.frozen_dtype != "fp32":
            file = scratch / "frozen.safetensors" if self.ranks.first else None
            self.frozen = FrozenWeights(model.hf, DTYPES[config.frozen_dtype], file)
            self.frozen.hold()
        with explained(None, config):
            self.model = model.to(self.device)
        if config.gradient_checkpointing:
            checkpoint_layers(model)
        if config.compile:
            compile_layers(model, static=config.compile_buckets is not None)
        self.stepper = Stepper(model, objective, config, self.device, seed, constraint, self.ranks)
        self.ranks.copy_from_first(self.stepper.parameters)
        if not self.ranks.first:  # its batches are others, and so is what it drops out
            torch.manual_seed(seed + self.ranks.rank)

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        return self.stepper.optimiser

    @property
    def step(self) -> int:
        """Updates of the weights so far, skipped ones included."""
        return self.stepper.steps

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters of the model (without auxiliary heads) that train, by name."""
        return {name: p for name, p in self.model.hf.named_parameters() if p.requires_grad}

    # -- one run -----------------------------------------------------------------------------------------------------

    def run(self, train: Cuts, dev: Cuts, metrics: Path) -> dict[str, Any]:
        """Train to the end; the model holds the best (or last, or mean) weights. Returns the cost and the dev metric.

        The states stay for the caller to clear once its outputs are written. Raises Stopped after SIGTERM or SIGUSR1,
        when the state is saved.
        """
        train, dev, first = numbered(train), numbered(dev), self.ranks.first
        with Signals() as self.signals, logging_redirect_tqdm():
            self._ready(train)
            self.progress = Progress(self.steps, self.step, shown=first)
            self.curves = Curves(self.events if first else None, self.step)
            self.last_save = time.monotonic()
            try:
                # Inside an epoch there may be no step left, but its end.
                while self.epoch < self.config.epochs and (
                    self.batch or (self.step < self.steps and not self._out_of_patience())
                ):
                    self._epoch(train)
                    self._end_of_epoch(dev)
                    self._save()
            except Stopped as stop:
                path = self._save()
                self.ranks.stop()
                raise Stopped(f"{stop}: {path} has the state; the same command goes on from step {self.step}") from None
            finally:
                self.progress.close()
                self.curves.close()
            if not any(row["loss"] is not None for row in self.history):
                raise UserError(
                    f"no step of {self.step} changed the weights: every loss or gradient was not finite; the lines "
                    f"above name utterances: look at their recordings, or lower lr and head_lr"
                )
            metric = self._choose(dev)
        self.model.eval()
        numbers = cost(self, metric)
        if self.frozen is not None:
            self.model.to("cpu")  # a GPU that the training filled may have no room for the whole weights
            self.frozen.restore()
        as_before(self.model)
        if first:
            with atomic(metrics) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in self.history), encoding="utf-8")
        self.ranks.stop()
        return numbers

    def _ready(self, train: KeptCuts | ListedCuts) -> None:
        """All that comes before the first step: the state of a run before, the plan, the dry run."""
        self._load()
        if self.steps is None:
            self.steps, self.largest = plan(train, self.config, self.seed, self.ranks.world, self.model.window_seconds)
        log.info(
            "%d utterances, %.0f s of speech, %d steps in %d epochs",
            *(len(train), float(train.durations.sum()), self.steps, self.config.epochs),
        )
        most, *_ = batching(self.config, self.seed, 0)
        if longer := int((train.durations > most).sum()):
            log.info(
                "%d utterances are longer than batch_seconds allows (%.1f s): each is a batch of its own", longer, most
            )
        if self.config.compile_buckets is not None and self.model.frame_rate is not None:
            longest = train.durations / min((1.0, *self.config.speed))
            self.model.buckets = length_buckets(longest, self.config.compile_buckets, self.model.frame_rate)
            log.info("encoder layers are compiled for these numbers of frames: %s", self.model.buckets)
        if self.config.dry_run or (self.config.dry_run is None and self.device.type == "cuda"):
            self._rehearse([train[i] for i in self.largest])

    def _rehearse(self, cuts: list[Any]) -> None:
        """A batch of ``cuts``, at the lowest speed, forward and back, without an update."""
        loader = copy(self.loader)
        if loader.augmentation is not None:
            loader.augmentation = loader.augmentation.at_the_slowest()
        with same_draws():
            batch = loader.collate(cuts, (self.seed, 0))
        self.activations = rehearse(self.stepper, batch)

    def _epoch(self, train: Cuts) -> None:
        """The rest of an epoch, from batch number ``self.batch`` on."""
        self.model.train()
        if self.step >= self.steps:
            return
        rank, world = self.ranks.rank, self.ranks.world
        how = batching(self.config, self.seed, self.epoch)
        dealt = self.loader.train(train, *how, skip=self.batch, rank=rank, world=world)
        for batches in grouped(dealt, self.config.accumulate * world):
            start = time.perf_counter()
            losses = self.stepper.step(batches, self.steps)
            self.seconds += time.perf_counter() - start
            speech = sum(cut.duration for batch in batches for cut in batch["cuts"])
            self.speech += speech
            self.batch += len(batches)
            if losses is None:
                self.sums["skipped"] += 1
            else:
                self.sums["loss"] += losses.task_sum
                self.sums["units"] += losses.units
                self.sums["impossible"] += losses.impossible
                values = {"loss": losses.task_sum / max(losses.units, 1), "gradient_norm": self.stepper.norm}
                self.curves.add(self.step, "step", values)
            self.progress.step(self.epoch + 1, self._mean_loss(), speech)
            due = self.ranks.first and time.monotonic() - self.last_save >= 60 * self.config.save_minutes
            stopped, due = self.ranks.sum([self.signals.received is not None, due])
            if stopped:
                raise self.signals.stop()
            if due:
                self._save()
            if self.step >= self.steps:
                break

    def _no_sums(self) -> dict[str, Any]:
        return {"loss": 0.0, "units": 0, "impossible": 0, "skipped": 0}

    def _mean_loss(self) -> float | None:
        """The epoch's loss per unit so far; None where no step counted."""
        return self.sums["loss"] / self.sums["units"] if self.sums["units"] else None

    def _end_of_epoch(self, dev: Cuts) -> None:
        """Row of the history, evaluation, and the position at the start of the next epoch."""
        number, impossible = self.epoch + 1, self.sums["impossible"]
        row = {"step": self.step, "epoch": number, "loss": self._mean_loss(), "skipped": self.sums["skipped"]}
        row["lr"] = self.optimiser.param_groups[0]["lr"]
        if self.constraint is not None:
            row["deviation"] = self.deviation()
        if self.objective.ctc is not None:
            row["ctc_impossible"] = impossible
        due = number % self.config.evaluate_every == 0 or number == self.config.epochs or self.step >= self.steps
        # Nothing changes before the evaluation is over: until then the state is that after the epoch's last step.
        found = self._evaluate(dev) if due else None
        if impossible:
            log.warning(
                "epoch %d: %d targets need more frames than their utterances have; CTC leaves them out",
                number,
                impossible,
            )
        if found is not None:
            row |= {"dev_loss": found.loss if math.isfinite(found.loss) else None, "dev_metric": found.metric}
            row |= {} if found.blank is None else {"dev_blank": found.blank}
            shown = "-" if row["loss"] is None else f"{row['loss']:.4f}"
            log.info("epoch %d: loss %s, dev loss %.4f, dev error %.4f", number, shown, found.loss, found.metric)
            self._note(found)
        self.history.append(row)
        self.curves.add(self.step, "epoch", row)
        self.epoch, self.batch, self.sums = number, 0, self._no_sums()

    def _note(self, found: Dev) -> None:
        """Keep the weights of an evaluation that may be the result, and look for a collapse of CTC."""
        if self.config.average:
            self.recent.append(copied(changing(self.model.hf)))
        if found.metric < self.best_metric:
            self.best_metric = found.metric
            if self.config.keep == "best":
                self.best = copied(changing(self.model.hf))
        if found.blank != 1.0 or not math.isfinite(found.loss):
            self.blank_evaluations = 0
            return
        self.blank_evaluations += 1
        advice = "train longer (epochs), warm up longer (warmup), raise head_lr or lower lr"
        log.warning("step %d: CTC's output is blank alone for all of dev; if it stays so: %s", self.step, advice)
        if self.blank_evaluations >= (self.config.blank_patience or math.inf):
            raise UserError(
                f"step {self.step}: CTC's output for dev was blank alone in {self.blank_evaluations} evaluations in a "
                f"row (blank_patience): {advice}"
            )

    def _evaluate(self, dev: Cuts) -> Dev:
        batches = self.loader.all(dev, 2 * self.config.batch_seconds, rank=self.ranks.rank, world=self.ranks.world)
        return evaluate(self.model, self.objective, self.config, batches, self.device, self.signals, self.ranks)

    def _out_of_patience(self) -> bool:
        if self.config.patience is None:
            return False
        dev = [row["dev_metric"] for row in self.history if "dev_metric" in row]
        return bool(dev) and len(dev) - 1 - dev.index(min(dev)) >= self.config.patience

    def _choose(self, dev: Cuts) -> float | None:
        """Put the weights that are the result into the model; their dev metric."""
        last = self.history[-1].get("dev_metric")
        if len(self.recent) > 1:
            put(mean(self.recent), self.model.hf)
            found = self._evaluate(dev).metric
            taken = self.config.keep == "last" or found <= self.best_metric
            log.info(
                "the mean of the last %d evaluations' weights: dev error %.4f; %s",
                *(len(self.recent), found, "taken" if taken else f"the best epoch's {self.best_metric:.4f} is better"),
            )
            if taken:
                self.averaged = len(self.recent)
                return found
        if self.config.keep == "last":
            return last
        if self.best is not None:
            put(self.best, self.model.hf)
        return self.best_metric

    def deviation(self) -> float:
        """The largest deviation of a constrained factor from semi-orthogonality."""
        return max(self.constraint.deviation().values(), default=0.0)

    # -- state -------------------------------------------------------------------------------------------------------

    def _save(self) -> Path:
        """Every process must call it; returns when the state is on the disk. Its path."""
        state = state_of(self)
        path = self.ranks.from_first(lambda: self.checkpoints.save(self.step, state))
        self.last_save = time.monotonic()
        return path

    def _load(self) -> None:
        if not self.ranks.first:  # it removes broken states
            self.ranks.wait()
        found = self.checkpoints.newest()
        if self.ranks.first:
            self.ranks.wait()
        if found is not None:
            go_on(self, *found)
