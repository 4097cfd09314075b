"""Truncate the product of two factors to a lower rank, during a training.

``y = N (M x) + b`` with M (r, d_in) and N (d_out, r) becomes a layer of rank q < r with the least error. The functions
work on the factors and never form N M (d_out, d_in): QR of both factors and an SVD of an (r, r) matrix, O(r² d).

    plain       least ||N M - N' M'||_F: the truncated SVD of the product
    moment      least E ||(N M - N' M') x||² for inputs x with the second moment C (and the mean m, if the layer has a
                bias, which then absorbs the mean error). Only M C Mᵀ (r, r), the moment of M x, matters

The rows of M' are orthogonal with equal norms, the root mean square of M's singular values. So a scale that the
semi-orthogonal constraint keeps (``lowrank.constraint``) stays the same.

Source: Eckart and Young 1936, in factored form; the cubic schedule is that of Zhu and Gupta, "To prune, or not to
prune", 2017.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.lowrank.orthonormal import orthonormal_first


class Truncated(NamedTuple):
    """Factors ``first`` M' (q, d_in) and ``second`` N' (d_out, q) of rank q, and how they come from M and N.

    ``rows`` B (q, r): M' = B M. ``columns`` A (r, q): N' = N A. ``shift`` (d_out,): the mean output error, to be added
    to the bias; None without a mean. All are float64.

    With G the gradient of the dense weight, that of M' is Aᵀ (Nᵀ G), and that of N' is (G Mᵀ) Bᵀ. So averages of
    gradients, such as an optimiser's momentum, carry over (``gradients``).
    """

    first: Tensor
    second: Tensor
    rows: Tensor
    columns: Tensor
    shift: Tensor | None

    def gradients(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients of M' and N', or averages of them, from those of M (r, d_in) and N (d_out, r)."""
        return _like(self.columns.T @ first.double(), first), _like(second.double() @ self.rows.T, second)

    def squares(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Averages of the squared gradients of M' and N' from those of M and N, as if entries were independent."""
        A, B = self.columns.square(), self.rows.square()
        return _like(A.T @ first.double(), first), _like(second.double() @ B.T, second)


def truncate(
    first: Tensor, second: Tensor, rank: int, moment: Tensor | None = None, mean: Tensor | None = None
) -> Truncated:
    """The best factors of ``rank`` q for the product of ``second`` N (d_out, r) and ``first`` M (r, d_in).

    ``moment`` (d_in, d_in) and ``mean`` (d_in,) of the inputs: see the module. Raises ValueError if the rank is not
    between 1 and r, or a moment has the wrong shape or is not finite.
    """
    r, d_in = first.shape
    if not 1 <= rank <= r:
        raise ValueError(f"rank {rank} is out of range for factors of rank {r}: expected 1 to {r}")
    M, N = first.detach().double(), second.detach().double()
    Q, L = _qr_rows(M)  # M = L Q
    root, m = L, None
    if moment is not None:
        if tuple(moment.shape) != (d_in, d_in):
            raise ValueError(f"the moment has shape {tuple(moment.shape)}; a layer with {d_in} inputs needs {d_in}²")
        K = M @ moment.to(M) @ M.T
        if not torch.isfinite(K).all():
            raise ValueError("the moment of the inputs has values that are not finite")
        if mean is not None:
            m = M @ mean.to(M)
            K = K - torch.outer(m, m)
        values, vectors = torch.linalg.eigh(0.5 * (K + K.T))
        root = vectors * values.clamp(min=0).sqrt()
    Qn, R = torch.linalg.qr(N)
    U, S, Vh = torch.linalg.svd(R @ root)
    U, S, V = U[:, :rank], S[:rank], Vh[:rank].T
    scale = M.norm() / r**0.5
    # N M projected on the leading left singular vectors; the root is never inverted.
    unit, product = orthonormal_first(U.T @ R @ M, Qn @ U)
    new_first, new_second = scale * unit, product / scale
    # N' = Qn U L' / scale with U = R root V / S: no inverse of N either. A direction without output has no column.
    inverse = torch.where(1e-12 * S[0] < S, 1 / S.clamp(min=torch.finfo(S.dtype).tiny), 0.0)
    lower = U.T @ R @ M @ unit.T
    columns = (root @ V * inverse) @ lower / scale
    rows = (new_first @ Q.T) @ torch.linalg.pinv(L, rtol=1e-10)
    shift = None if m is None else N @ m - new_second @ (new_first @ mean.to(M))
    return Truncated(new_first, new_second, rows, columns, shift)


@torch.no_grad()
def truncate_layer(
    layer: LowRankLinear, rank: int, moment: Tensor | None = None, mean: Tensor | None = None
) -> Truncated:
    """Truncate ``layer`` to ``rank`` in place, with new parameters for its factors. See ``truncate``.

    A ``mean`` counts only with a moment and a bias.
    """
    mean = mean if moment is not None and layer.bias is not None else None
    found = truncate(layer.first.weight, layer.second.weight, rank, moment, mean)
    resize(layer, rank)
    layer.first.weight.copy_(found.first)
    layer.second.weight.copy_(found.second)
    if found.shift is not None:
        layer.bias.copy_(layer.bias.double() + found.shift)
    return found


@torch.no_grad()
def resize(layer: LowRankLinear, rank: int) -> None:
    """Give ``layer`` new, uninitialised factors of ``rank``. An optimiser must get the new parameters."""
    for linear, shape in ((layer.first, (rank, layer.in_features)), (layer.second, (layer.out_features, rank))):
        # A parameter whose data got another shape would fail in the backward pass if an earlier graph is still alive.
        linear.weight = nn.Parameter(linear.weight.new_empty(shape), linear.weight.requires_grad)
    layer.first.out_features = layer.second.in_features = rank


def ranks_after(
    stage: int, stages: int, start: Mapping[str, int], final: Mapping[str, int], schedule: str = "cubic"
) -> dict[str, int]:
    """Name -> rank after ``stage`` of ``stages`` truncations, from ``start`` (0) to ``final`` (``stages``)."""
    left = (1 - stage / stages) ** (3 if schedule == "cubic" else 1)
    return {name: rank + round((start[name] - rank) * left) for name, rank in final.items()}


def _qr_rows(M: Tensor) -> tuple[Tensor, Tensor]:
    """Q (r, d_in) with orthonormal rows and L (r, r) with M = L Q."""
    Q, R = torch.linalg.qr(M.T)
    return Q.T, R.T


def _like(new: Tensor, old: Tensor) -> Tensor:
    return new.to(old.dtype).contiguous()
