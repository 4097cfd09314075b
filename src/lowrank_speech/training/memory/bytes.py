"""Bytes of a training by what holds them: weights, gradients, optimiser state, activations; and the peak."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lowrank_speech.artefact import peak_memory


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process: what CUDA has allocated on a GPU, else the resident memory."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Counts what a forward pass saves for the backward pass: ``bytes`` of distinct storages, ``weights`` left out.

    With gradient checkpointing these are the activations between layers; those within a layer come on top while it is
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

    Gradients are counted for parameters that were ever updated. These have a state, unless their optimiser keeps none
    (SGD without momentum).
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
