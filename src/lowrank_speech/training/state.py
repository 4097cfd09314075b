"""The state of a training between two updates: all that decides how it continues."""

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
from lowrank_speech.training.step import Stepper, StepResult

log = logging.getLogger(__name__)

Weights = dict[str, Tensor]


@dataclass
class Sums:
    """Sums over an epoch so far: the task's loss and its units, impossible targets, skipped steps.

    ``shown``: name -> sum and units of the terms that the objective shows.
    """

    loss: float = 0.0
    units: int = 0
    impossible: int = 0
    skipped: int = 0
    shown: dict[str, list[float]] = field(default_factory=dict)

    def add(self, result: StepResult) -> None:
        """Add an update."""
        self.loss += result.task_sum
        self.units += result.units
        self.impossible += result.impossible
        for name, (total, units) in result.shown.items():
            before = self.shown.get(name, (0.0, 0))
            self.shown[name] = [before[0] + total, before[1] + units]

    @property
    def means(self) -> dict[str, float]:
        """The shown terms per unit, by the names of the history."""
        return {f"loss_{name}": total / max(units, 1) for name, (total, units) in self.shown.items()}

    @property
    def mean(self) -> float | None:
        """The loss per unit; None if every step was skipped."""
        return self.loss / self.units if self.units else None


@dataclass
class State:
    """The position of a training, and what it has measured and kept so far.

    epoch, batch        number of finished epochs, and of finished batches in the current one
    steps, largest      the plan: steps of the whole run, and the indices of the cuts in its largest batch
    sums, history       sums of the current epoch, and a row for each earlier one
    best, best_metric   weights of the best evaluation (``keep: best``) and its metric
    recent              weights of the last evaluations (``average``)
    truncations         number of truncations so far (``truncation``)
    blank_evaluations   evaluations in a row in which CTC's output was only blank
    speech, seconds     seconds of speech trained on, and seconds spent in steps
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
    truncations: int = 0
    blank_evaluations: int = 0
    speech: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0


class Parts(NamedTuple):
    """The components that have a state of their own. ``key`` identifies the run's settings, inputs and code."""

    key: str
    model: SpeechModel
    objective: Objective
    stepper: Stepper
    ranks: Ranks
    device: torch.device
    truncation: Any = None

    @property
    def ctc(self) -> str | None:
        """The CTC back end."""
        return self.objective.backend and self.objective.backend.backend


# -- on disk -----------------------------------------------------------------------------------------------------------

SAVED = ("key", "ctc", "model", "objective", "stepper", "state", "rng")


def pack(state: State, parts: Parts) -> dict[str, Any]:
    """The state to save. It shares tensors on the CPU with the training, so write it before the next step.

    Every process must call this: the first one's state holds the random generators of all.
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
    """Return the state in ``saved``, read from ``path``, and load the rest into ``parts``.

    Raises UserError if it belongs to another run.
    """
    missing = [name for name in SAVED if name not in saved]
    missing = missing or [f.name for f in fields(State) if f.name not in saved["state"]]
    if missing:
        raise UserError(
            f"{path} cannot be read: it has no {missing[0]!r}, so another version of this program wrote it; remove "
            f"{path.parent} to start again"
        )
    if saved["key"] != parts.key:
        raise UserError(
            f"{path} belongs to a run with other settings or inputs (its key is {saved['key'][:12]}, this run's is "
            f"{parts.key[:12]}); remove {path.parent} to start again"
        )
    if parts.ctc is not None and saved["ctc"] != parts.ctc:
        raise UserError(
            f"{path} belongs to a run that computed CTC with {saved['ctc']}, but here CTC runs with {parts.ctc}; "
            f"continue where that run started, or remove {path.parent} to start again"
        )
    if parts.truncation is not None:
        parts.truncation.fit(saved["state"]["truncations"], parts.stepper.optimiser)
    put(saved["model"], parts.model)
    parts.objective.load_state_dict(saved["objective"])
    parts.stepper.load_state_dict(saved["stepper"])
    state = State(**{**saved["state"], "sums": Sums(**saved["state"]["sums"])})
    set_rng_state(saved["rng"][parts.ranks.rank], parts.device)
    log.info("continuing from %s: epoch %d, batch %d, step %d", path, state.epoch + 1, state.batch, parts.stepper.steps)
    return state


# -- weights -----------------------------------------------------------------------------------------------------------


def changing(model: nn.Module) -> Weights:
    """Trainable parameters and persistent buffers (batch normalisation's running statistics) by name; not copies."""
    saved = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad} | buffers


def copied(weights: Weights) -> Weights:
    """Copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights.items()}


@torch.no_grad()
def put(weights: Weights, model: nn.Module) -> None:
    """Copy ``weights`` into ``model``. Raises KeyError if a trainable one is missing."""
    for name, tensor in changing(model).items():
        tensor.copy_(weights[name])
