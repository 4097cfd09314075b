"""LoRA on the product of two factors instead of on each factor: y = N (M x) + b + s B (A x).

Merging yields two factors with the same outputs and a larger rank: M' = [M; A], N' = [N, s B], rank r + r_A. (Adapters
on the factors themselves keep the rank.) ``LoraConfig._register_custom_module`` registers this class with ``peft`` for
``LowRankLinear``.
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from lowrank_speech.lowrank.adapter import plus_update
from lowrank_speech.lowrank.linear import LowRankLinear


class ProductLora(nn.Module, LoraLayer):
    """peft's layer around one ``LowRankLinear``: (..., d_in) -> (..., d_out).

    Supports only plain LoRA: DoRA, PiSSA, OLoRA and orthogonal inits need a single weight matrix, but here are two.
    """

    def __init__(
        self, base_layer: LowRankLinear, adapter_name: str, config: LoraConfig, r: int, lora_alpha: float, **kwargs: Any
    ):
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config=config)

    def _get_in_out_features(self, module: LowRankLinear) -> tuple[int, int]:
        return module.in_features, module.out_features

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result = self.base_layer(x)
        if self.merged or self.disable_adapters:
            return result
        for name in self.active_adapters:
            dropped = self.lora_dropout[name](x)
            result = plus_update(result, dropped, self.lora_A[name], self.lora_B[name], self.scaling[name])
        return result

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Append the adapters to the factors. With ``safe_merge``, raises ValueError if a weight is not finite."""
        first, second = self.base_layer.first, self.base_layer.second
        for name in adapter_names or self.active_adapters:
            if name in self.merged_adapters:
                continue
            A, B = self.lora_A[name].weight, self.lora_B[name].weight * self.scaling[name]
            if safe_merge and not (torch.isfinite(A).all() and torch.isfinite(B).all()):
                raise ValueError(f"the adapter {name!r} has weights that are not finite; train it with a lower lr")
            self._set(torch.cat([first.weight, A.to(first.weight)]), torch.cat([second.weight, B.to(second.weight)], 1))
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Remove the merged adapters from the factors, bit for bit."""
        first, second = self.base_layer.first, self.base_layer.second
        while self.merged_adapters:
            rank = first.out_features - self.r[self.merged_adapters.pop()]
            self._set(first.weight[:rank].clone(), second.weight[:, :rank].clone())

    def _set(self, first: Tensor, second: Tensor) -> None:
        for layer, weight in ((self.base_layer.first, first), (self.base_layer.second, second)):
            layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
            layer.out_features, layer.in_features = weight.shape
