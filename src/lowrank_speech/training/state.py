"""The state of a training between two updates: everything that decides how it continues."""

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowrank_speech.errors import UserError
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.losses.objective import Objective
from lowrank_speech.training.memory.bytes import peak_bytes
from lowrank_speech.training.process.distributed import Ranks
from lowrank_speech.training.process.rng import rng_state, set_rng_state
from lowrank_speech.training.step import Stepper

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]


@dataclass
class Sums:
    """What an epoch has summed up so far: the task's loss and its units, impossible targets, skipped steps."""

    loss: float = 0.0
    units: int = 0
    impossible: int = 0
    skipped: int = 0

    @property
    def mean(self) -> float | None:
        """The loss per unit; None where no step counted."""
        return self.loss / self.units if self.units else None


@dataclass
class State:
    """Where a training is, and what it has measured and kept until there.

    epoch, batch        epochs that are done, and batches that are done in the next one
    steps, largest      of the plan: steps of the whole run, indices of the cuts in its largest batch
    sums, history       of this epoch, and a row for each one before
    best, best_metric   weights of the best evaluation (``keep: best``) and its metric
    recent              weights of the last evaluations (``average``)
    blank_evaluations   evaluations in a row in which CTC's output was only blank
    speech, seconds     of training: seconds of speech, and of time inside of steps
    """

    epoch: int = 0
    batch: int = 0
    steps: int | None = None
    largest: list[int] = field(default_factory=list)
    sums: Sums = field(default_factory=Sums)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: Weights | None = None
    best_metric: float = float("inf")
    recent: list[Weights] = field(default_factory=list)
    blank_evaluations: int = 0
    speech: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0


class Parts(NamedTuple):
    """What has a state of its own. ``key`` stands for settings, inputs and code of the run."""

    key: str
    model: SpeechModel
    objective: Objective
    stepper: Stepper
    ranks: Ranks
    device: torch.device

    @property
    def ctc(self) -> str | None:
        """The back end of CTC."""
        return self.objective.backend and self.objective.backend.backend


# -- on disk -----------------------------------------------------------------------------------------------------------

SAVED = ("key", "ctc", "model", "objective", "stepper", "state", "rng")


def pack(state: State, parts: Parts) -> dict[str, Any]:
    """What is written to disk. Tensors on the CPU are the training's own: write them before the next step.

    Every process must call it: the first one's state holds the random generators of all.
    """
    state.peak_bytes = max(state.peak_bytes, peak_bytes(parts.device))
    return {
        "key": parts.key,
        "ctc": parts.ctc,
        "model": {name: tensor.cpu() for name, tensor in changing(parts.model).items()},
        "objective": parts.objective.state_dict(),
        "stepper": parts.stepper.state_dict(),
        "state": {**vars(state), "sums": vars(state.sums)},
        "rng": parts.ranks.gather(rng_state(parts.device)),
    }


def unpack(path: Path, saved: dict[str, Any], parts: Parts) -> State:
    """The state in ``saved``, read from ``path``; puts the rest into ``parts``. UserError where it is another run's."""
    missing = [name for name in SAVED if name not in saved]
    missing = missing or [f.name for f in fields(State) if f.name not in saved["state"]]
    if missing:
        raise UserError(
            f"{path} cannot be read: another version of this program wrote it (it has no {missing[0]!r}); remove "
            f"{path.parent} to start again"
        )
    if saved["key"] != parts.key:
        raise UserError(
            f"{path} belongs to a run with other settings or inputs ({saved['key'][:12]}, this one is "
            f"{parts.key[:12]}); remove {path.parent} to start again"
        )
    if parts.ctc is not None and saved["ctc"] != parts.ctc:
        raise UserError(
            f"{path} belongs to a run that computed CTC by {saved['ctc']}, and this one computes it by {parts.ctc}; "
            f"continue where the first one ran, or remove {path.parent} to start again"
        )
    put(saved["model"], parts.model)
    parts.objective.load_state_dict(saved["objective"])
    parts.stepper.load_state_dict(saved["stepper"])
    state = State(**{**saved["state"], "sums": Sums(**saved["state"]["sums"])})
    set_rng_state(saved["rng"][parts.ranks.rank], parts.device)
    log.info("continuing from %s: epoch %d, batch %d, step %d", path, state.epoch + 1, state.batch, parts.stepper.steps)
    return state


# -- weights -----------------------------------------------------------------------------------------------------------


def changing(model: nn.Module) -> Weights:
    """Parameters that train and saved buffers (running statistics of a batch normalisation) by name; not copies."""
    saved = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad} | buffers


def copied(weights: Weights) -> Weights:
    """Copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}


@torch.no_grad()
def put(weights: Weights, model: nn.Module) -> None:
    """Copy ``weights`` into ``model``; KeyError where one that trains is missing."""
    for name, tensor in changing(model).items():
        tensor.copy_(weights[name])
