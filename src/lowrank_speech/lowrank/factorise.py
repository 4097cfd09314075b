"""Turn a model's layers into factors.

    factorise          in place; returns the report, one row per layer
    write_factorised   into a safetensors file; the model does not change
    spectra            singular values, for plans that depend on them

All work layer by layer: besides the model, memory holds at most one layer in float64. ``write_factorised`` reads the
weights one by one, so a model with memory-mapped weights is never entirely in memory.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lowrank_speech.lowrank.factors import (
    activation_factors,
    bias_shift,
    random_factors,
    spectrum,
    svd_factors,
    weighted_norm,
)
from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.lowrank.structure import Plan, dense_layer, replace
from lowrank_speech.lowrank.tensors import TensorWriter

Init = Literal["svd", "activation", "random"]
POINTS = 64  # number of singular values of a layer in the report


class Factored(NamedTuple):
    """State of the ``LowRankLinear`` that replaces a layer, in the layer's dtype, and the layer's row of the report."""

    state: dict[str, Tensor]
    row: dict[str, Any]


@torch.no_grad()
def factorise(
    model: nn.Module,
    plan: Mapping[str, int],
    init: Init = "svd",
    moments: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    means: Mapping[str, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Replace the layers of ``plan`` by factors of their weights, in place.

    ``moments``: name -> second moment (d_in, d_in) of the layer's input; ``activation`` needs it, and it adds the
    output error to the report. ``means``: name -> mean (d_in,) of the layer's input; with ``activation``, the mean of a
    layer's error is then added to its bias, if it has one. ``seed`` is for ``random``. Returns one row per layer:

        name, d_out, d_in, rank, before, after   the last two are parameter counts, including the bias
        energy         share of the squared singular values that is kept (of the whitened weight with ``activation``;
                       None with ``random``)
        weight_error   ||W - N M||_F / ||W||_F
        output_error   root mean square of the error of the layer's output over that of W x; None without moments
        spectrum       the singular values behind ``energy`` over the largest, in descending order; at most 64, evenly
                       spaced from the first to the last

    Raises ValueError as ``apply_plan``, or if ``activation`` lacks a layer's moment.
    """
    layers, rows = _dense_layers(model, plan), []
    for factored in _factored(layers, plan, init, moments, seed, means):
        name = factored.row["name"]
        low = LowRankLinear.empty(layers[name], plan[name])
        for key, tensor in factored.state.items():
            low.get_parameter(key).copy_(tensor)
        replace(model, name, low)
        rows.append(factored.row)
    return rows


@torch.no_grad()
def write_factorised(
    path: str | Path,
    model: nn.Module,
    plan: Mapping[str, int],
    init: Init = "svd",
    moments: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    means: Mapping[str, Tensor] | None = None,
    prefix: str = "",
    others: Mapping[str, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Write the weights that ``factorise`` would produce as safetensors, bit for bit; returns the same rows.

    ``prefix``: prefix of the names of the model's tensors in the file. ``others``: further tensors by their names in
    the file.
    """
    layers, rows = _dense_layers(model, plan), []
    gone = {f"{name}.{part}" for name in plan for part in ("weight", "bias")}
    kept = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items() if name not in gone}
    kept |= others or {}
    forms = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in kept.items()}
    for name, layer in layers.items():
        structure = LowRankLinear.empty(layer, plan[name], "meta")
        forms |= {f"{prefix}{name}.{key}": (p.dtype, tuple(p.shape)) for key, p in structure.named_parameters()}
    with TensorWriter(path, forms, {"format": "pt"}) as writer:
        for name, tensor in kept.items():
            writer.write(name, tensor)
        for factored in _factored(layers, plan, init, moments, seed, means):
            for key, tensor in factored.state.items():
                writer.write(f"{prefix}{factored.row['name']}.{key}", tensor)
            rows.append(factored.row)
    return rows


def _dense_layers(model: nn.Module, plan: Mapping[str, int]) -> dict[str, nn.Linear]:
    return {name: dense_layer(model, name, rank) for name, rank in Plan.from_json(plan).items()}


def _factored(
    layers: Mapping[str, nn.Linear],
    plan: Mapping[str, int],
    init: str,
    moments: Mapping[str, Tensor] | None,
    seed: int,
    means: Mapping[str, Tensor] | None,
) -> Iterator[Factored]:
    """Yield the factors of ``layers``, one layer at a time."""
    if init not in ("svd", "activation", "random"):
        raise ValueError(f"init is {init!r}; expected svd, activation or random")
    for name in layers:
        if init == "activation" and name not in (moments or {}):
            raise ValueError(f"init: activation needs the second moment of the inputs of {name!r}; calibrate it")
    generator = torch.Generator().manual_seed(seed)
    for name, layer in tqdm(layers.items(), desc="factorise", unit="layer", disable=None):
        moment = moments.get(name) if moments else None
        mean = _mean(name, layer, means) if init == "activation" else None
        if moment is not None:
            moment = moment.to(layer.weight.device)
        try:
            yield _factor(name, layer, plan[name], init, moment, mean, generator)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error


def _mean(name: str, layer: nn.Linear, means: Mapping[str, Tensor] | None) -> Tensor | None:
    """The mean of the layer's inputs, if it is known and the layer has a bias that can absorb the mean error."""
    return means.get(name) if means is not None and layer.bias is not None else None


def _factor(
    name: str,
    layer: nn.Linear,
    rank: int,
    init: str,
    moment: Tensor | None,
    mean: Tensor | None,
    generator: torch.Generator,
) -> Factored:
    W, dtype = layer.weight.detach(), layer.weight.dtype
    if init == "activation":
        factors = activation_factors(W, moment, rank, mean)
    else:
        factors = svd_factors(W, rank) if init == "svd" else random_factors(W, rank, generator)
    state = {"first.weight": factors.first.to(dtype), "second.weight": factors.second.to(dtype)}
    if layer.bias is not None:
        bias = layer.bias if mean is None else layer.bias.double() + bias_shift(W, factors, mean)
        state["second.bias"] = bias.to(dtype)
    # The error of the stored factors, including rounding.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    error = torch.addmm(W.to(wide), state["second.weight"].to(wide), state["first.weight"].to(wide), alpha=-1)
    squares = factors.spectrum.square()
    row = {
        "name": name,
        "d_out": W.shape[0],
        "d_in": W.shape[1],
        "rank": rank,
        "before": sum(p.numel() for p in layer.parameters()),
        "after": sum(tensor.numel() for tensor in state.values()),
        "energy": _share(float(squares[:rank].sum()), float(squares.sum())) if len(squares) else None,
        "weight_error": _share(weighted_norm(error), weighted_norm(W)),
        "output_error": None,
        "spectrum": _thinned(factors.spectrum),
    }
    if moment is not None:
        row["output_error"] = _share(weighted_norm(error, moment, mean), weighted_norm(W, moment))
    return Factored(state, row)


def _thinned(spectrum: Tensor) -> list[float]:
    """At most ``POINTS`` evenly spaced singular values over the largest, with 4 digits, because they are plotted."""
    if not len(spectrum) or spectrum[0] <= 0:
        return []
    at = torch.linspace(0, len(spectrum) - 1, min(POINTS, len(spectrum)), dtype=torch.float64).round().long()
    return [float(f"{value:.4g}") for value in (spectrum.cpu()[at] / spectrum[0].cpu()).tolist()]


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def spectra(
    layers: Mapping[str, nn.Linear],
    moments: Mapping[str, Tensor] | None = None,
    means: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Singular values of the layers' weights, for ``plan_ranks``.

    With ``moments`` (and ``means``), those of the whitened weights, whose squares are the loss of ``init: activation``.
    """
    found = {}
    for name, layer in tqdm(layers.items(), desc="spectra", unit="layer", disable=None):
        if moments is None:
            found[name] = spectrum(layer.weight)
        elif name not in moments:
            raise ValueError(f"the moments lack the layer {name!r}; calibrate with the same layers")
        else:
            found[name] = spectrum(layer.weight, moments[name].to(layer.weight.device), _mean(name, layer, means))
    return found
