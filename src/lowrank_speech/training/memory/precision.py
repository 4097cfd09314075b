"""Number formats in training: autocast, and frozen weights in half of their bytes.

Weights that train are always float32. ``precision: bf16`` or ``fp16`` computes matrix products in that format
(autocast). ``frozen_dtype`` also holds the frozen matrices in it: a LoRA training then needs half of the memory for its
base. Meanwhile the original frozen weights are kept in a file. They are put back afterwards, bit for bit, and adapters
are merged into them. Biases, norms and positions stay in float32; they are a thousandth of the weights.
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
    """The context in which a forward pass computes in ``precision``.

    ``keep``: hold the rounded copies of weights that train until the pass is over. The backward pass reads them, except
    under gradient checkpointing, which rounds again: there they would take half of the model's bytes for nothing.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision], cache_enabled=keep)


def check(precision: str, device: torch.device) -> None:
    """UserError where the device cannot train in ``precision``."""
    if precision == "fp16" and device.type != "cuda":
        raise UserError(
            f"training.precision: fp16 needs CUDA (its small gradients need a scaled loss), and the device is "
            f"{device.type}; set bf16 or fp32"
        )


class FrozenWeights:
    """The frozen matrices of ``model`` in another dtype, from ``hold()`` to ``restore()``.

    ``file``: where the original values are kept meanwhile. Only the process that saves the model needs one.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, file: Path | None):
        self.model, self.dtype, self.file = model, dtype, file

    def names(self) -> list[str]:
        """Names of the frozen matrices, tied ones once, without positions (which are added, not multiplied)."""
        return [
            name
            for name, p in self.model.named_parameters()
            if not p.requires_grad and p.dim() > 1 and not name.endswith("embed_positions.weight")
        ]

    @torch.no_grad()
    def hold(self) -> None:
        """Write the float32 values to the file, and hold the matrices in ``dtype``."""
        self._held = self.names()
        parameters = dict(self.model.named_parameters())
        if self.file is not None:
            with atomic(self.file) as temporary:
                save_file({name: parameters[name].detach().contiguous().cpu() for name in self._held}, temporary)
        for name in self._held:
            parameters[name].data = parameters[name].data.to(self.dtype)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the float32 values back and remove the file; without a file, convert from ``dtype``."""
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
