"""``LowRankLinear``: a linear layer as two factors.

A dense layer ``y = W x + b`` with W (d_out, d_in) becomes ``y = N (M x) + b``. ``first`` is M (r, d_in) without bias,
kept semi-orthogonal (``M Mᵀ = s² I``); ``second`` is N (d_out, r) with the bias of the dense layer. Together they have
r (d_in + d_out) parameters instead of d_in d_out.

``OrthonormalLinear`` is one dense layer whose matrix the same constraint keeps semi-orthogonal.

Source: Povey et al., "Semi-orthogonal low-rank matrix factorization for deep neural networks", Interspeech 2018.
"""

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """Two ``nn.Linear`` in sequence: (..., d_in) -> (..., r) -> (..., d_out).

    Raises ValueError if ``first`` has a bias or the shapes do not match.
    """

    def __init__(self, first: nn.Linear, second: nn.Linear):
        super().__init__()
        if first.bias is not None:
            raise ValueError("the first factor has a bias; the bias belongs to the second")
        if first.out_features != second.in_features:
            raise ValueError(
                f"the factors do not match: the first has {first.out_features} outputs, the second has "
                f"{second.in_features} inputs"
            )
        self.first = first
        self.second = second

    @classmethod
    def empty(cls, dense: nn.Linear, rank: int, device: torch.device | str | None = None) -> "LowRankLinear":
        """Uninitialised factors for ``dense`` at ``rank``, on its device (or ``device``), in its dtype."""
        place = {"device": device or dense.weight.device, "dtype": dense.weight.dtype}
        bias = dense.bias is not None
        result = cls(
            # Building a structure must not change the global random state, so use skip_init, which draws nothing.
            nn.utils.skip_init(nn.Linear, dense.in_features, rank, bias=False, **place),
            nn.utils.skip_init(nn.Linear, rank, dense.out_features, bias=bias, **place),
        )
        result.requires_grad_(dense.weight.requires_grad)
        if bias:
            result.second.bias.requires_grad_(dense.bias.requires_grad)
        return result.train(dense.training)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    @property
    def in_features(self) -> int:
        return self.first.in_features

    @property
    def out_features(self) -> int:
        return self.second.out_features

    @property
    def rank(self) -> int:
        return self.first.out_features

    @property
    def weight(self) -> Tensor:
        """The product N M (d_out, d_in), differentiable, for code that reads a linear layer's weight."""
        return self.second.weight @ self.first.weight

    @property
    def bias(self) -> nn.Parameter | None:
        return self.second.bias

    @torch.no_grad()
    def dense(self) -> nn.Linear:
        """The equivalent dense layer; the product is computed in float64."""
        weight = self.second.weight
        place = {"device": weight.device, "dtype": weight.dtype}
        bias = self.second.bias is not None
        result = nn.utils.skip_init(nn.Linear, self.in_features, self.out_features, bias=bias, **place)
        result.weight.copy_(weight.double() @ self.first.weight.double())
        if bias:
            result.bias.copy_(self.second.bias)
        return result.train(self.training)

    def extra_repr(self) -> str:
        return f"rank={self.rank}"


class OrthonormalLinear(nn.Linear):
    """A linear layer whose weight (d_out, d_in) starts semi-orthogonal; ``lowrank.constraint`` keeps it so."""

    second = None  # the constraint's exact update moves what it takes from the first matrix into this one

    def reset_parameters(self) -> None:
        nn.init.orthogonal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def first(self) -> "OrthonormalLinear":
        """The layer itself: what the constraint calls the first factor."""
        return self
