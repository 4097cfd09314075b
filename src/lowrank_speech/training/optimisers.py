"""The optimiser: AdamW with two learning rates, and optionally SGD for the factors of low-rank layers.

Kaldi designed its semi-orthogonal update for SGD, with which it trains TDNN-F. AdamW takes steps of equal size whatever
the size of the gradient (k2-fsa/snowfall#74 reports that the update works against it).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.structure import low_rank_layers
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import TrainConfig

Groups = list[dict[str, Any]]


class MultiOptimizer:
    """Several optimisers that step as one, with the part of an optimiser's interface that a training uses."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]):
        self.parts = list(parts)

    @property
    def param_groups(self) -> Groups:
        return [group for part in self.parts for group in part.param_groups]

    @property
    def state(self) -> dict[torch.Tensor, dict[str, Any]]:
        # A new dict, because torch's own are defaultdicts: a lookup would add the parameter.
        return {parameter: values for part in self.parts for parameter, values in part.state.items()}

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)


def make_optimiser(
    model: SpeechModel, objective: nn.Module, config: TrainConfig
) -> torch.optim.Optimizer | MultiOptimizer:
    """The optimiser of all parameters that have ``requires_grad``; each group has its ``peak`` learning rate.

    Raises UserError if nothing trains, a package is not installed, or ``factor_sgd`` finds no trainable factors.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    factors = _factors(model) if config.factor_sgd is not None else {}
    for auxiliary, named in ((False, model.named_parameters()), (True, objective.named_parameters())):
        for name, parameter in named:
            if not parameter.requires_grad or id(parameter) in factors:
                continue
            is_head = auxiliary or model.is_head(name)
            lr = config.head_lr if is_head else config.lr
            groups.setdefault((lr, parameter.dim() > 1), []).append(parameter)
    if not groups and not factors:
        raise UserError("nothing to train: every parameter is frozen; choose another `adapt`")
    listed = [
        {"params": p, "lr": lr, "peak": lr, "weight_decay": config.weight_decay if decays else 0.0}
        for (lr, decays), p in groups.items()
    ]
    adamw = _adamw(listed, config)
    if config.factor_sgd is None:
        return adamw
    if not factors:
        raise UserError(
            "training.factor_sgd: the model has no trainable factors; set it only for methods that factorise"
        )
    lr = config.factor_sgd.lr
    group = {"params": list(factors.values()), "lr": lr, "peak": lr}
    return MultiOptimizer([adamw, torch.optim.SGD([group], lr=lr, momentum=config.factor_sgd.momentum)])


def _factors(model: SpeechModel) -> dict[int, nn.Parameter]:
    """The trainable factors of all low-rank layers, by id; biases stay with AdamW."""
    weights = [w for layer in low_rank_layers(model).values() for w in (layer.first.weight, layer.second.weight)]
    return {id(weight): weight for weight in weights if weight.requires_grad}


def _adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimiser == "adamw8bit":
        return _bitsandbytes().AdamW8bit(groups, betas=(0.9, 0.98))
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def _bitsandbytes() -> Any:
    try:
        from bitsandbytes import optim
    except Exception as error:  # with a broken CUDA installation it raises other errors than ImportError
        raise UserError(
            f"training.optimiser: adamw8bit needs the package bitsandbytes ({' '.join(str(error).split())}): install "
            f"it, or use adamw"
        ) from error
    return optim
