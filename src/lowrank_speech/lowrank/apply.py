"""Turning a model's layers into factors, and back.

    apply_plan   structure alone, for a strict load afterwards
    factorise    structure and factors; returns the report, one row a layer
    densify      factors multiplied back

All of them change the model in place, layer by layer: the most that is held beside it is one layer in float64.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lowrank_speech.lowrank.factors import (
    Factors,
    activation_factors,
    random_factors,
    spectrum,
    svd_factors,
    weighted_norm,
)
from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.lowrank.plan import Plan

Init = Literal["svd", "activation", "random"]


def apply_plan(model: nn.Module, plan: Mapping[str, int]) -> nn.Module:
    """Replace the layers of ``plan`` (name -> rank) by ``LowRankLinear``; their weights are not set. Returns ``model``.

    ValueError when a name is no ``nn.Linear`` of the model or a rank is above its full rank.
    """
    for name, rank in Plan.from_json(plan).items():
        _replace(model, name, LowRankLinear.empty(_dense(model, name, rank), rank))
    return model


@torch.no_grad()
def factorise(
    model: nn.Module,
    plan: Mapping[str, int],
    init: Init = "svd",
    moments: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Replace the layers of ``plan`` by factors of their weights, in place.

    ``moments``: name -> second moment (d_in, d_in) of the layer's input; needed by ``activation``, and where given the
    report has the output error. ``seed`` decides ``random``. Returns one row a layer:

        name, d_out, d_in, rank, before, after   the last two in parameters, bias included
        energy         share of the squared singular values kept (of the whitened weight with ``activation``;
                       None with ``random``)
        weight_error   ||W - N M||_F / ||W||_F
        output_error   sqrt(tr((W - N M) C (W - N M)ᵀ) / tr(W C Wᵀ)), or None without moments

    ValueError as ``apply_plan``, or where ``activation`` lacks a layer's moment.
    """
    if init not in ("svd", "activation", "random"):
        raise ValueError(f"init is {init!r}; expected svd, activation or random")
    plan = Plan.from_json(plan)
    for name, rank in plan.items():  # all checks before the first change
        _dense(model, name, rank)
        if init == "activation" and name not in (moments or {}):
            raise ValueError(f"init: activation, but there is no second moment of the inputs of {name!r}")
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for name, rank in tqdm(plan.items(), desc="factorise", unit="layer", disable=None):
        dense = _dense(model, name, rank)
        moment = moments.get(name) if moments else None
        if moment is not None:
            moment = moment.to(dense.weight.device)
        factors = _factors(dense.weight, rank, init, moment, generator, name)
        low = LowRankLinear.empty(dense, rank)
        low.first.weight.copy_(factors.first)
        low.second.weight.copy_(factors.second)
        if dense.bias is not None:
            low.second.bias.copy_(dense.bias)
        rows.append(_row(name, dense, low, factors, moment))
        _replace(model, name, low)
    return rows


def _factors(
    weight: Tensor, rank: int, init: str, moment: Tensor | None, generator: torch.Generator, name: str
) -> Factors:
    try:
        if init == "activation":
            return activation_factors(weight, moment, rank)
        return svd_factors(weight, rank) if init == "svd" else random_factors(weight, rank, generator)
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error


def _row(name: str, dense: nn.Linear, low: LowRankLinear, factors: Factors, moment: Tensor | None) -> dict[str, Any]:
    W = dense.weight.double()
    error = W - factors.second @ factors.first
    squares = factors.spectrum.square()
    row = {
        "name": name,
        "d_out": dense.out_features,
        "d_in": dense.in_features,
        "rank": low.rank,
        "before": sum(p.numel() for p in dense.parameters()),
        "after": sum(p.numel() for p in low.parameters()),
        "energy": _share(float(squares[: low.rank].sum()), float(squares.sum())) if len(squares) else None,
        "weight_error": _share(weighted_norm(error), weighted_norm(W)),
        "output_error": None,
    }
    if moment is not None:
        row["output_error"] = _share(weighted_norm(error, moment), weighted_norm(W, moment))
    return row


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def spectra(layers: Mapping[str, nn.Linear], moments: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Singular values of the layers' weights (whitened where ``moments`` are given): what ``plan_ranks`` needs."""
    found = {}
    for name, layer in tqdm(layers.items(), desc="spectra", unit="layer", disable=None):
        if moments is not None and name not in moments:
            raise ValueError(f"there is no second moment of the inputs of {name!r}")
        moment = moments[name].to(layer.weight.device) if moments is not None else None
        found[name] = spectrum(layer.weight, moment)
    return found


def densify(model: nn.Module) -> nn.Module:
    """Replace every ``LowRankLinear`` by the dense layer with the same output, in place. Returns ``model``."""
    for name in low_rank_layers(model):
        _replace(model, name, model.get_submodule(name).dense())
    return model


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """Qualified name -> module of every ``LowRankLinear``, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRankLinear)}


def _dense(model: nn.Module, name: str, rank: int) -> nn.Linear:
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"the plan names the layer {name!r}, which the model does not have") from None
    if isinstance(layer, LowRankLinear):
        raise ValueError(f"the layer {name!r} is factorised already (rank {layer.rank})")
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"the plan names {name!r}, which is a {type(layer).__name__} and no linear layer")
    full = min(layer.in_features, layer.out_features)
    if rank > full:
        shape = (layer.out_features, layer.in_features)
        raise ValueError(f"rank {rank} is above the full rank {full} of the layer {name!r} {shape}")
    return layer


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
