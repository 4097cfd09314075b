"""Memory of a training: bytes by what holds them, a rehearsal of the largest batch, what to say when it runs out."""

import contextlib
import logging
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_speech.errors import UserError
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.memory.layers import compiling

log = logging.getLogger(__name__)

_SIGNS = ("out of memory", "not enough memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate")


# -- running out -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def explained(batch: dict[str, Any] | None, config: TrainConfig) -> Iterator[None]:
    """Turn an allocation that failed into one line that names the batch (None: the model) and what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        if batch is None:
            raise UserError(
                "out of memory before the first batch: the model itself does not fit; take a smaller base, or adapt: "
                "lora with frozen_dtype: bf16 (and precision: bf16)"
            ) from error
        raise UserError(f"out of memory on {described(batch['cuts'])}: {_advice(config, batch['cuts'])}") from error


def padded_seconds(cuts: list[Any]) -> float:
    """Seconds of speech of a batch of ``cuts``, with padding."""
    return max(cut.duration for cut in cuts) * len(cuts)


def described(cuts: list[Any]) -> str:
    """What a batch is, for a message: utterances, seconds with padding, the longest."""
    longest = max(cuts, key=lambda cut: cut.duration)
    return (
        f"a batch of {len(cuts)} utterance{'s' * (len(cuts) > 1)}, {padded_seconds(cuts):.1f} s with padding (longest: "
        f"{longest.id}, {longest.duration:.1f} s)"
    )


def _advice(config: TrainConfig, cuts: list[Any]) -> str:
    if len(cuts) > 1:
        todo = [f"lower training.batch_seconds ({config.batch_seconds:g}; `accumulate` makes up for it)"]
    else:
        todo = ["cut or leave out utterances as long as that (the corpus's max_seconds, for lid segment)"]
    if not config.gradient_checkpointing:
        todo.append("set gradient_checkpointing: true")
    if config.precision == "fp32":
        todo.append("set precision: bf16")
        todo[-1] += " (with adapt: lora, frozen_dtype: bf16 too)"
    elif config.frozen_dtype == "fp32":
        todo.append(f"set frozen_dtype: {config.precision} (with adapt: lora)")
    return ", or ".join(todo)


# -- the rehearsal -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def same_draws(generators: Iterable[torch.Generator] = ()) -> Iterator[None]:
    """Whatever is drawn inside, what is drawn afterwards is as if nothing had been."""
    generators = list(generators)
    states = [g.get_state() for g in generators]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def rehearse(stepper: Any, batch: dict[str, Any]) -> int:
    """Forward and backward of ``batch`` without an update; the bytes of activations saved between them.

    The optimiser's state, which comes into being at the first update, is stood in for by empty tensors. UserError
    (see ``explained``) where memory does not suffice. Weights, draws and counters stay as they are.
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
    # bitsandbytes keeps what has fewer elements than that in float32.
    eight = config.optimiser == "adamw8bit"
    types = {p: torch.uint8 if eight and p.numel() >= 4096 else p.dtype for p in parameters}
    return [torch.empty_like(p, dtype=dtype) for p, dtype in types.items() for _ in "mv"]


# -- bytes -------------------------------------------------------------------------------------------------------------


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts what a forward pass saves for the backward pass: ``bytes`` of distinct storages, ``weights`` left out.

    With gradient checkpointing this is what is kept between the layers; a layer's own comes on top while it is
    computed again.
    """

    def __init__(self, weights: Iterable[Tensor] = ()):
        self._seen = {w.untyped_storage().data_ptr() for w in weights}
        self.bytes = 0
        super().__init__(self._pack, lambda tensor: tensor)

    def __enter__(self) -> "SavedTensors":
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def byte_counts(modules: Iterable[nn.Module], optimiser: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of ``weights`` (parameters and buffers, tied ones once), ``gradients`` and ``optimiser`` state.

    Gradients are those of the parameters that were ever updated: what has no state never had a gradient, unless its
    optimiser keeps none (SGD without momentum).
    """
    tensors = {id(t): t for module in modules for t in [*module.parameters(), *module.buffers()]}
    state = [(p, values) for p, values in optimiser.state.items() if values]
    stateless = [p for group in optimiser.param_groups if group.get("momentum") == 0 for p in group["params"]]
    held = {id(v): v for _, values in state for v in values.values() if isinstance(v, Tensor)}
    return {
        "weights": sum(t.nbytes for t in tensors.values()),
        "gradients": sum(p.nbytes for p, _ in state) + sum(p.nbytes for p in stateless),
        "optimiser": sum(v.nbytes for v in held.values()),
    }
