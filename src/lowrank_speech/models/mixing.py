"""The states of all encoder layers, and their learnt weighted sum.

    with layer_states(layers) as found: ...      # [input of the first layer, output of the first, ..., of the last]
    LayerSum(len(found))(found)

The sum of softmax(w)_l h_l is over the input of the first layer and the outputs of all layers, the last of them after
the encoder's final norm, if it has one. It starts with equal weights. Source: Yang et al., "SUPERB", Interspeech 2021.

B batch, F frames, D hidden size.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class LayerSum(nn.Module):
    """A weighted sum of ``number`` states (B, F, D)."""

    def __init__(self, number: int):
        super().__init__()
        self.weights = nn.Parameter(torch.empty(number))

    def reset_parameters(self) -> None:
        """Equal weights."""
        nn.init.zeros_(self.weights)

    def forward(self, states: Sequence[Tensor]) -> Tensor:
        shares = self.weights.softmax(0)
        return sum(share * state for share, state in zip(shares, states, strict=True))


@contextlib.contextmanager
def layer_states(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that gets the input (B, F, D) of the first of ``layers`` and the output of each, when they are called."""
    found: list[Tensor] = []

    def before(_: nn.Module, given: Any, named: dict[str, Any]) -> None:
        found.append(given[0] if given else named["hidden_states"])

    def after(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield found
    finally:
        # Before the backward pass, in which gradient checkpointing calls the layers again.
        for handle in handles:
            handle.remove()
