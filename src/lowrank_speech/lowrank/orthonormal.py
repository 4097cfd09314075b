"""Two small tools of linear algebra: a Gram matrix, and a product of factors with orthonormal rows in front.

What makes factors (``factors``) and what keeps them semi-orthogonal in training (``constraint``) both use them.
"""

import torch
from torch import Tensor

BLOCK = 128  # rows of a Gram matrix


def orthonormal_first(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with orthonormal rows in front: M = L Q, N M = (N L) Q. Shapes (..., r, d_in), (..., d_out, r).

    L has a positive diagonal, so that a nearly orthonormal M hardly moves. Safe where M is rank-deficient.
    """
    Q, R = torch.linalg.qr(first.mT)
    sign = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(R.dtype)
    Q, L = Q * sign[..., None, :], R.mT * sign[..., None, :]
    return Q.mT.contiguous(), second @ L


def gram(X: Tensor) -> Tensor:
    """X Xᵀ (..., n, n) of X (..., n, d), of which only the lower blocks are multiplied out."""
    n = X.shape[-2]
    products = X.new_empty(*X.shape[:-1], n)
    for i in range(0, n, BLOCK):
        lower = X[..., i : i + BLOCK, :] @ X[..., : i + BLOCK, :].mT
        products[..., i : i + BLOCK, : i + BLOCK] = lower
        products[..., :i, i : i + BLOCK] = lower[..., :i].mT
        # Not every library's product of a block with itself is symmetric to the last bit.
        square = lower[..., i:]
        products[..., i : i + BLOCK, i : i + BLOCK] = 0.5 * (square + square.mT)
    return products
