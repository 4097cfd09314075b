"""Memory of a training: bytes of weights, gradients, optimiser state and activations, and the peak."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lowrank_speech.artefact import peak_memory


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process: memory allocated by CUDA on a GPU, otherwise resident memory."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts what a forward pass saves for the backward pass: ``bytes`` of distinct storages, without ``weights``.

    With gradient checkpointing, these are only the activations between layers; those within a layer add to them while
    it is recomputed.
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

    Counts gradients of parameters that were updated at least once: these have optimiser state, except in SGD without
    momentum.
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
