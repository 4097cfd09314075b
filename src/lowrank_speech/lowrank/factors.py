"""Factors of a weight: truncated SVD, activation-aware, two-sided, random.

All return ``first`` M (r, d_in) with orthonormal rows and ``second`` N (d_out, r), in float64. Their product N M
replaces W (d_out, d_in). They minimise different errors:

    svd         error of the weights:                    ||W - N M||_F
    activation  error of the outputs on observed inputs: E ||(W - N M) x||² = tr((W - N M) C (W - N M)ᵀ)
    two-sided   the same, weighted by what an error costs: ||G^(1/2) (W - N M) C^(1/2)||_F, G = E g gᵀ with g the
                gradient of the loss with respect to the output. If x and g were independent, this would be the increase
                of the loss to second order, with the Fisher information as its Hessian
    random      none; only the scale is that of W (for comparison)

C is the second moment E x xᵀ. If the layer has a bias b, the mean of the error is added to it: b' = b + (W - N M) m,
m = E x. The mean square of the remaining error is tr((W - N M) (C - m mᵀ) (W - N M)ᵀ), so the best factors of a layer
with a bias are those for the covariance C - m mᵀ. The functions use it instead of C if they get ``mean``.

The decompositions are symmetric eigenproblems of the smaller Gram matrix in float64. They are several times faster than
an SVD, and more accurate than an SVD in float32 (singular values to 1e-8 of the largest; the rows are then made
orthonormal again). Activation-aware: Chen et al., "DRONE", NeurIPS 2021; Yuan et al., "ASVD", 2023; Wang et al.,
"SVD-LLM", 2024; Kamahori et al., "LiteASR", 2025. Two-sided: Martens and Grosse, "K-FAC", ICML 2015; Chekalina et al.,
"Generalized Fisher-Weighted SVD", arXiv 2505.17974.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lowrank_speech.lowrank.orthonormal import gram, orthonormal_first

# Share of the mean input power that is added to every direction. It ranks directions in which no input has power.
RIDGE = 1e-11
# The same for gradients. The second moment of the gradients of a few thousand frames misses directions that matter for
# other speech; without a larger share, these would be given up.
OUTPUT_RIDGE = 1e-2
WELL_CONDITIONED = 1e-3  # smallest over largest squared singular value; above, rows of Uᵀ W are orthogonal enough


class Factors(NamedTuple):
    """``first`` (r, d_in), ``second`` (d_out, r), and all singular values (min(d_out, d_in),), before the cut at r."""

    first: Tensor
    second: Tensor
    spectrum: Tensor


def svd_factors(weight: Tensor, rank: int) -> Factors:
    """Truncated SVD of ``weight`` (d_out, d_in): M = V_rᵀ, N = U_r S_r; ``spectrum`` has the singular values.

    The result is float64 on the weight's device. Raises ValueError if the rank is out of range or the weight is not
    finite.
    """
    W = _checked(weight, rank)
    if W.shape[0] < W.shape[1]:
        values, U = _eigh(gram(W))
        U, squares = U[:, :rank], values[:rank]
        # Rows of Uᵀ W are S_r V_rᵀ: already orthogonal, with length S.
        first = _orthonormal_rows(U.T @ W, squares)
        if squares[-1] > WELL_CONDITIONED * squares[0]:
            return Factors(first, U * squares.sqrt(), values.sqrt())  # W Mᵀ, without the product
    else:
        values, V = _eigh(gram(W.T))
        first = V[:, :rank].T.contiguous()
    return Factors(first, W @ first.T, values.sqrt())


def activation_factors(weight: Tensor, moment: Tensor, rank: int, mean: Tensor | None = None) -> Factors:
    """The factors with the least output error on inputs with the second moment ``moment`` (d_in, d_in).

    ``mean`` (d_in,): mean of the inputs, for a layer whose bias gets ``bias_shift``. The optimum is N M = U_r U_rᵀ W
    with U_r the leading left singular vectors of W C^(1/2). C is never inverted, so it may be rank-deficient.
    ``spectrum`` has the singular values of W C^(1/2); the squares of the discarded ones sum to the output error. Raises
    ValueError as ``svd_factors``, and if the moment has the wrong shape or is not finite.
    """
    return _orthonormal(nested_factors(weight, rank, moment, mean))


def nested_factors(
    weight: Tensor, rank: int, moment: Tensor, mean: Tensor | None = None, output: Tensor | None = None
) -> Factors:
    """The factors of ``activation_factors`` (with ``output``: ``two_sided_factors``) for every rank up to ``rank``.

    For any k, the first k columns of ``second`` times the first k rows of ``first`` are the product at rank k. The rows
    of ``first`` are not orthonormal.
    """
    W, left = _checked(weight, rank), None
    if output is not None:
        left = _left_root(output.to(W.device), len(W))
        W = left[:, None] * W if left.dim() == 1 else left.T @ W
    C = _regularised(moment, W.shape[1], mean)
    if W.shape[0] <= W.shape[1]:
        values, U = _eigh(W @ C @ W.T)
        U = U[:, :rank]
    else:
        whitened = W @ _root(C)
        values, V = _eigh(gram(whitened.T))
        U = _orthonormal_rows((whitened @ V[:, :rank]).T, values[:rank]).T
    first, second = U.T @ W, U
    if left is not None:
        second = U / left[:, None] if left.dim() == 1 else torch.linalg.solve(left.T, U)
    return Factors(first, second, values.sqrt())


def _orthonormal(factors: Factors) -> Factors:
    first, second = orthonormal_first(factors.first, factors.second)
    return factors._replace(first=first, second=second)


def two_sided_factors(weight: Tensor, moment: Tensor, output: Tensor, rank: int, mean: Tensor | None = None) -> Factors:
    """The factors with the least error that is weighted by ``output``, the second moment of the outputs' gradients.

    ``output``: (d_out, d_out), or its diagonal (d_out,). With G = L Lᵀ, the factors of Lᵀ W minimise the error that
    ``activation_factors`` measures, and L⁻ᵀ is then multiplied to the second one. ``spectrum`` is that of Lᵀ W C^(1/2).
    Raises ValueError as ``activation_factors``.
    """
    return _orthonormal(nested_factors(weight, rank, moment, mean, output))


def _left_root(output: Tensor, d_out: int) -> Tensor:
    """L with L Lᵀ = G + its ridge, or the root of the diagonal."""
    if tuple(output.shape) not in ((d_out, d_out), (d_out,)):
        raise ValueError(
            f"the second moment of the gradients has shape {tuple(output.shape)}; a layer with {d_out} outputs needs "
            f"({d_out}, {d_out})"
        )
    G = output.double()
    diagonal = G if G.dim() == 1 else G.diagonal()
    power = diagonal.mean()
    if not torch.isfinite(power) or power <= 0:
        raise ValueError(
            f"the second moment of the gradients has the mean power {power.item()}, so no gradient reached the layer"
        )
    if G.dim() == 1:
        return (G + OUTPUT_RIDGE * power).sqrt()
    return _root(G + OUTPUT_RIDGE * power * torch.eye(d_out, dtype=torch.float64, device=G.device))


def bias_shift(weight: Tensor, factors: Factors, mean: Tensor) -> Tensor:
    """(W - N M) m (d_out,), float64: the mean output error of the factors, to be added to the bias."""
    m = mean.to(weight.device, torch.float64)
    return weight.detach().double() @ m - factors.second @ (factors.first @ m)


def random_factors(weight: Tensor, rank: int, generator: torch.Generator | None = None) -> Factors:
    """M with random orthonormal rows, N normal and scaled so that N M has the Frobenius norm of ``weight``.

    ``generator`` is on the CPU. ``spectrum`` is empty.
    """
    W = _checked(weight, rank)
    draws = torch.randn(W.shape[1], rank, dtype=torch.float64, generator=generator)
    second = torch.randn(W.shape[0], rank, dtype=torch.float64, generator=generator).to(W.device)
    first = torch.linalg.qr(draws).Q.T.contiguous().to(W.device)
    return Factors(first, second * (W.norm() / second.norm()), W.new_empty(0))


def spectrum(
    weight: Tensor, moment: Tensor | None = None, mean: Tensor | None = None, output: Tensor | None = None
) -> Tensor:
    """Singular values (min(d_out, d_in),) of W, or with ``moment`` of W C^(1/2), descending, float64, on the CPU.

    If ``mean`` is also given, C is the covariance. With ``output``, those of Lᵀ W C^(1/2) as in ``two_sided_factors``.
    """
    W = _checked(weight, 1)
    if output is not None:
        left = _left_root(output.to(W.device), len(W))
        W = left[:, None] * W if left.dim() == 1 else left.T @ W
    if moment is None:
        products = gram(W if W.shape[0] < W.shape[1] else W.T)
    elif W.shape[0] <= W.shape[1]:
        products = W @ _regularised(moment, W.shape[1], mean) @ W.T
    else:
        whitened = W @ _root(_regularised(moment, W.shape[1], mean))
        products = gram(whitened.T)
    return torch.linalg.eigvalsh(products).flip(0).clamp(min=0).sqrt().cpu()


def weighted_norm(error: Tensor, moment: Tensor | None = None, mean: Tensor | None = None) -> float:
    """||E||_F, or with ``moment`` sqrt(tr(E C Eᵀ)): the root mean square of the output error E x.

    If ``mean`` is also given, C is the covariance: the error that remains after its mean is added to the bias.
    """
    if moment is None:
        return float(torch.linalg.vector_norm(error.detach(), dim=-1).double().norm())
    E = error.detach().double()
    square = ((E @ _covariance(moment.to(E.device), mean)) * E).sum()
    return float(square.clamp(min=0).sqrt())


def _checked(weight: Tensor, rank: int) -> Tensor:
    full = min(weight.shape)
    if not 1 <= rank <= full:
        raise ValueError(f"rank {rank} of a {tuple(weight.shape)} weight is out of range: expected 1 to {full}")
    W = weight.detach().double()
    if not torch.isfinite(W.sum()):  # several times faster than testing every value
        raise ValueError(f"the {tuple(weight.shape)} weight has values that are not finite")
    return W


def _regularised(moment: Tensor, d_in: int, mean: Tensor | None = None) -> Tensor:
    if tuple(moment.shape) != (d_in, d_in):
        raise ValueError(
            f"the second moment has shape {tuple(moment.shape)}; a layer with {d_in} inputs needs ({d_in}, {d_in})"
        )
    if mean is not None and tuple(mean.shape) != (d_in,):
        raise ValueError(
            f"the mean of the inputs has shape {tuple(mean.shape)}; a layer with {d_in} inputs needs ({d_in},)"
        )
    power = moment.diagonal().double().mean()
    if not torch.isfinite(power) or power <= 0:
        raise ValueError(f"the second moment has the mean power {power.item()}, so the layer saw no usable input")
    # A share of the total power, also for a covariance, so that it stays above the rounding error of C - m mᵀ.
    return _covariance(moment, mean) + RIDGE * power * torch.eye(d_in, dtype=torch.float64, device=moment.device)


def _covariance(moment: Tensor, mean: Tensor | None) -> Tensor:
    """C, or C - m mᵀ if ``mean`` is given; float64."""
    C = moment.double()
    if mean is None:
        return C
    m = mean.to(C.device, torch.float64)
    return C - torch.outer(m, m)


def _root(C: Tensor) -> Tensor:
    """R with R Rᵀ = C."""
    values, vectors = torch.linalg.eigh(C)
    return vectors * values.clamp(min=0).sqrt()


def _eigh(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending and not negative, and eigenvectors in the columns."""
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def _orthonormal_rows(rows: Tensor, squares: Tensor) -> Tensor:
    """Normalise orthogonal ``rows`` (r, d) with squared lengths ``squares``, which are descending.

    Rows whose length is near the rounding error (from a rank-deficient weight) are not orthogonal; QR orthogonalises
    them.
    """
    if squares[-1] > 1e-10 * squares[0]:
        rows = rows / squares.sqrt()[:, None]
        # The rows are orthogonal to about eps / (smallest / largest square). Two Newton-Schulz steps repair 1e-5.
        for _ in range(0 if squares[-1] > WELL_CONDITIONED * squares[0] else 2):
            rows = 1.5 * rows - 0.5 * (rows @ rows.T) @ rows
        return rows
    return orthonormal_first(rows, rows.new_zeros(0, len(rows)))[0]
