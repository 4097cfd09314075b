"""What a training cost: parameters, exact bytes of optimiser and gradients, peak memory, speed."""

import logging
from typing import TYPE_CHECKING, Any

import torch

from lowrank_speech.artefact import peak_memory

if TYPE_CHECKING:
    from lowrank_speech.training.loop import Trainer

log = logging.getLogger(__name__)


def optimiser_bytes(optimiser: torch.optim.Optimizer) -> int:
    """Size of the tensors that the optimiser keeps (AdamW: two moments and a counter for each parameter)."""
    states = optimiser.state.values()
    return sum(v.nbytes for state in states for v in state.values() if isinstance(v, torch.Tensor))


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process: what CUDA has allocated on a GPU, else the resident memory."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def cost(trainer: "Trainer", metric: float | None) -> dict[str, Any]:
    """The numbers of a run that is over, for the manifest; and one line in the log. ``metric``: the result's on dev."""
    ctc = trainer.objective.ctc
    numbers = {
        "parameters_trained": sum(p.numel() for p in trainer.trained().values()),
        "optimiser_bytes": optimiser_bytes(trainer.optimiser),
        "gradient_bytes": trainer.gradient_bytes,
        "steps": trainer.step,
        "epochs": trainer.epoch,
        "steps_skipped": trainer.skipped,
        "seconds_train": round(trainer.seconds, 3),
        "speech_seconds_per_second": round(trainer.speech / max(trainer.seconds, 1e-9), 3),
        "dev_metric": metric,
        "averaged": trainer.averaged,
        "deviation": None if trainer.constraint is None else trainer.deviation(),
        "ctc": ctc and {"backend": ctc.backend, "version": ctc.version},
        "ctc_impossible": trainer.history[-1].get("ctc_impossible"),
        # A run that went on has had more than one process.
        "peak_bytes": max(trainer.peak_bytes, peak_bytes(trainer.device)),
    }
    log.info(
        "%d parameters trained; %.1f MB of gradients, %.1f MB of optimiser state, %.1f MB peak memory; "
        "%.1f s of speech per second",
        *(numbers["parameters_trained"], numbers["gradient_bytes"] / 1e6, numbers["optimiser_bytes"] / 1e6),
        *(numbers["peak_bytes"] / 1e6, numbers["speech_seconds_per_second"]),
    )
    return numbers
