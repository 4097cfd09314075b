"""The denominator of LF-MMI: the log of a sum over all token sequences w, weighted by a token n-gram P.

    log Z = log sum over w of P(w) sum over alignments a of w of prod over t of y_t(a_t)

y_t is the network's output in frame t. P ends its sentences. Alignments are those of CTC. The graph is CTC's topology
intersected with the n-gram; a state is a context h of the n-gram, and whether the last frame was blank (b) or the last
token of h (n). One frame:

    b'(h) = y(blank) (b(h) + n(h))
    n'(d) = y(last d) (n(d) + sum over h of b(h) P(d | h) + sum over h with last h != last d of n(h) P(d | h))

P(d | h) is the probability of the token that leads from h to d. The last sum skips tokens that repeat the one before,
because CTC needs a blank between them. Most tokens of a context have the probability of a shorter context times a
weight, so the sums follow the n-gram's arcs and back-off weights instead of all pairs of contexts.

The sums are float64 probabilities, rescaled in each frame: the log semiring without its logarithms. They lose only what
is below exp(-700) of a frame's best state. The gradient of log Z with respect to log y_t(k) is the posterior of k in
frame t; it is computed with log Z, so memory grows linearly with the frames.

``denominator_k2`` computes the same with k2. Both modules import nothing but torch and run under Python 3.9, as
``ctc_losses`` does.

B batch, F frames, V vocabulary, H contexts, N columns. Blank is 0. Source: Hadian et al., "End-to-end speech
recognition using lattice-free MMI", Interspeech 2018; k2's ctc_topo.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields

import torch
from torch import Tensor

SMALL, DENSE = 128, 1024
"""Up to ``SMALL`` contexts, transitions are a dense matrix; up to ``DENSE``, if they have an eighth of all arcs."""
KEPT = 1 << 28
"""Bytes of forward sums to keep. If there are more, the backward pass computes them again, piece by piece."""


@dataclass
class Graph:
    """A token n-gram as arcs between contexts. The first V - 1 contexts are the single tokens 1 to V - 1, in order.

    last      (H,) int64       the last token of each context; 0 stands for the start of the sentence
    start     ()   int64       the context at the start of the sentence
    arcs      (2, A) int64     from a context to the one that follows its token
    weights   (A,) float64     how much the token's probability differs from that of the shorter context times its share
    shorter   (2, S) int64     from each context to itself and to all shorter ones, except for the empty one
    share     (S,) float64     the share of probability that the shorter context gets: the product of back-off weights
    empty     (H,) float64     the share that the empty context gets
    unigram   (V - 1,) float64 probabilities of the tokens in the empty context
    final     (H,) float64     probability of the end of the sentence

    P(d | h) = sum over the contexts g of h in ``shorter`` of share(h, g) weight(g, d) + empty(h) unigram(d). A weight
    is negative where a token leads to a longer context than it does from the shorter context.
    """

    last: Tensor
    start: Tensor
    arcs: Tensor
    weights: Tensor
    shorter: Tensor
    share: Tensor
    empty: Tensor
    unigram: Tensor
    final: Tensor

    def __post_init__(self) -> None:
        self._moves = None
        self.fsa = None  # the graph for k2; ``denominator_k2`` makes it once

    def to(self, device: torch.device) -> Graph:
        """This graph on ``device``."""
        return Graph(*(getattr(self, f.name).to(device) for f in fields(self)))

    @property
    def moves(self) -> _Dense | _Sparse:
        """The transitions as matrices on the graph's device; made once."""
        if self._moves is None:
            size = len(self.last)
            dense = size <= SMALL or (size <= DENSE and 8 * self.arcs.shape[1] >= size**2)
            self._moves = _Dense(self) if dense else _Sparse(self)
        return self._moves

    def probabilities(self, repeats: bool = True) -> Tensor:
        """P(d | h) (H, H) float64; without ``repeats``, 0 where the last tokens of h and d are equal."""
        size = len(self.last)
        weights, share = (torch.zeros(size, size, dtype=torch.float64, device=self.last.device) for _ in range(2))
        weights.index_put_(tuple(self.arcs), self.weights, accumulate=True)
        share.index_put_(tuple(self.shorter), self.share)
        found = share @ weights
        found[:, : len(self.unigram)] += self.empty[:, None] * self.unigram
        found.clamp_(min=0)  # rounding, where a negative weight takes all
        return found if repeats else found * (self.last[:, None] != self.last)


class _Dense:
    """Transitions as one matrix, for sums (2H, N): those of states b, then those of states n."""

    def __init__(self, graph: Graph):
        self.matrix = torch.cat([graph.probabilities(), graph.probabilities(repeats=False)])

    def forward(self, sums: Tensor) -> Tensor:
        """The mass (H, N) that enters each context with a new token."""
        return self.matrix.T @ sums

    def backward(self, later: Tensor) -> Tensor:
        """The transposed map, from (H, N) to (2H, N)."""
        return self.matrix @ later


class _Sparse:
    """The same, for n-grams with many contexts: back-off, explicit arcs, and the tokens of the empty context."""

    def __init__(self, graph: Graph):
        size, tokens = len(graph.last), len(graph.unigram)
        self.graph = graph
        source, target = graph.arcs
        kept = graph.last[source] != graph.last[target]
        # Of b, then of n; with the arcs of both, one product serves both.
        share = _matrix(graph.shorter, graph.share, size, size)
        both = torch.cat([graph.arcs, graph.arcs[:, kept] + torch.tensor([[size], [0]], device=source.device)], 1)
        arcs = _matrix(both, torch.cat([graph.weights, graph.weights[kept]]), 2 * size, size)
        self.trivial = bool((graph.shorter[0] == graph.shorter[1]).all())  # order 2: nothing between h and empty
        self.share, self.arcs = (share, _transposed(share)), (arcs, _transposed(arcs))
        # The mass for the empty context, by the last token of its contexts: row 0 has the start of the sentence.
        where = torch.stack([graph.last, torch.arange(size, device=source.device)])
        by_last = _matrix(where, graph.empty, tokens + 1, size)
        self.by_last = (by_last, _transposed(by_last))

    def forward(self, sums: Tensor) -> Tensor:
        size, tokens = len(self.graph.last), len(self.graph.unigram)
        b, n = sums[:size], sums[size:]
        flowed = sums if self.trivial else torch.cat([self.share[1] @ b, self.share[1] @ n])
        found = self.arcs[1] @ flowed
        of_n = self.by_last[0] @ n
        total = (self.graph.empty[:, None] * b).sum(0)
        found[:tokens] += self.graph.unigram[:, None] * (total + _others(of_n)[1:])
        return found.clamp_(min=0)

    def backward(self, later: Tensor) -> Tensor:
        size, tokens = len(self.graph.last), len(self.graph.unigram)
        found = self.arcs[0] @ later
        if not self.trivial:
            found = torch.cat([self.share[0] @ found[:size], self.share[0] @ found[size:]])
        of_token = self.graph.unigram[:, None] * later[:tokens]
        found[:size] += self.graph.empty[:, None] * of_token.sum(0)
        padded = torch.cat([torch.zeros_like(of_token[:1]), of_token])
        found[size:] += self.by_last[1] @ _others(padded)
        return found.clamp_(min=0)


def _others(rows: Tensor) -> Tensor:
    """For each row, the sum of the other rows, without subtraction."""
    before, after = rows.cumsum(0), rows.flip(0).cumsum(0).flip(0)
    found = torch.zeros_like(rows)
    found[1:] += before[:-1]
    found[:-1] += after[1:]
    return found


def _matrix(where: Tensor, values: Tensor, rows: int, columns: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse")  # CSR counts as beta, and checks that cost time are off
        return torch.sparse_coo_tensor(where, values, (rows, columns)).coalesce().to_sparse_csr()


def _transposed(matrix: Tensor) -> Tensor:
    found = matrix.to_sparse_coo().coalesce()
    return _matrix(found.indices().flip(0), found.values(), found.shape[1], found.shape[0])


# -- torch -------------------------------------------------------------------------------------------------------------


def log_totals(log_probs: Tensor, frames: Tensor, graph: Graph) -> Tensor:
    """log Z (B,) float32 of each utterance, differentiable.

    log_probs (B, F, V) float32, normalised or not; frames (B,) int64 on the CPU, 1 to F; graph on the device of
    log_probs, with its V. A row whose valid outputs are not finite gets a total that is not finite either.
    """
    return _LogTotals.apply(log_probs, frames, graph)


class _LogTotals(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_probs, frames, graph):
        order = frames.argsort(descending=True, stable=True)
        found = _Sums(log_probs.detach(), frames, order, graph)
        totals = found.totals.new_empty(len(order))
        totals[order.to(totals.device)] = found.totals
        if ctx.needs_input_grad[0]:
            posteriors = torch.zeros_like(log_probs)
            found.posteriors(posteriors, order)
            ctx.save_for_backward(posteriors)
        return totals.to(log_probs.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (posteriors,) = ctx.saved_tensors
        return posteriors * gradient[:, None, None], None, None


class _Sums:
    """Forward sums of a batch, and from them the posteriors. Columns are utterances, in ``order``: longest first."""

    def __init__(self, log_probs: Tensor, frames: Tensor, order: Tensor, graph: Graph):
        self.graph, self.moves, self.size = graph, graph.moves, len(graph.last)
        self.log_probs, self.rows = log_probs, order.to(log_probs.device)
        self.counts = frames[order].tolist()
        self.most, batch = self.counts[0], len(self.counts)
        self.active = [sum(count > t for count in self.counts) for t in range(self.most)]
        # One piece, if all sums may be kept.
        whole = self.most * batch * 2 * self.size * 8 <= KEPT
        self.piece = self.most if whole else math.isqrt(self.most - 1) + 1
        self.starts: list[Tensor] = []
        sums = log_probs.new_zeros(2 * self.size, batch, dtype=torch.float64)
        sums[graph.start] = 1.0
        self.logs = sums.new_zeros(batch)
        self.ends = torch.zeros_like(sums)
        for first in range(0, self.most, self.piece):
            self.starts.append(sums)
            self.kept, scales = self._run(sums, first)
            for i, scale in enumerate(scales):
                n = self.active[first + i]
                self.logs[:n] += scale.log() + self._highest(first + i)
                left = self.active[first + i + 1] if first + i + 1 < self.most else 0
                self.ends[:, left:n] = self.kept[i][:, left:n]
            self.scales, sums = scales, self.kept[-1]
        self.mass = (self.ends * graph.final.repeat(2)[:, None]).sum(0)
        self.totals = self.logs + self.mass.log()

    def _highest(self, t: int) -> Tensor:
        """The highest log output of frame ``t`` (N,)."""
        return self.log_probs[self.rows[: self.active[t]], t].amax(-1).double()

    def _outputs(self, t: int) -> Tensor:
        """Outputs of frame ``t`` (V, N), divided by the highest one."""
        found = self.log_probs[self.rows[: self.active[t]], t].double()
        return (found - found.amax(-1, keepdim=True)).exp().T

    def _run(self, sums: Tensor, first: int) -> tuple[list[Tensor], list[Tensor]]:
        """Sums after each frame of the piece from ``first`` on, each (2H, N) and scaled to 1; and the scales."""
        found, scales = [], []
        for t in range(first, min(first + self.piece, self.most)):
            sums = sums[:, : self.active[t]]
            b, n, out = sums[: self.size], sums[self.size :], self._outputs(t)
            sums = torch.cat([out[0] * (b + n), out[self.graph.last] * (n + self.moves.forward(sums))])
            scale = sums.sum(0)
            sums = sums / scale
            found.append(sums)
            scales.append(scale)
        return found, scales

    def posteriors(self, into: Tensor, order: Tensor) -> None:
        """Write the posterior of each output (B, F, V) to ``into``, which is 0."""
        later = self.graph.final.repeat(2)[:, None] / self.mass
        size, last = self.size, self.graph.last
        after = later[:, :0]
        for number in reversed(range(len(self.starts))):
            first = number * self.piece
            kept, scales = (
                (self.kept, self.scales) if number == len(self.starts) - 1 else self._run(self.starts[number], first)
            )
            for i in reversed(range(len(kept))):
                t = first + i
                n = self.active[t]
                # Utterances that end here join.
                after = torch.cat([after, later[:, after.shape[1] : n]], 1)
                found = kept[i] * after
                out = self._outputs(t)
                tokens = out.new_zeros(out.shape).index_add_(0, last, found[size:])
                tokens[0] += found[:size].sum(0)
                into[self.rows[:n], t] = tokens.T.to(into.dtype)
                weighted = out[last] * after[size:] / scales[i]
                before = self.moves.backward(weighted)
                blank = out[0] * after[:size] / scales[i]
                after = torch.cat([before[:size] + blank, before[size:] + blank + weighted])
