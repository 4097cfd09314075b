"""The structure of a factorised model: which layers are factors, and their ranks.

    Plan              layer name -> rank, as config.json stores it
    apply_plan        replaces layers by empty factors, for a strict load afterwards
    low_rank_layers   finds factorised layers
    densify           multiplies the factors out, in place

A layer is an ``nn.Linear`` (then ``lowrank.linear``) or the ``nn.Embedding`` of a decoder (``lowrank.embedding``).

Loading, training and decoding a factorised model need only this module. ``plan`` chooses ranks, ``factorise`` computes
factors.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lowrank_speech.lowrank.embedding import LowRankEmbedding
from lowrank_speech.lowrank.linear import LowRankLinear

Shape = tuple[int, ...]  # (d_out, d_in), of an embedding (tokens, d, exact rows)
Dense = nn.Linear | nn.Embedding
LowRank = LowRankLinear | LowRankEmbedding


@dataclass(frozen=True, eq=False)  # compared like mappings
class Plan(Mapping):
    """A mapping: layer name -> rank. ``left_dense``: requested layers that stay dense -> reason."""

    ranks: Mapping[str, int]
    left_dense: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.ranks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ranks)

    def __len__(self) -> int:
        return len(self.ranks)

    def to_json(self) -> dict[str, int]:
        """Name -> rank as a plain dict, for ``config.json``."""
        return dict(self.ranks)

    @classmethod
    def from_json(cls, value: Any) -> "Plan":
        """The inverse of ``to_json``. Raises ValueError if a name is not a string or a rank not a positive integer."""
        if not isinstance(value, Mapping):
            raise ValueError(f"a low-rank plan must map layer names to ranks; got {value!r}")
        for name, rank in value.items():
            if not isinstance(name, str) or not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise ValueError(
                    f"low-rank plan: {name!r} has the rank {rank!r}; expected a whole number of at least 1"
                )
        return cls(dict(value))

    def saving(self, shapes: Mapping[str, Shape]) -> int:
        """Number of parameters that the plan saves on layers of ``shapes``."""
        return sum(dense_size(shapes[n]) - factored_size(shapes[n], r) for n, r in self.ranks.items())


def dense_size(shape: Shape) -> int:
    """Number of parameters of a matrix."""
    return shape[0] * shape[1]


def factored_size(shape: Shape, rank: int) -> int:
    """Number of parameters of a matrix's two factors, and of its exact rows."""
    exact = shape[2] if len(shape) > 2 else 0
    return exact * shape[1] + rank * rank_size(shape)


def rank_size(shape: Shape) -> int:
    """Number of parameters of one rank: of a column of the second factor and a row of the first."""
    return shape[0] + shape[1] - (shape[2] if len(shape) > 2 else 0)


def full_rank(shape: Shape) -> int:
    """The rank of the factored part."""
    return min(shape[0] - (shape[2] if len(shape) > 2 else 0), shape[1])


def shape_of(layer: Dense | LowRank, exact: int = 0) -> Shape:
    """The shape of a layer, with ``exact`` rows if it is an embedding."""
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim, exact
    if isinstance(layer, LowRankEmbedding):
        return layer.out_features, layer.in_features, len(layer.exact)
    return layer.out_features, layer.in_features


def apply_plan(model: nn.Module, plan: Mapping[str, int], exact: int = 0) -> nn.Module:
    """Replace the layers of ``plan`` (name -> rank) by uninitialised factors. Returns ``model``.

    ``exact``: number of exact rows of an embedding. Raises ValueError if a name is not a layer of the model or a rank
    is above its full rank.
    """
    for name, rank in Plan.from_json(plan).items():
        replace(model, name, empty(dense_layer(model, name, rank, exact), rank, exact))
    return model


def empty(dense: Dense, rank: int, exact: int = 0, device: torch.device | str | None = None) -> LowRank:
    """Uninitialised factors for ``dense`` at ``rank``, on its device (or ``device``), in its dtype."""
    if isinstance(dense, nn.Embedding):
        return LowRankEmbedding.empty(dense, rank, exact, device)
    return LowRankLinear.empty(dense, rank, device)


def densify(model: nn.Module) -> nn.Module:
    """Replace every factorised layer by the equivalent dense one, in place. Returns ``model``."""
    for name in low_rank_layers(model):
        replace(model, name, model.get_submodule(name).dense())
    return model


def low_rank_layers(model: nn.Module) -> dict[str, LowRank]:
    """Qualified name -> module of every factorised layer, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}


def dense_layer(model: nn.Module, name: str, rank: int, exact: int = 0) -> Dense:
    """The dense layer called ``name``. Raises ValueError if it does not exist, or ``rank`` is above its full rank."""
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"the plan names the layer {name!r}, which the model does not have") from None
    if isinstance(layer, LowRank):
        raise ValueError(f"the layer {name!r} is already factorised (rank {layer.rank})")
    if not isinstance(layer, Dense):
        raise ValueError(f"the plan names {name!r}, which is not a linear layer but a {type(layer).__name__}")
    shape = shape_of(layer, exact)
    if rank > full_rank(shape):
        raise ValueError(f"rank {rank} is above the full rank {full_rank(shape)} of the layer {name!r} {shape}")
    return layer


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the module called ``name`` by ``layer``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
