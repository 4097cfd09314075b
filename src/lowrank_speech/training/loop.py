"""The training loop: AdamW with two learning rates, three-stage schedule, constraint after the step, best on dev.

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
from torch import nn
from tqdm import tqdm

from lowrank_speech.artefact import atomic, peak_memory
from lowrank_speech.errors import UserError
from lowrank_speech.features.batches import Cuts, Loader, batch_numbers
from lowrank_speech.features.kept import numbered
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.sources import set_dropout
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.augment import spec_augment
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.objective import Objective

log = logging.getLogger(__name__)

MOST_BAD_STEPS = 10


def schedule(step: int, steps: int, config: TrainConfig) -> float:
    """Factor on the learning rate at ``step`` of ``steps``: linear warm-up, hold, linear decay."""
    done = (step + 1) / steps
    if done < config.warmup:
        return done / config.warmup
    if done <= config.warmup + config.hold:
        return 1.0
    left = (1.0 - done) / max(1.0 - config.warmup - config.hold, 1e-9)
    return config.final + (1.0 - config.final) * left


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
        self.model, self.objective = model.to(self.device), objective.to(self.device)
        self.state_file = scratch / "state.pt"
        self.history: list[dict[str, Any]] = []
        self.step = self.epoch = self.bad_steps = self.skipped = self.speech = 0
        self.seconds = 0.0
        self.best: dict[str, torch.Tensor] | None = None
        self.best_metric = math.inf
        if config.dropout is not None:
            set_dropout(model, config.dropout)
        if not config.train_front_end:
            for parameter in model.front_end():
                parameter.requires_grad_(False)
        self.optimiser = self._optimiser()
        self.generator = torch.Generator().manual_seed(seed)

    def _optimiser(self) -> torch.optim.Optimizer:
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        heads = tuple(f"{name}." for name in self.model.head_names)
        for owner, named in (("", self.model.hf.named_parameters()), ("aux", self.objective.named_parameters())):
            for name, parameter in named:
                if not parameter.requires_grad:
                    continue
                is_head = owner == "aux" or (bool(heads) and any(h in f"{name}." for h in heads))
                lr = self.config.head_lr if is_head else self.config.lr
                groups.setdefault((lr, parameter.dim() > 1), []).append(parameter)
        if not groups:
            raise UserError("nothing to train: every parameter is frozen")
        return torch.optim.AdamW(
            [
                {"params": p, "lr": lr, "peak": lr, "weight_decay": self.config.weight_decay if decays else 0.0}
                for (lr, decays), p in groups.items()
            ],
            betas=(0.9, 0.98),
            fused=True,
        )

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters of the model (without auxiliary heads) that train, by name."""
        return {name: p for name, p in self.model.hf.named_parameters() if p.requires_grad}

    # -- one run -----------------------------------------------------------------------------------------------------

    def run(self, train: Cuts, dev: Cuts, metrics: Path) -> dict[str, Any]:
        """Train to the end; the model holds the best (or last) weights. Returns the cost and the dev metric."""
        train, dev = numbered(train), numbered(dev)
        seconds = float(train.durations.sum())
        per_epoch = sum(1 for _ in batch_numbers(train, *self._batching(0)))  # reads no cut
        steps = min(per_epoch * self.config.epochs, self.config.max_steps or per_epoch * self.config.epochs)
        log.info(
            "%d utterances, %.0f s of speech, %d steps in %d epochs", len(train), seconds, steps, self.config.epochs
        )
        self._load()
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
        with atomic(metrics) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in self.history), encoding="utf-8")
        self.state_file.unlink(missing_ok=True)
        return self._cost()

    def _batching(self, epoch: int) -> tuple[float, int, int, float | None]:
        return self.config.batch_seconds, self.seed, epoch, self.config.quadratic_seconds

    def _epoch(self, train: Cuts, steps: int, bar: tqdm) -> None:
        self.model.train()
        total, units, impossible = 0.0, 0, 0
        for batch in self.loader.train(train, *self._batching(self.epoch)):
            if self.step >= steps:
                break
            start = time.perf_counter()
            losses = self._step(batch, steps)
            self.seconds += time.perf_counter() - start
            speech = sum(cut.duration for cut in batch["cuts"])
            self.speech += speech
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

    def _step(self, batch: dict[str, Any], steps: int) -> Any:
        features, lengths = batch["features"], batch["lengths"]
        if self.config.spec_augment is not None and features.dim() == 3:
            features = spec_augment(features, lengths, self.config.spec_augment, self.generator)
        factor = schedule(self.step, steps, self.config)
        frozen_body = self.step < self.config.freeze_encoder_steps
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * factor
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses = self.objective(self.model, features.to(self.device), lengths.to(self.device), batch["cuts"])
        self.step += 1
        if not torch.isfinite(losses.total):
            self.bad_steps += 1
            self.skipped += 1
            log.warning("step %d: the loss is %s; batch skipped", self.step, losses.total.item())
            if self.bad_steps > MOST_BAD_STEPS:
                raise UserError(f"the loss was not finite in {self.bad_steps} steps in a row: lower lr or head_lr")
            return None
        self.bad_steps = 0
        losses.total.backward()
        if frozen_body:
            self._drop_body_gradients()
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self.config.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.constraint is not None:
            self.constraint.step()
        return losses

    def _drop_body_gradients(self) -> None:
        heads = self.model.head_names
        for name, parameter in self.model.hf.named_parameters():
            if not any(h in name for h in heads):
                parameter.grad = None

    @torch.no_grad()
    def _evaluate(self, dev: Cuts) -> None:
        self.model.eval()
        errors = units = 0
        loss, loss_units = 0.0, 0
        for batch in self.loader.all(dev, 2 * self.config.batch_seconds):
            features, lengths = batch["features"].to(self.device), batch["lengths"].to(self.device)
            found = self.objective(self.model, features, lengths, batch["cuts"])
            loss, loss_units = loss + found.task_sum, loss_units + found.units
            wrong, count = self.objective.errors(self.model, features, lengths, batch["cuts"])
            errors, units = errors + wrong, units + count
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
            "steps_skipped": self.skipped,
            "seconds_train": round(self.seconds, 3),
            "speech_seconds_per_second": round(self.speech / max(self.seconds, 1e-9), 3),
            "dev_metric": self.best_metric if self.config.keep == "best" else self.history[-1].get("dev_metric"),
            "deviation": self.history[-1].get("deviation"),
            "ctc": ctc and {"backend": ctc.backend, "version": ctc.version},
            "ctc_impossible": self.history[-1].get("ctc_impossible"),
            "peak_bytes": torch.cuda.max_memory_allocated(self.device) if cuda else peak_memory(),
        }

    # -- state -------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        state = {
            "key": self.key,
            "ctc": self.objective.ctc and self.objective.ctc.backend,
            "model": {name: p.detach().cpu() for name, p in self.trained().items()},
            "objective": self.objective.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "constraint": self.constraint.state_dict() if self.constraint is not None else None,
            "best": self.best,
            "best_metric": self.best_metric,
            "history": self.history,
            "counters": [self.step, self.epoch, self.skipped, self.speech, self.seconds, self.bad_steps],
            "rng": torch.get_rng_state(),
            "generator": self.generator.get_state(),
        }
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
        self.optimiser.load_state_dict(state["optimiser"])
        if self.constraint is not None:
            self.constraint.load_state_dict(state["constraint"])
        self.best, self.best_metric, self.history = state["best"], state["best_metric"], state["history"]
        self.step, self.epoch, self.skipped, self.speech, self.seconds, self.bad_steps = state["counters"]
        torch.set_rng_state(state["rng"])
        self.generator.set_state(state["generator"])
        log.info("resumed after epoch %d, step %d", self.epoch, self.step)
