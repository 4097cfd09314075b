"""CTC losses of single utterances, computed by torch or k2 with equal losses and gradients.

Two variants. ``log_priors`` are subtracted from the log probabilities, so that a label that is frequent in the
posteriors costs more: blank, above all (Huang et al., "Less peaky and more accurate CTC forced alignment by label
priors", ICASSP 2024). ``delay_penalty`` multiplies each path by exp(-penalty (t - half of the frames)) for every label,
where t is the label's first frame, so that labels come earlier (Kang et al., "Delay-penalized transducer", 2022; k2's
ctc_loss).

Only this module uses k2. It imports nothing but torch and (on request) k2, and stays compatible with Python 3.9: the
k2 on PyPI is built for that Python, and `make test-k2` loads this file there by its path.

B batch, F frames, V vocabulary. Blank is 0. Source: Graves et al. 2006; k2's intersect_dense over ctc_graph.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

BLANK = 0


def import_k2(device: str = "cpu") -> ModuleType:
    """Import k2. Raises a one-line ImportError if it does not work with this torch on ``device`` (cpu or cuda)."""
    try:
        import k2
    except Exception as error:  # k2 raises ImportError for another torch, the loader OSError, its dependencies anything
        raise ImportError(f"{_named()} cannot be imported: {' '.join(str(error).split())}") from error
    if not hasattr(k2, "ctc_loss"):
        # Python treats any folder of that name on its path as a namespace package.
        raise ImportError(f"k2 is not installed; Python finds the folder {next(iter(k2.__path__))} instead")
    if device == "cuda" and not k2.with_cuda:
        raise ImportError(f"{_named()} was built without CUDA")
    return k2


def k2_version() -> str:
    """The version of the installed k2; includes the CUDA and torch versions it was built for, if its wheel has them."""
    return importlib.metadata.version("k2")


def _named() -> str:
    try:
        return f"k2 {k2_version()}, under torch {torch.__version__},"
    except importlib.metadata.PackageNotFoundError:
        return f"k2, under torch {torch.__version__},"


def ctc_losses(
    logits: Tensor,
    frames: Tensor,
    labels: Tensor,
    sizes: Tensor,
    k2: ModuleType | None = None,
    output_beam: float = 20.0,
    log_priors: Tensor | None = None,
    delay_penalty: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Negative log probability of each utterance's labels, and for which utterances it exists.

    logits    (B, F, V), any float dtype; the losses are computed in float32, also under autocast
    frames    (B,) valid frames of each utterance, 0 to F
    labels    (sum of sizes,) concatenated labels of all utterances, 1 to V - 1
    sizes     (B,) number of labels of each utterance, 0 or more
    k2        the module from ``import_k2``; None: torch's CTC
    output_beam  k2 prunes paths that are this much (nats) less likely than the best one; from 20 on the loss is exact
    log_priors   (V,) to subtract from the log probabilities, times their scale; the loss may then be negative
    delay_penalty  per label and frame, at least 0

    Returns losses (B,) float32 in the order given, and possible (B,) bool on the CPU. ``possible`` is False if the
    target needs more frames (labels + adjacent repeats) than the utterance has, or if it has no frames; then the loss
    and its gradient are 0. If logits are not finite, the loss is not finite either. Raises ValueError if shapes or
    values do not fit together.
    """
    frames, labels, sizes = (t.detach().to("cpu", torch.int64) for t in (frames, labels, sizes))
    _check(logits, frames, labels, sizes)
    targets = labels.split(sizes.tolist())
    possible = possible_targets(frames, targets)
    # Impossible targets never reach a back end. Torch would return NaN gradients for them. An infinite loss from k2
    # could not be replaced by 0, because NaN among the logits also causes one, and that must not be hidden.
    rows = possible.nonzero().flatten()
    if len(rows) == 0:
        return logits.float()[:, :0].sum((1, 2)), possible
    with torch.autocast(logits.device.type, enabled=False):
        chosen = logits if len(rows) == len(targets) else logits[rows.to(logits.device)]
        scores = chosen.float().log_softmax(-1)
        if log_priors is not None:
            scores = scores - log_priors
        kept = [targets[i] for i in rows.tolist()]
        if k2 is not None:
            found = _k2(k2, scores, frames[rows], kept, output_beam, delay_penalty)
        elif delay_penalty:
            found = _Delayed.apply(scores, frames[rows], kept, delay_penalty)
        elif log_priors is not None:
            # torch's gradient is wrong for probabilities that do not sum to one.
            total = scores.logsumexp(-1)
            valid = torch.arange(total.shape[1]) < frames[rows, None]
            found = _torch(scores - total[..., None], frames[rows], kept)
            found = found - torch.where(valid.to(total.device), total, 0.0).sum(1)
        else:
            found = _torch(scores, frames[rows], kept)
        if chosen is logits:
            return found, possible
        return found.new_zeros(len(targets)).index_copy(0, rows.to(found.device), found), possible


def possible_targets(frames: Tensor, targets: Sequence[Tensor]) -> Tensor:
    """Which targets (the labels of one utterance each) fit into their ``frames`` (B,): bool (B,) on the CPU."""
    needed = torch.tensor([len(t) + int((t[1:] == t[:-1]).sum()) for t in targets])
    return (needed <= frames) & (frames > 0)


def _torch(log_probs: Tensor, frames: Tensor, targets: list[Tensor]) -> Tensor:
    sizes = torch.tensor([len(target) for target in targets])
    labels = torch.cat(targets).to(log_probs.device)
    return F.ctc_loss(log_probs.transpose(0, 1), labels, frames, sizes, blank=BLANK, reduction="none")


def _k2(
    k2: ModuleType,
    scores: Tensor,
    frames: Tensor,
    targets: list[Tensor],
    output_beam: float,
    delay_penalty: float,
) -> Tensor:
    # k2 wants segments [utterance, first frame, frames] on the CPU, by decreasing frames, and graphs in the same order.
    order = frames.argsort(descending=True, stable=True)
    segments = torch.stack([order, torch.zeros_like(order), frames[order]], dim=1).to(torch.int32)
    graphs = k2.ctc_graph([targets[i].tolist() for i in order.tolist()], modified=False, device=scores.device)
    dense = k2.DenseFsaVec(scores, segments)
    keys = {"delay_penalty": delay_penalty} if delay_penalty else {}
    losses = k2.ctc_loss(graphs, dense, output_beam=output_beam, reduction="none", use_double_scores=True, **keys)
    return losses.to(torch.float32)[order.argsort().to(losses.device)]


class _Delayed(torch.autograd.Function):
    """CTC with a delay penalty, by forward and backward sums in the log semiring, in double precision.

    States 0 to 2 L of an utterance: a blank before each of its L labels, and one after the last.
    """

    @staticmethod
    def forward(ctx, scores, frames, targets, penalty):
        device, most = scores.device, int(frames.max())
        sizes = torch.tensor([len(target) for target in targets])
        states = torch.zeros(len(targets), 2 * int(sizes.max()) + 1, dtype=torch.int64)
        for i, target in enumerate(targets):
            states[i, 1 : 2 * len(target) : 2] = target
        is_label = torch.arange(states.shape[1]) % 2 == 1
        skips = is_label.expand_as(states).clone()  # from the label before, without a blank
        skips[:, :2] = False
        skips[:, 2:] &= states[:, 2:] != states[:, :-2]
        last = torch.arange(states.shape[1]) - 2 * sizes[:, None]
        final = torch.where((last == 0) | (last == -1), 0.0, -torch.inf).to(device, torch.float64)
        states, skips, is_label, ends = (t.to(device) for t in (states, skips, is_label, frames))
        middle = ends // 2

        def emitted(t: int) -> Tensor:
            return scores[:, t].double().gather(1, states)

        def late(t: int) -> Tensor:
            return torch.where(is_label, -penalty * (t - middle[:, None]).double(), 0.0)

        sums = torch.full(states.shape, -torch.inf, dtype=torch.float64, device=device)
        sums[:, :2] = (emitted(0) + late(0))[:, :2]
        kept = [sums]
        for t in range(1, most):
            entering = torch.logaddexp(_shifted(sums, 1), _shifted(sums, 2).masked_fill(~skips, -torch.inf))
            moved = emitted(t) + torch.logaddexp(sums, entering + late(t))
            sums = torch.where(t < ends[:, None], moved, sums)
            kept.append(sums)
        totals = (sums + final).logsumexp(1)
        if ctx.needs_input_grad[0]:
            posteriors, after = torch.zeros_like(scores), final
            for t in reversed(range(most)):
                found = (kept[t] + after - totals[:, None]).exp() * (t < ends[:, None])
                posteriors[:, t].scatter_add_(1, states, found.to(scores.dtype))
                staying = emitted(t) + after
                entering = staying + late(t)
                skipping = entering.masked_fill(~skips, -torch.inf)
                before = torch.logaddexp(staying, torch.logaddexp(_shifted(entering, -1), _shifted(skipping, -2)))
                after = torch.where(t < ends[:, None], before, after)
            ctx.save_for_backward(posteriors)
        return -totals.to(scores.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (posteriors,) = ctx.saved_tensors
        return -posteriors * gradient[:, None, None], None, None, None


def _shifted(sums: Tensor, by: int) -> Tensor:
    """The sums (B, S) of the states ``by`` before; -inf where there are none."""
    found = torch.full_like(sums, -torch.inf)
    if abs(by) < sums.shape[1]:
        if by > 0:
            found[:, by:] = sums[:, :-by]
        else:
            found[:, :by] = sums[:, -by:]
    return found


def _check(logits: Tensor, frames: Tensor, labels: Tensor, sizes: Tensor) -> None:
    """Check what release builds of k2 do not: there a bad value causes a wrong loss or an out-of-bounds read."""
    if logits.dim() != 3:
        raise ValueError(f"CTC: logits have shape {tuple(logits.shape)}; expected (B, F, V)")
    batch, most, vocabulary = logits.shape
    if frames.shape != (batch,) or sizes.shape != (batch,):
        raise ValueError(
            f"CTC: frame counts and label counts have shapes {tuple(frames.shape)} and {tuple(sizes.shape)}; expected "
            f"one each for {batch} utterances"
        )
    bad = ((frames < 0) | (frames > most)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"CTC: utterance {bad[0]} of the batch has {int(frames[bad[0]])} frames; expected 0 to {most}")
    if bool((sizes < 0).any()) or labels.shape != (int(sizes.sum()),):
        raise ValueError(f"CTC: labels have shape {tuple(labels.shape)}, but the label counts are {sizes.tolist()}")
    bad = ((labels <= BLANK) | (labels >= vocabulary)).nonzero().flatten().tolist()
    if bad:
        owner = int((sizes.cumsum(0) <= bad[0]).sum())
        raise ValueError(
            f"CTC: utterance {owner} of the batch has the label {int(labels[bad[0]])}; expected 1 to {vocabulary - 1} "
            f"(0 is blank): the token set does not belong to this output layer"
        )
