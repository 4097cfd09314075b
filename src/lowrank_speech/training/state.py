"""The state of a training between two steps: everything that decides how it goes on."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank_speech.errors import UserError
from lowrank_speech.training.cost import peak_bytes
from lowrank_speech.training.process.checkpoint import another_run
from lowrank_speech.training.process.rng import rng_state, set_rng_state
from lowrank_speech.training.weights import changing, put

if TYPE_CHECKING:
    from lowrank_speech.training.loop import Trainer

log = logging.getLogger(__name__)

# Attributes of the trainer that a state has as they are: the position, the epoch's sums, counters.
PLAIN = ("epoch", "batch", "sums", "best_metric", "blank_evaluations")
PLAIN += ("speech", "seconds", "peak_bytes", "history", "best", "steps", "largest")
PARTS = ("key", "ctc", "model", "objective", "stepper", "recent", "plain", "rng")


def state_of(trainer: "Trainer") -> dict[str, Any]:
    """The state; its tensors are the trainer's own where they lie on the CPU, so write it before the next step.

    Every process must call it: what each draws by is in the state of the first.
    """
    trainer.peak_bytes = max(trainer.peak_bytes, peak_bytes(trainer.device))
    return {
        "key": trainer.key,
        "ctc": trainer.objective.ctc and trainer.objective.ctc.backend,
        "model": {name: tensor.cpu() for name, tensor in changing(trainer.model.hf).items()},
        "objective": trainer.objective.state_dict(),
        "stepper": trainer.stepper.state_dict(),
        "recent": list(trainer.recent),
        "plain": {name: getattr(trainer, name) for name in PLAIN},
        "rng": trainer.ranks.gather(rng_state(trainer.device)),
    }


def go_on(trainer: "Trainer", path: Path, state: dict[str, Any]) -> None:
    """Put ``trainer`` where ``state``, read from ``path``, was taken. UserError where it is another run's."""
    missing = [name for name in PARTS if name not in state]
    missing = missing or [name for name in PLAIN if name not in state["plain"]]
    if missing:
        raise UserError(
            f"{path} cannot be read: another version of this program wrote it (there is no {missing[0]!r}); remove "
            f"{path.parent} to start again"
        )
    if state["key"] != trainer.key:
        raise another_run(path, state["key"], trainer.key)
    ctc = trainer.objective.ctc
    if ctc is not None and state["ctc"] != ctc.backend:
        raise UserError(
            f"{path} belongs to a run whose CTC was {state['ctc']}'s, this one's is {ctc.backend}'s: go on where the "
            f"first one ran, or remove {path.parent} to start again"
        )
    put(state["model"], trainer.model.hf)
    trainer.objective.load_state_dict(state["objective"])
    trainer.stepper.load_state_dict(state["stepper"])
    trainer.recent.extend(state["recent"])
    for name in PLAIN:
        setattr(trainer, name, state["plain"][name])
    set_rng_state(state["rng"][trainer.ranks.rank], trainer.device)
    log.info("going on from %s: epoch %d, batch %d, step %d", path, trainer.epoch + 1, trainer.batch, trainer.step)
