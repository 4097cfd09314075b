"""What a training changes in a model, as a state that can be kept, averaged and put back."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def changing(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that train and saved buffers (running statistics of a batch normalisation) by name; not copies."""
    saved = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad} | buffers


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}


@torch.no_grad()
def put(state: dict[str, Tensor], model: nn.Module) -> None:
    """Copy ``state`` into ``model``; KeyError where it lacks something that trains."""
    for name, tensor in changing(model).items():
        tensor.copy_(state[name])


def mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Means of the states' tensors, summed in float64, in their own dtype; of whole numbers, the last ones."""
    result = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            total = sum(state[name].double() for state in states)
            result[name] = (total / len(states)).to(last.dtype)
        else:
            result[name] = last.clone()
    return result
