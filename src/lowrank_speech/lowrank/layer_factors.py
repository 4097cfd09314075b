"""The factors of one layer, from what calibration has seen of it.

factors_of    at one rank, with orthonormal rows in the first factor
nested_of     at every rank at once, to try ranks: the product at rank k is ``second[:, :k] @ first[:k]``
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from lowrank_speech.lowrank.embedding import place_of
from lowrank_speech.lowrank.factors import (
    Factors,
    activation_factors,
    nested_factors,
    random_factors,
    svd_factors,
    two_sided_factors,
)
from lowrank_speech.lowrank.moments import MomentsFile
from lowrank_speech.lowrank.recipe import CALIBRATED, Init
from lowrank_speech.lowrank.structure import Dense

INITS = get_args(Init)
# Share of the mean power of the decoder's states that is added to every direction before an embedding is factorised.
# Its rows are also inputs of the decoder, of which the states say nothing.
EMBEDDING_RIDGE = 0.1


@dataclass(frozen=True)
class Statistics:
    """What calibration has seen, by the names of the layers.

    ``moments``: second moment (d_in, d_in) of the inputs. ``means``: their mean (d_in,); with it the mean of a layer's
    error is added to its bias. ``outputs``: second moment (d_out, d_out) of the gradients of the outputs, or its
    diagonal (d_out,).
    """

    moments: Mapping[str, Tensor] = field(default_factory=dict)
    means: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, file: MomentsFile | None) -> "Statistics":
        """Those in a file of the stage calibrate; empty without one."""
        return cls() if file is None else cls(file, file.means, file.outputs)


def check_seen(layers: Mapping[str, Dense], init: str, seen: Statistics) -> None:
    """Raise ValueError if ``init`` needs statistics of a layer that calibration has not seen."""
    if init not in INITS:
        raise ValueError(f"init is {init!r}; expected one of: {', '.join(INITS)}")
    for name in layers:
        if init in CALIBRATED and name not in seen.moments:
            raise ValueError(
                f"init: {init} needs the second moment of the inputs of {name!r}, which calibration did not see; "
                f"calibrate on the same layers"
            )
        if init == "two-sided" and name not in seen.outputs:
            raise ValueError(
                f"init: two-sided needs the second moment of the gradients of {name!r}; calibrate with gradients"
            )


def weight_of(layer: Dense, exact: Sequence[int] = ()) -> Tensor:
    """The matrix (d_out, d_in) that becomes factors: of an embedding without its ``exact`` rows."""
    W = layer.weight.detach()
    return W[kept_rows(layer, exact).to(W.device)] if isinstance(layer, nn.Embedding) and len(exact) else W


def kept_rows(layer: nn.Embedding, exact: Sequence[int]) -> Tensor:
    """The rows (V,) bool of an embedding that become factors: all but the ``exact`` ones."""
    return place_of(layer.num_embeddings, exact) >= len(exact)


def statistics_of(
    name: str, layer: Dense, init: str, seen: Statistics, exact: Sequence[int] = ()
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Moment, mean and output moment that ``init`` uses for a layer; None: unknown or not used.

    The mean is used if the layer has a bias that can absorb the mean error.
    """
    device = layer.weight.device
    moment, mean, output = seen.moments.get(name), None, None
    if moment is not None:
        moment = moment.to(device)
    if init in CALIBRATED and getattr(layer, "bias", None) is not None:
        mean = seen.means.get(name)
    if init == "two-sided":
        output = seen.outputs.get(name)
    if isinstance(layer, nn.Embedding):
        if moment is not None:
            moment = moment + EMBEDDING_RIDGE * moment.diagonal().mean() * torch.eye(
                len(moment), dtype=moment.dtype, device=device
            )
        if output is not None:
            output = output[kept_rows(layer, exact)]
    return moment, mean, output


def factors_of(
    W: Tensor,
    rank: int,
    init: str,
    moment: Tensor | None,
    mean: Tensor | None,
    output: Tensor | None,
    generator: torch.Generator | None = None,
) -> Factors:
    """The factors of a matrix by one of ``INITS``."""
    if init == "activation":
        return activation_factors(W, moment, rank, mean)
    if init == "two-sided":
        return two_sided_factors(W, moment, output, rank, mean)
    return svd_factors(W, rank) if init == "svd" else random_factors(W, rank, generator)


class Nested(NamedTuple):
    """The factors of a layer for every rank, in the layer's dtype.

    ``mean``: the mean (d_in,) of the inputs, if the mean error goes to the bias. ``kept``: (V,) bool, the rows of an
    embedding that become factors; None for a linear layer.
    """

    first: Tensor
    second: Tensor
    spectrum: Tensor
    mean: Tensor | None
    kept: Tensor | None

    def put(self, layer: Dense, rank: int) -> None:
        """Give ``layer`` the weight (and bias) that it has at ``rank``. Its former tensors do not change."""
        weight = (self.second[:, :rank] @ self.first[:rank]).to(layer.weight.dtype)
        if self.kept is not None:
            whole = layer.weight.detach().clone()
            whole[self.kept] = weight
            weight = whole
        elif self.mean is not None:
            shift = (layer.weight.detach() - weight).double() @ self.mean.to(weight.device)
            layer.bias.data = (layer.bias.detach().double() + shift).to(layer.bias.dtype)
        layer.weight.data = weight


@contextlib.contextmanager
def as_before(layers: Iterable[Dense]) -> Iterator[None]:
    """Give the layers their weights and biases back at the end, whatever ``Nested.put`` did to them inside."""
    before = [(parameter, parameter.data) for layer in layers for parameter in layer.parameters()]
    try:
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


@torch.no_grad()
def nested_of(name: str, layer: Dense, init: str, seen: Statistics, exact: Sequence[int] = ()) -> Nested:
    """The factors of a dense layer for every rank up to its full one."""
    W = weight_of(layer, exact)
    moment, mean, output = statistics_of(name, layer, init, seen, exact)
    if init in CALIBRATED:
        factors = nested_factors(W, min(W.shape), moment, mean, output)
    else:
        factors = factors_of(W, min(W.shape), init, None, None, None, torch.Generator().manual_seed(0))
    kept = kept_rows(layer, exact).to(W.device) if isinstance(layer, nn.Embedding) else None
    first, second = (factor.to(layer.weight.dtype) for factor in factors[:2])
    return Nested(first, second, factors.spectrum, mean, kept)
