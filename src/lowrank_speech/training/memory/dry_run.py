"""A dry run: the largest batch forward and back before the first step, to see whether it fits."""

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
    """Forward and backward pass of ``batch`` without an update; returns the bytes of activations saved between them.

    Empty tensors take the room of the optimiser's state, which the first update would make. UserError (see
    ``explained``) where memory runs out. Weights, draws and counters stay as they are.
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
    log.info("%s fits: its activations are %.1f MB", described(batch["cuts"]), kept.bytes / 1e6)
    return kept.bytes


def room_for_state(parameters: Iterable[Tensor], config: TrainConfig) -> list[Tensor]:
    """Empty tensors as large as the optimiser's state for ``parameters``; SGD's momentum is counted as AdamW's."""
    # bitsandbytes keeps smaller tensors in float32.
    eight = config.optimiser == "adamw8bit"
    types = {p: torch.uint8 if eight and p.numel() >= 4096 else p.dtype for p in parameters}
    return [torch.empty_like(p, dtype=dtype) for p, dtype in types.items() for _ in "mv"]
