"""Turn a model's layers into factors.

    factorise          in place; returns the report, one row per layer
    write_factorised   into a safetensors file; the model does not change
    spectra            singular values, for plans that depend on them

All work layer by layer: besides the model, memory holds at most one layer in float64. ``write_factorised`` reads the
weights one by one, so a model with memory-mapped weights is never entirely in memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lowrank_speech.lowrank.embedding import place_of
from lowrank_speech.lowrank.factors import bias_shift, spectrum, weighted_norm
from lowrank_speech.lowrank.layer_factors import Statistics, check_seen, factors_of, statistics_of, weight_of
from lowrank_speech.lowrank.recipe import CALIBRATED, Init
from lowrank_speech.lowrank.structure import Dense, Plan, dense_layer, empty, replace
from lowrank_speech.lowrank.tensors import TensorWriter

POINTS = 64  # number of singular values of a layer in the report


class Factored(NamedTuple):
    """State of the factors that replace a layer, in the layer's dtype, and the layer's row of the report."""

    state: dict[str, Tensor]
    row: dict[str, Any]


@torch.no_grad()
def factorise(
    model: nn.Module,
    plan: Mapping[str, int],
    init: Init = "svd",
    seen: Statistics | None = None,
    seed: int = 0,
    exact: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """Replace the layers of ``plan`` by factors of their weights, in place.

    ``seen``: statistics of calibration; ``activation`` and ``two-sided`` need them, and the inputs' moments add the
    output error to the report. ``seed`` is for ``random``. ``exact``: sorted ids of tokens whose rows of an embedding
    are kept. Returns one row per layer:

        name, d_out, d_in, rank, before, after   the last two are parameter counts, including the bias
        exact          number of exact rows of an embedding, else 0
        energy         share of the squared singular values that is kept (of the whitened weight with ``activation``
                       and ``two-sided``; None with ``random``)
        weight_error   ||W - N M||_F / ||W||_F
        output_error   root mean square of the error of the layer's output over that of W x; None without moments
        spectrum       the singular values behind ``energy`` over the largest, in descending order; at most 64, evenly
                       spaced from the first to the last

    Raises ValueError as ``apply_plan``, or if calibration has not seen a layer.
    """
    layers, rows = _dense_layers(model, plan, exact), []
    for factored in _factored(layers, plan, init, seen, seed, exact):
        name = factored.row["name"]
        low = empty(layers[name], plan[name], len(exact))
        for key, tensor in factored.state.items():
            (low.place if key == "place" else low.get_parameter(key)).copy_(tensor)
        replace(model, name, low)
        rows.append(factored.row)
    return rows


@torch.no_grad()
def write_factorised(
    path: str | Path,
    model: nn.Module,
    plan: Mapping[str, int],
    init: Init = "svd",
    seen: Statistics | None = None,
    seed: int = 0,
    exact: Sequence[int] = (),
    prefix: str = "",
    others: Mapping[str, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Write the weights that ``factorise`` would produce as safetensors, bit for bit; returns the same rows.

    ``prefix``: prefix of the names of the model's tensors in the file. ``others``: further tensors by their names in
    the file.
    """
    layers, rows = _dense_layers(model, plan, exact), []
    gone = {f"{name}.{part}" for name in plan for part in ("weight", "bias")}
    kept = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items() if name not in gone}
    kept |= others or {}
    forms = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in kept.items()}
    for name, layer in layers.items():
        structure = empty(layer, plan[name], len(exact), "meta").state_dict()
        forms |= {f"{prefix}{name}.{key}": (tensor.dtype, tuple(tensor.shape)) for key, tensor in structure.items()}
    with TensorWriter(path, forms, {"format": "pt"}) as writer:
        for name, tensor in kept.items():
            writer.write(name, tensor)
        for factored in _factored(layers, plan, init, seen, seed, exact):
            for key, tensor in factored.state.items():
                writer.write(f"{prefix}{factored.row['name']}.{key}", tensor)
            rows.append(factored.row)
    return rows


def _dense_layers(model: nn.Module, plan: Mapping[str, int], exact: Sequence[int]) -> dict[str, Dense]:
    return {name: dense_layer(model, name, rank, len(exact)) for name, rank in Plan.from_json(plan).items()}


def _factored(
    layers: Mapping[str, Dense],
    plan: Mapping[str, int],
    init: str,
    seen: Statistics | None,
    seed: int,
    exact: Sequence[int],
) -> Iterator[Factored]:
    """Yield the factors of ``layers``, one layer at a time."""
    seen = seen or Statistics()
    check_seen(layers, init, seen)
    generator = torch.Generator().manual_seed(seed)
    for name, layer in tqdm(layers.items(), desc="factorise", unit="layer", disable=None):
        try:
            yield _factor(name, layer, plan[name], init, seen, generator, exact)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error


def _factor(
    name: str,
    layer: Dense,
    rank: int,
    init: str,
    seen: Statistics,
    generator: torch.Generator,
    exact: Sequence[int],
) -> Factored:
    table = isinstance(layer, nn.Embedding)
    W, dtype = weight_of(layer, exact), layer.weight.dtype
    moment, mean, output = statistics_of(name, layer, init, seen, exact)
    factors = factors_of(W, rank, init, moment, mean, output, generator)
    state = {"first.weight": factors.first.to(dtype), "second.weight": factors.second.to(dtype)}
    if table:
        place = place_of(layer.num_embeddings, exact)
        state |= {"exact": layer.weight.detach()[list(exact)], "place": place.to(W.device)}
    elif layer.bias is not None:
        bias = layer.bias if mean is None else layer.bias.double() + bias_shift(W, factors, mean)
        state["second.bias"] = bias.to(dtype)
    # The error of the stored factors, including rounding.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    error = torch.addmm(W.to(wide), state["second.weight"].to(wide), state["first.weight"].to(wide), alpha=-1)
    squares = factors.spectrum.square()
    row = {
        "name": name,
        "d_out": layer.weight.shape[0],
        "d_in": layer.weight.shape[1],
        "rank": rank,
        "exact": len(exact) if table else 0,
        "before": sum(p.numel() for p in layer.parameters()),
        "after": sum(tensor.numel() for key, tensor in state.items() if key != "place"),
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
    layers: Mapping[str, Dense], init: str = "svd", seen: Statistics | None = None, exact: Sequence[int] = ()
) -> dict[str, Tensor]:
    """Singular values of the layers' weights, for ``plan_ranks``.

    With ``activation`` and ``two-sided``, those of the whitened weights, whose squares are the error that these
    minimise.
    """
    found, seen = {}, seen or Statistics()
    check_seen(layers, init, seen)
    for name, layer in tqdm(layers.items(), desc="spectra", unit="layer", disable=None):
        how = statistics_of(name, layer, init, seen, exact) if init in CALIBRATED else (None, None, None)
        found[name] = spectrum(weight_of(layer, exact), *how)
    return found
