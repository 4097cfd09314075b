"""The semi-orthogonal constraint on first factors: Kaldi's ``ConstrainOrthonormal``.

With P = M Mᵀ (the transpose of M where it has more rows than columns, so that P is the smaller Gram matrix):

    M <- M - 4 (nu / s²) (P - s² I) M,    nu = 1/8

On the singular values x = sigma / s this is x -> (3 x - x³) / 2, which converges quadratically near 1. The scale s is
fixed, or it floats: s² = tr(P Pᵀ) / tr(P). With a floating scale, nu is halved if ratio = tr(P Pᵀ) rows / tr(P)² is
above 1.02, and halved again above 1.1. After each optimiser step, each layer is updated with probability 1/4.

    floating  Kaldi's choice for TDNN-F (constraint -1.0)
    fixed     s = ``scale``
    exact     M = L Q, M <- s Q, N <- N L / s: keeps the layer's function; costs a QR
    none      no update

Source: Kaldi, src/nnet3/nnet-utils.cc, ConstrainOrthonormal; Povey et al., Interspeech 2018. Our own addition: with a
fixed scale, Kaldi's step flips the sign of singular values above sqrt(3) s and diverges above sqrt(5) s. In these cases
we reduce nu so that the step halves the largest one.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowrank_speech.lowrank.linear import OrthonormalLinear
from lowrank_speech.lowrank.orthonormal import gram, orthonormal_first
from lowrank_speech.lowrank.structure import LowRank

Mode = Literal["floating", "fixed", "exact", "none"]
UPDATE_SPEED = 0.125  # nu
LEAST_TRACE = 1e-15
SMALL = 0.002
AMX = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()  # not a public function: it may disappear


@torch.no_grad()
def orthonormal_step(M: Tensor, scale: float | None = None) -> Tensor:
    """One update of M (..., rows, columns) towards M Mᵀ = s² I; returns a new tensor, computed in at least float32.

    ``scale``: None or a negative number for the floating scale, otherwise the fixed s.
    """
    work = M.clone() if M.dtype == torch.float64 else M.to(torch.float32, copy=True)
    _pull(work, scale)
    return work.to(M.dtype)


def _pull(M: Tensor, scale: float | None) -> None:
    """``orthonormal_step`` in place; M is float32 or float64."""
    if scale == 0:
        raise ValueError("the scale of the semi-orthogonal constraint is 0")
    if M.shape[-2] > M.shape[-1]:
        M = M.mT
    P = gram(M)
    rows = P.shape[-1]
    trace, trace_pp = _trace(P), P.square().sum((-2, -1))
    if scale is None or scale < 0:
        safe = trace.clamp(min=LEAST_TRACE)
        square = trace_pp / safe
        ratio = trace_pp * rows / safe.square()
        nu = UPDATE_SPEED * torch.where(ratio > 1.02, 0.5, 1.0) * torch.where(ratio > 1.1, 0.5, 1.0)
    else:
        square = torch.full_like(trace, scale * scale)
        nu = _guarded(P, square)
    done = trace >= LEAST_TRACE
    speed = torch.where(done, 4.0 * nu / square.clamp(min=torch.finfo(M.dtype).tiny), 0.0)
    P.diagonal(dim1=-2, dim2=-1).sub_(square[..., None])
    P.mul_(-speed[..., None, None])
    if _bf16_suffices(P):
        M += P.bfloat16() @ M.bfloat16()
    else:
        M += P @ M


def _bf16_suffices(change: Tensor) -> bool:
    """Whether the product with ``change`` (..., rows, rows) may be computed in bfloat16, which is far faster with AMX.

    Near the goal the product changes M by at most a share of ``SMALL`` (root mean square over the rows), so that 8 bits
    cause an error of 1e-5 of M. P is always computed in full precision, so the next update corrects this error. On a
    GPU, computing the size of the change would cost more than the product.
    """
    if change.dtype != torch.float32 or change.device.type != "cpu" or not AMX:
        return False
    return float(torch.linalg.vector_norm(change, dim=(-2, -1)).amax()) <= SMALL * change.shape[-1] ** 0.5


def _trace(P: Tensor) -> Tensor:
    return P.diagonal(dim1=-2, dim2=-1).sum(-1)


def _guarded(P: Tensor, square: Tensor) -> Tensor:
    """nu for a fixed scale: Kaldi's if the largest eigenvalue of P is at most 3 s², else one that halves its root."""
    nu = torch.full_like(square, UPDATE_SPEED)
    # The largest row sum bounds the largest eigenvalue, so near the goal there is no need to compute it.
    if (P.abs().sum(-1).amax(-1) <= 3 * square).all():
        return nu
    largest = torch.linalg.eigvalsh(P)[..., -1] / square
    return torch.where(largest > 3, UPDATE_SPEED / (largest - 1).clamp(min=1.0), nu)


@torch.no_grad()
def deviation(M: Tensor, scale: float | None = None) -> Tensor:
    """||P / s² - I||_F of M (..., rows, columns), with the floating s or a fixed one; 0 if M is 0 and s floats."""
    if M.shape[-2] > M.shape[-1]:
        M = M.mT
    work = M if M.dtype == torch.float64 else M.float()
    P = gram(work)
    if scale is None or scale < 0:
        square = P.square().sum((-2, -1)) / _trace(P).clamp(min=LEAST_TRACE)
    else:
        square = P.new_full(P.shape[:-2], scale * scale)
    safe = square.clamp(min=torch.finfo(work.dtype).tiny)
    eye = torch.eye(P.shape[-1], dtype=P.dtype, device=P.device)
    found = (P / safe[..., None, None] - eye).norm(dim=(-2, -1))
    return torch.where(square > 0, found, 0.0)


def constrained_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Qualified name -> module of every factorised or ``OrthonormalLinear`` layer, in the model's order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LowRank | OrthonormalLinear)}


class SemiOrthogonal:
    """Keeps the first factors of a model's ``LowRankLinear`` layers, and its ``OrthonormalLinear`` layers,
    semi-orthogonal. Call ``step()`` after the optimiser's step.

    ``every`` = k updates all layers at every k-th step. Without it, each layer is updated with ``probability``, as in
    Kaldi, drawn from the object's own generator. Frozen layers do not change. Layers of the same shape are updated
    together. Raises ValueError for an unknown mode, a value out of range, or a model without such layers.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: Mode = "floating",
        scale: float = 1.0,
        probability: float = 0.25,
        every: int | None = None,
        seed: int = 0,
    ):
        if mode not in ("floating", "fixed", "exact", "none"):
            raise ValueError(f"constraint mode is {mode!r}; expected floating, fixed, exact or none")
        if scale <= 0 or not 0 < probability <= 1 or (every is not None and every < 1):
            raise ValueError(
                f"constraint: scale ({scale}) must be positive, probability ({probability}) in (0, 1], every ({every}) "
                f"at least 1"
            )
        self.layers = constrained_layers(model)
        if not self.layers:
            raise ValueError(
                "the model has no factorised layer to constrain: factorise it, or leave the constraint out"
            )
        self.mode, self.scale, self.probability, self.every = mode, scale, probability, every
        self.steps = 0
        self._generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def step(self, prefix: str = "") -> None:
        """Count a step, and update the layers that are due, of those whose names start with ``prefix``.

        It does nothing, and draws nothing, if there is no such layer.
        """
        if not any(name.startswith(prefix) for name in self.layers):
            return
        self.steps += 1
        if self.mode == "none":
            return
        groups: dict[tuple, list] = {}
        for name in self._turn():
            layer = self.layers[name]
            weight = layer.first.weight
            if weight.requires_grad and name.startswith(prefix):
                # The exact update also changes the second factors, so their shapes must match too.
                second = None if layer.second is None else layer.second.weight.shape
                key = (weight.shape, weight.dtype, weight.device, second)
                groups.setdefault(key if self.mode == "exact" else key[:3], []).append(layer)
        for layers in groups.values():
            self._update(layers)

    def _turn(self) -> list[str]:
        names = list(self.layers)
        if self.every is not None:
            return names if self.steps % self.every == 0 else []
        draws = torch.rand(len(names), generator=self._generator).tolist()
        return [name for name, draw in zip(names, draws, strict=True) if draw < self.probability]

    def _update(self, layers: list) -> None:
        first = [layer.first.weight for layer in layers]
        if self.mode != "exact":
            # A GPU needs only one set of kernels for a batch; on a CPU, batching would cost as much as the products.
            for group in [first] if first[0].device.type == "cuda" else [[weight] for weight in first]:
                self._pull(group)
            return
        M = torch.stack(first)
        if M.shape[-2] > M.shape[-1]:
            raise ValueError(
                f"a first factor has shape {tuple(M.shape[1:])}; mode: exact needs at most as many rows as columns"
            )
        # A second factor may read the outputs of the first one at several frames: r columns for each. A layer without
        # a second factor gets the orthonormal rows of its QR factorisation.
        rank = M.shape[-2]
        seconds = [first[0].new_zeros(0, rank) if x.second is None else x.second.weight.view(-1, rank) for x in layers]
        second = torch.stack(seconds)
        Q, product = orthonormal_first(*(x if x.dtype == torch.float64 else x.float() for x in (M, second)))
        for layer, q, n in zip(layers, Q, product, strict=True):
            layer.first.weight.copy_(q * self.scale)
            if layer.second is not None:
                layer.second.weight.copy_((n / self.scale).view_as(layer.second.weight))

    def _pull(self, weights: list[Tensor]) -> None:
        if len(weights) == 1 and weights[0].dtype in (torch.float32, torch.float64):
            _pull(weights[0], self._scale)
            return
        for weight, new in zip(weights, orthonormal_step(torch.stack(weights), self._scale), strict=True):
            weight.copy_(new)

    @property
    def _scale(self) -> float | None:
        return self.scale if self.mode in ("fixed", "exact") else None

    def deviation(self) -> dict[str, float]:
        """Layer name -> ||P / s² - I||_F, with the scale s of the mode (floating for ``none``)."""
        return {name: deviation(layer.first.weight, self._scale).item() for name, layer in self.layers.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed run needs to update the same layers; only tensors and numbers."""
        return {"steps": self.steps, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self._generator.set_state(state["generator"])
