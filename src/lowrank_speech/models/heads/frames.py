"""Building blocks of classifiers over frames: time-delay layers, statistics, and norms that leave padding out.

Padding never changes a result: convolutions read zeros beyond an utterance, whether the batch has frames there or not,
and means and variances are over valid frames only, also those of the norms in training.

B batch, F frames, C channels. ``mask`` (B, F) bool: the valid frames.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_speech.lowrank.linear import LowRankLinear

LEAST_VARIANCE = 1e-7  # of an embedding's standard deviations; the gradient of the root is not finite at 0


def splice(x: Tensor, offsets: list[int], longer: int = 0) -> Tensor:
    """The frames at ``offsets`` from each frame, side by side: (B, F, C) -> (B, F + longer, C * offsets).

    Frames before the first and after the last one are zeros.
    """
    length, before = x.shape[1] + longer, max(-min(offsets), 0)
    padded = F.pad(x, (0, 0, before, max(max(offsets), 0) + longer))
    return torch.cat([padded[:, before + at : before + at + length] for at in offsets], -1)


class Tdnn(nn.Module):
    """A time-delay layer: frames at the multiples of ``dilation`` around each frame, and one linear layer over them.

    (B, F, C) -> (B, F, outputs), the convolution of ``kernel`` (odd) taps with zeros as padding. As a linear layer it
    can be factorised like any other.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1):
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.linear = nn.Linear(inputs * kernel, outputs)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.kernel == 1:
            return self.linear(x)
        x = x.masked_fill(~mask[..., None], 0.0)
        if isinstance(self.linear, KaldiFactors):
            return self.linear(x, self.dilation)
        half = self.kernel // 2
        return self.linear(splice(x, [at * self.dilation for at in range(-half, half + 1)]))


class KaldiFactors(LowRankLinear):
    """The factors of a layer with three taps as in Kaldi's TDNN-F: each factor reads two frames.

    b_t = M [x_(t-d), x_t] with M (r, 2 C), which the constraint keeps semi-orthogonal, and y_t = N [b_t, b_(t+d)] + c
    with N (outputs, 2 r). Both together read x_(t-d), x_t and x_(t+d), with as many parameters as the factors of the
    whole layer, r (3 C + outputs) for C = outputs.

    Source: Povey et al., Interspeech 2018; Kaldi, steps/libs/nnet3/xconfig/composite_layers.py (tdnnf-layer).
    """

    def __init__(self, dense: nn.Linear, rank: int):
        """Uninitialised factors for ``dense``, a linear layer over three taps."""
        nn.Module.__init__(self)  # the shapes differ from those of plain factors
        place = {"device": dense.weight.device, "dtype": dense.weight.dtype}
        # As in LowRankLinear.empty, building draws nothing.
        self.first = nn.utils.skip_init(nn.Linear, 2 * dense.in_features // 3, rank, bias=False, **place)
        self.second = nn.utils.skip_init(nn.Linear, 2 * rank, dense.out_features, **place)

    def forward(self, x: Tensor, dilation: int = 1) -> Tensor:
        """(B, F, C), zero beyond each utterance -> (B, F, outputs)."""
        length = x.shape[1]
        # Also after the last frame, where b is not 0: otherwise the batch's padding would decide.
        inner = self.first(splice(x, [-dilation, 0], longer=dilation))
        return self.second(torch.cat([inner[:, :length], inner[:, dilation:]], -1))

    @property
    def weight(self) -> Tensor:
        """The matrix (outputs, 3 C) of the equivalent layer with three taps."""
        (before, now), (here, later) = self.first.weight.chunk(2, 1), self.second.weight.chunk(2, 1)
        return torch.cat([here @ before, here @ now + later @ before, later @ now], 1)

    @torch.no_grad()
    def dense(self) -> nn.Linear:
        """The equivalent layer with three taps; the products are computed in the factors' dtype."""
        result = nn.utils.skip_init(nn.Linear, self.weight.shape[1], self.out_features)
        result.weight.copy_(self.weight)
        result.bias.copy_(self.second.bias)
        return result.train(self.training)


class Norm(nn.BatchNorm1d):
    """Batch normalisation of (N, C), or of the valid frames of (B, F, C).

    A single row has no variance: then the running statistics are used, also in training.
    """

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return self._rows(x)
        if not self.training:
            return self._rows(x.flatten(0, 1)).view_as(x)
        rows = self._rows(x[mask])
        result = rows.new_zeros(x.shape)
        result[mask] = rows
        return result

    def _rows(self, rows: Tensor) -> Tensor:
        if self.training and len(rows) > 1:
            return super().forward(rows)
        mean, variance = self.running_mean, self.running_var
        return F.batch_norm(rows, mean, variance, self.weight, self.bias, False, 0.0, self.eps)


class FrameLayer(nn.Module):
    """Time-delay layer, ReLU, norm: (B, F, C) -> (B, F, outputs)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1):
        super().__init__()
        self.tdnn = Tdnn(inputs, outputs, kernel, dilation)
        self.norm = Norm(outputs)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.norm(torch.relu(self.tdnn(x, mask)), mask)


def uniform(mask: Tensor) -> Tensor:
    """Equal weights (B, F, 1) of the valid frames, which sum to 1."""
    return (mask / mask.sum(1, keepdim=True).clamp(min=1))[..., None]


def statistics(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, C) each over the frames of (B, F, C), with ``weights`` (B, F, 1 or C)."""
    mean = (weights * x).sum(1)
    variance = (weights * (x - mean[:, None]).square()).sum(1)
    return mean, variance.clamp(min=LEAST_VARIANCE).sqrt()


def attention(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax of ``scores`` (B, F, 1 or C) over the valid frames."""
    return scores.float().masked_fill(~mask[..., None], float("-inf")).softmax(1)
