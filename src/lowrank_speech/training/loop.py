"""The training loop: epochs of updates (``step``), best on dev.

State (model, optimiser, best weights, constraint's draws, RNG) goes to ``scratch`` after every epoch, atomically; a run
that was killed goes on from there and ends as it would have ended. The key of a state (hash of config and inputs) must
match, and so must the CTC back end, else it is refused.
"""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from torch import nn
from tqdm import tqdm

from lowrank_speech.artefact import atomic, peak_memory
from lowrank_speech.errors import UserError
from lowrank_speech.features.batches import Loader, sampler
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.sources import set_dropout
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.distributed import Ranks, grouped
from lowrank_speech.training.layers import as_before, checkpoint_layers, compile_layers
from lowrank_speech.training.memory import byte_counts, explained, largest, rehearse, same_draws
from lowrank_speech.training.objective import Objective
from lowrank_speech.training.precision import DTYPES, FrozenWeights, autocast
from lowrank_speech.training.precision import check as check_precision
from lowrank_speech.training.step import Stepper

log = logging.getLogger(__name__)


class Trainer:
    """Trains ``model`` on one task. ``heads``: names (relative to .hf) of modules with the head's learning rate.

    What trains is what has ``requires_grad`` when the trainer is made. ``constraint`` (optional) has ``step()``,
    ``deviation()``, ``state_dict()`` and ``load_state_dict()``.
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
    ):
        self.config, self.seed, self.key, self.loader, self.constraint = config, seed, key, loader, constraint
        self.device = pick_device(config.device)
        check_precision(config.precision, self.device)
        self.ranks = Ranks.start(config.processes, self.device)
        self.model, self.objective = model, objective.to(self.device)
        self.state_file = scratch / "state.pt"
        self.history: list[dict[str, Any]] = []
        self.epoch = self.speech = 0
        self.activations: int | None = None
        self.seconds = 0.0
        self.best: dict[str, torch.Tensor] | None = None
        self.best_metric = math.inf
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
        self.model = model.to(self.device)
        if config.gradient_checkpointing:
            checkpoint_layers(model)
        if config.compile:
            compile_layers(model)
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

    def run(self, train: CutSet, dev: CutSet, metrics: Path) -> dict[str, Any]:
        """Train to the end; the model holds the best (or last) weights. Returns the cost and the dev metric."""
        seconds = sum(cut.duration for cut in train)
        per_update = self.config.accumulate * self.ranks.world
        batches = [list(b) for b in sampler(train, self.config.batch_seconds, self.seed, 0)]  # reads no audio
        per_epoch = -(-len(batches) // per_update)
        steps = min(per_epoch * self.config.epochs, self.config.max_steps or per_epoch * self.config.epochs)
        log.info(
            "%d utterances, %.0f s of speech, %d steps in %d epochs", len(train), seconds, steps, self.config.epochs
        )
        self._load()
        if self.config.dry_run or (self.config.dry_run is None and self.device.type == "cuda"):
            with same_draws():
                batch = self.loader.collate(largest(batches))
            self.activations = rehearse(self.stepper, batch)
        bar = tqdm(total=steps, initial=self.step, disable=None, unit="step")
        while self.epoch < self.config.epochs and self.step < steps and not self._out_of_patience():
            self._epoch(train, steps, bar)
            self.epoch += 1
            if self.epoch % self.config.evaluate_every == 0 or self.epoch == self.config.epochs or self.step >= steps:
                self._evaluate(dev)
            self._save()
        bar.close()
        if self.config.keep == "best" and self.best is not None:
            self._restore(self.best)
        self.model.eval()
        cost = self._cost()
        if self.frozen is not None:
            self.model.to("cpu")  # a GPU that the training filled may have no room for the whole weights
            self.frozen.restore()
        as_before(self.model)
        if self.ranks.first:
            with atomic(metrics) as temporary:
                temporary.write_text("".join(json.dumps(row) + "\n" for row in self.history), encoding="utf-8")
            self.state_file.unlink(missing_ok=True)
        self.ranks.stop()
        return cost

    def _epoch(self, train: CutSet, steps: int, bar: tqdm) -> None:
        self.model.train()
        total, units, impossible = 0.0, 0, 0
        world = self.ranks.world
        dealt = self.loader.train(train, self.config.batch_seconds, self.seed, self.epoch, self.ranks.rank, world)
        for batches in grouped(dealt, self.config.accumulate * world):
            if self.step >= steps:
                break
            start = time.perf_counter()
            losses = self.stepper.step(batches, steps)
            self.seconds += time.perf_counter() - start
            self.speech += sum(cut.duration for batch in batches for cut in batch["cuts"])
            if losses is not None:
                total, units = total + losses.task_sum, units + losses.units
                impossible += losses.impossible
            bar.update()
            bar.set_postfix(epoch=self.epoch, loss=f"{total / max(units, 1):.3f}", refresh=False)
        row = {"step": self.step, "epoch": self.epoch + 1, "loss": total / max(units, 1)}
        row["lr"] = self.optimiser.param_groups[0]["lr"]
        if self.constraint is not None:
            row["deviation"] = max(self.constraint.deviation().values(), default=0.0)
        if self.objective.ctc is not None:
            row["ctc_impossible"] = impossible
            if impossible:
                log.warning(
                    "epoch %d: %d targets need more frames than their utterances have; CTC leaves them out",
                    self.epoch + 1,
                    impossible,
                )
        self.history.append(row)

    @torch.no_grad()
    def _evaluate(self, dev: CutSet) -> None:
        self.model.eval()
        errors = units = 0
        loss, loss_units = 0.0, 0
        for i, batch in enumerate(self.loader.all(dev, 2 * self.config.batch_seconds)):
            if i % self.ranks.world != self.ranks.rank:
                continue
            features, lengths = batch["features"].to(self.device), batch["lengths"].to(self.device)
            with explained(batch, self.config), autocast(self.config.frozen_dtype, self.device):
                found = self.objective(self.model, features, lengths, batch["cuts"])
                wrong, count = self.objective.errors(self.model, features, lengths, batch["cuts"])
            loss, loss_units = loss + found.task_sum, loss_units + found.units
            errors, units = errors + wrong, units + count
        errors, units, loss, loss_units = self.ranks.sum([errors, units, loss, loss_units])
        metric, dev_loss = errors / max(units, 1), loss / max(loss_units, 1)
        self.history[-1].update(dev_loss=dev_loss, dev_metric=metric)
        log.info(
            "epoch %d: loss %.4f, dev loss %.4f, dev error %.4f", self.epoch, self.history[-1]["loss"], dev_loss, metric
        )
        if metric < self.best_metric:
            self.best_metric = metric
            self.best = {name: p.detach().cpu().clone() for name, p in self.trained().items()}

    def _out_of_patience(self) -> bool:
        if self.config.patience is None:
            return False
        dev = [row["dev_metric"] for row in self.history if "dev_metric" in row]
        return len(dev) > self.config.patience and min(dev[-self.config.patience :]) > self.best_metric

    def _restore(self, state: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.trained().items():
                parameter.copy_(state[name])

    def _cost(self) -> dict[str, Any]:
        cuda, ctc = self.device.type == "cuda", self.objective.ctc
        return {
            "parameters_trained": sum(p.numel() for p in self.trained().values()),
            "steps": self.step,
            "epochs": self.epoch,
            "steps_skipped": self.stepper.skipped,
            "seconds_train": round(self.seconds, 3),
            "speech_seconds_per_second": round(self.speech / max(self.seconds, 1e-9), 3),
            "dev_metric": self.best_metric if self.config.keep == "best" else self.history[-1].get("dev_metric"),
            "deviation": self.history[-1].get("deviation"),
            "ctc": ctc and {"backend": ctc.backend, "version": ctc.version},
            "ctc_impossible": self.history[-1].get("ctc_impossible"),
            "bytes": byte_counts((self.model, self.objective), self.optimiser) | {"activations": self.activations},
            "peak_bytes": torch.cuda.max_memory_allocated(self.device) if cuda else peak_memory(),
        }

    # -- state -------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        state = {
            "key": self.key,
            "ctc": self.objective.ctc and self.objective.ctc.backend,
            "model": {name: p.detach().cpu() for name, p in self.trained().items()},
            "objective": self.objective.state_dict(),
            "stepper": self.stepper.state_dict(),
            "best": self.best,
            "best_metric": self.best_metric,
            "history": self.history,
            "counters": [self.epoch, self.speech, self.seconds],
            "rng": self.ranks.gather(torch.get_rng_state()),
        }
        if not self.ranks.first:
            return
        with atomic(self.state_file) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        if not self.state_file.is_file():
            return
        state = torch.load(self.state_file, map_location="cpu", weights_only=True)
        if state["key"] != self.key:
            raise UserError(
                f"{self.state_file} belongs to a run with other settings or inputs ({state['key'][:12]}, this is "
                f"{self.key[:12]}): remove it to start again"
            )
        ctc = self.objective.ctc
        # States written before there was a choice do not name it.
        if ctc is not None and (before := state.get("ctc", "torch")) != ctc.backend:
            raise UserError(
                f"{self.state_file} belongs to a run whose CTC was {before}'s, this one's is {ctc.backend}'s: go on "
                f"where the first one ran, or remove the file to start again"
            )
        self._restore(state["model"])
        self.objective.load_state_dict(state["objective"])
        self.stepper.load_state_dict(state["stepper"])
        self.best, self.best_metric, self.history = state["best"], state["best_metric"], state["history"]
        self.epoch, self.speech, self.seconds = state["counters"]
        torch.set_rng_state(state["rng"][self.ranks.rank])
        log.info("resumed after epoch %d, step %d", self.epoch, self.step)
