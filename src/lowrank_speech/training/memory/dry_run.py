"""The dry run: run the largest batch forward and backward before the first step, to see whether it fits into memory."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.memory.bytes import SavedTensors
from lowrank_speech.training.memory.layers import compiling
from lowrank_speech.training.memory.running_out import described, explained
from lowrank_speech.training.process.rng import same_draws

log = logging.getLogger(__name__)


def rehearse(stepper: Any, batch: dict[str, Any]) -> int:
    """Run ``batch`` forward and backward without an update; returns the bytes of activations saved in between.

    Empty tensors stand in for the optimiser's state, which the first update would allocate. Weights, random generators
    and counters do not change. Raises UserError (see ``explained``) if memory runs out.
    """
    was_training = stepper.model.training
    stepper.model.train()
    kept = SavedTensors(weights=stepper.model.parameters())
    with (
        same_draws([stepper.generator]),
        explained(batch, stepper.config),
        compiling(stepper.config.compile),
    ):
        stand_in = [] if stepper.optimiser.state else room_for_state(stepper.parameters, stepper.config)
        with kept:
            total = stepper.losses(batch).total
        total.backward()
    del stand_in
    stepper.optimiser.zero_grad(set_to_none=True)
    stepper.model.train(was_training)
    log.info("%s fits into memory: its activations take %.1f MB", described(batch["cuts"]), kept.bytes / 1e6)
    return kept.bytes


def room_for_state(parameters: Iterable[Tensor], config: TrainConfig) -> list[Tensor]:
    """Empty tensors as large as the optimiser's state for ``parameters``; SGD's state counts like AdamW's."""
    # bitsandbytes keeps smaller tensors in float32.
    eight = config.optimiser == "adamw8bit"
    types = {p: torch.uint8 if eight and p.numel() >= 4096 else p.dtype for p in parameters}
    return [torch.empty_like(p, dtype=dtype) for p, dtype in types.items() for _ in "mv"]
