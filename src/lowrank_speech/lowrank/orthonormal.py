"""Two linear algebra helpers: a Gram matrix, and a product whose first factor gets orthonormal rows.

Both the computation of factors (``factors``) and the semi-orthogonal constraint (``constraint``) use them.
"""

import torch
from torch import Tensor

BLOCK = 128  # rows of a Gram matrix that are computed at once


def orthonormal_first(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, with orthonormal rows in M: M = L Q, N M = (N L) Q. Shapes (..., r, d_in), (..., d_out, r).

    L has a positive diagonal, so that a nearly orthonormal M hardly changes. M may be rank-deficient.
    """
    Q, R = torch.linalg.qr(first.mT)
    sign = torch.where(R.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(R.dtype)
    Q, L = Q * sign[..., None, :], R.mT * sign[..., None, :]
    return Q.mT.contiguous(), second @ L


def gram(X: Tensor) -> Tensor:
    """X Xᵀ (..., n, n) of X (..., n, d); computes only the lower blocks and mirrors them."""
    n = X.shape[-2]
    products = X.new_empty(*X.shape[:-1], n)
    for i in range(0, n, BLOCK):
        lower = X[..., i : i + BLOCK, :] @ X[..., : i + BLOCK, :].mT
        products[..., i : i + BLOCK, : i + BLOCK] = lower
        products[..., :i, i : i + BLOCK] = lower[..., :i].mT
        # With some libraries, the product of a block with itself is not symmetric to the last bit.
        square = lower[..., i:]
        products[..., i : i + BLOCK, i : i + BLOCK] = 0.5 * (square + square.mT)
    return products
