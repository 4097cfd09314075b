"""CTC losses of single utterances, computed by torch or k2 with equal losses and gradients.

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
) -> tuple[Tensor, Tensor]:
    """Negative log probability of each utterance's labels, and for which utterances it exists.

    logits    (B, F, V), any float dtype; the losses are computed in float32, also under autocast
    frames    (B,) valid frames of each utterance, 0 to F
    labels    (sum of sizes,) concatenated labels of all utterances, 1 to V - 1
    sizes     (B,) number of labels of each utterance, 0 or more
    k2        the module from ``import_k2``; None: torch's CTC
    output_beam  k2 prunes paths that are this much (nats) less likely than the best one; from 20 on the loss is exact

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
        log_probs = chosen.float().log_softmax(-1)
        kept = [targets[i] for i in rows.tolist()]
        if k2 is None:
            found = _torch(log_probs, frames[rows], kept)
        else:
            found = _k2(k2, log_probs, frames[rows], kept, output_beam)
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


def _k2(k2: ModuleType, log_probs: Tensor, frames: Tensor, targets: list[Tensor], output_beam: float) -> Tensor:
    # k2 wants segments [utterance, first frame, frames] on the CPU, by decreasing frames, and graphs in the same order.
    order = frames.argsort(descending=True, stable=True)
    segments = torch.stack([order, torch.zeros_like(order), frames[order]], dim=1).to(torch.int32)
    graphs = k2.ctc_graph([targets[i].tolist() for i in order.tolist()], modified=False, device=log_probs.device)
    dense = k2.DenseFsaVec(log_probs, segments)
    losses = k2.ctc_loss(graphs, dense, output_beam=output_beam, reduction="none", use_double_scores=True)
    return losses.to(torch.float32)[order.argsort().to(losses.device)]


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
