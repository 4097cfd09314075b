"""Mixed precision: autocast, and frozen weights in half precision.

Trained weights are always float32. ``precision: bf16`` or ``fp16`` computes matrix products in that format (autocast).
``frozen_dtype`` also holds the frozen matrices in it, so that a LoRA training needs half the memory for its base. A
file keeps the original frozen weights; after training they are restored bit for bit, and adapters are merged into them.
Biases, norms and positions, a thousandth of the weights, stay in float32.
"""

import contextlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_speech.artefact import atomic
from lowrank_speech.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device, keep: bool = True) -> contextlib.AbstractContextManager:
    """A context in which a forward pass computes in ``precision``.

    ``keep``: cache the low-precision copies of trained weights until the pass is over. The backward pass reads them,
    except under gradient checkpointing, which casts again: there the cache would waste half of the model's bytes.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision], cache_enabled=keep)


def check(precision: str, device: torch.device) -> None:
    """Raise UserError if the device cannot train in ``precision``."""
    if precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"training.precision: fp16 needs CUDA (its small gradients need a scaled loss), but the device is "
            f"{device.type}; set bf16 or fp32"
        )


class FrozenWeights:
    """Holds the frozen matrices of ``model`` in another dtype, from ``hold()`` to ``restore()``.

    ``file``: keeps the original values meanwhile. Only the process that saves the model needs one.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, file: Path | None):
        self.model, self.dtype, self.file = model, dtype, file

    def names(self) -> list[str]:
        """Names of the frozen matrices, tied ones once; without position embeddings, which are only added."""
        return [
            name
            for name, p in self.model.named_parameters()
            if not p.requires_grad and p.dim() > 1 and not name.endswith("embed_positions.weight")
        ]

    @torch.no_grad()
    def hold(self) -> None:
        """Write the float32 values to the file, and convert the matrices to ``dtype``."""
        self._held = self.names()
        parameters = dict(self.model.named_parameters())
        if self.file is not None:
            with atomic(self.file) as temporary:
                save_file({name: parameters[name].detach().contiguous().cpu() for name in self._held}, temporary)
        for name in self._held:
            parameters[name].data = parameters[name].data.to(self.dtype)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the float32 values and remove the file; without a file, convert from ``dtype``."""
        parameters = dict(self.model.named_parameters())
        if self.file is None:
            for name in self._held:
                parameters[name].data = parameters[name].data.float()
            return
        kept = load_file(self.file)
        for name in self._held:
            parameters[name].data = kept[name].to(parameters[name].device, copy=True)
        del kept
        self.file.unlink()
