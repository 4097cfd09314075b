"""What a training cost: parameters, exact bytes, peak memory, speed."""

import logging
from typing import TYPE_CHECKING, Any

import torch

from lowrank_speech.artefact import peak_memory
from lowrank_speech.training.memory.dry_run import byte_counts

if TYPE_CHECKING:
    from lowrank_speech.training.loop import Trainer

log = logging.getLogger(__name__)


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process: what CUDA has allocated on a GPU, else the resident memory."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def cost(trainer: "Trainer", metric: float | None) -> dict[str, Any]:
    """The numbers of a run that is over, for the manifest; and one line in the log. ``metric``: the result's on dev."""
    ctc = trainer.objective.ctc
    held = byte_counts((trainer.model, trainer.objective), trainer.optimiser)
    numbers = {
        "parameters_trained": sum(p.numel() for p in trainer.trained().values()),
        "bytes": held | {"activations": trainer.activations},
        "steps": trainer.step,
        "epochs": trainer.epoch,
        "steps_skipped": trainer.stepper.skipped,
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
        "%d parameters trained; %.1f MB of weights, %.1f MB of gradients, %.1f MB of optimiser state, %.1f MB peak "
        "memory; %.1f s of speech per second",
        *(numbers["parameters_trained"], *(n / 1e6 for n in held.values())),
        *(numbers["peak_bytes"] / 1e6, numbers["speech_seconds_per_second"]),
    )
    return numbers
