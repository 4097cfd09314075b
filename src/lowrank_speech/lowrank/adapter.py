"""LoRA on a linear layer, y = (W x + b) + s B (A x), without intermediate tensors as wide as y.

peft computes B (A x), scales it and adds it: three tensors that the backward pass never reads. Under autocast it also
converts x to float32, and the product rounds it again. Here a single ``addmm`` scales and adds. See
benchmarks/RESULTS-memory.md for measurements.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


def plus_update(result: Tensor, x: Tensor, first: nn.Linear, second: nn.Linear, scaling: float) -> Tensor:
    """``result`` (..., d_out) + ``scaling`` * ``second`` (d_out, r) of ``first`` (r, d_in) of ``x`` (..., d_in)."""
    inner = first(x).flatten(0, -2)
    return torch.addmm(result.flatten(0, -2), inner, second.weight.T, alpha=scaling).view(result.shape)


class LinearLora(Linear):
    """peft's layer around an ``nn.Linear``, with one ``addmm`` for a plain adapter and peft's own code otherwise."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self._one_plain_adapter()
        if name is None or args or kwargs or x.dim() < 2:
            return super().forward(x, *args, **kwargs)
        first, second = self.lora_A[name], self.lora_B[name]
        if not torch.is_autocast_enabled(x.device.type) and not (
            x.dtype == self.base_layer.weight.dtype == first.weight.dtype
        ):
            return super().forward(x)
        return plus_update(self.base_layer(x), self.lora_dropout[name](x), first, second, self.scaling[name])

    def _one_plain_adapter(self) -> str | None:
        """The name of the only active adapter if the layer only has to add its update, otherwise None."""
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1 or names[0] in self.lora_variant:
            return None
        return None if self.lora_bias[names[0]] else names[0]
