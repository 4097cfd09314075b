"""The denominator of LF-MMI (see ``denominator``), computed by k2.

k2 gets the graph as an FSA with all arcs, states b and n of each context, and intersects it with the network's outputs.
The results are those of ``denominator.log_totals``, but for what the beam prunes. Imports nothing but torch, and runs
under Python 3.9, as ``ctc_losses`` does.

Source: icefall's LFMMILoss, with an exact denominator (``intersect_dense``).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

MOST_ARCS = 8_000
"""k2 stores all arcs for every frame of every utterance (16 x 500 frames: 8 GB), so it gets no graph with more."""


def arcs_of(graph: Any) -> tuple[Tensor, Tensor]:
    """All arcs of the intersection, (A, 4) int32 rows [from, to, label, 0] in k2's order, and their scores (A,).

    State 0 is b of the start; then b of the other contexts, n of all, and the final state.
    """
    size = len(graph.last)
    start = int(graph.start)
    # b of the start and of context 0 change places.
    b, n, final = torch.arange(size), torch.arange(size) + size, 2 * size
    b[[0, start]] = b[[start, 0]]
    last, rows, scores = graph.last.cpu(), [], []

    def add(source: Tensor, target: Tensor, label: Tensor, score: Tensor) -> None:
        rows.append(torch.stack(torch.broadcast_tensors(source, target, label, torch.tensor(0)), 1))
        scores.append(score.expand(len(rows[-1])))

    zero = torch.tensor(0.0, dtype=torch.float64)
    for states, repeats in ((b, True), (n, False)):
        probabilities = graph.probabilities(repeats).cpu()
        source, target = probabilities.nonzero(as_tuple=True)
        add(states[source], n[target], last[target], probabilities[source, target].log())
        add(states, b, torch.tensor(0), zero)
        add(states, torch.tensor(final), torch.tensor(-1), graph.final.cpu().log())
    tokens = last.nonzero().flatten()
    add(n[tokens], n[tokens], last[tokens], zero)  # a token goes on
    found, values = torch.cat(rows), torch.cat(scores)
    order = found[:, 0].argsort(stable=True)
    return found[order].to(torch.int32), values[order].to(torch.float32)


def arc_number(graph: Any) -> int:
    """The number of arcs of the intersection, roughly: all pairs of a context and a token, from b and from n."""
    return 2 * len(graph.last) * (len(graph.unigram) + 3)


def log_totals_k2(k2: ModuleType, log_probs: Tensor, frames: Tensor, graph: Any, output_beam: float = 20.0) -> Tensor:
    """As ``log_totals``, from k2, without what lies ``output_beam`` below the best path.

    Raises ValueError if the graph has too many arcs for k2.
    """
    if arc_number(graph) > MOST_ARCS:
        raise ValueError(f"LF-MMI: the graph has {arc_number(graph)} arcs; k2 takes at most {MOST_ARCS}")
    if graph.fsa is None:
        arcs, scores = arcs_of(graph)
        fsa = k2.Fsa(torch.cat([arcs[:, :3], scores.view(torch.int32)[:, None]], 1)).to(log_probs.device)
        graph.fsa = k2.arc_sort(k2.create_fsa_vec([fsa]))
    graphs = k2.index_fsa(graph.fsa, torch.zeros(len(frames), dtype=torch.int32, device=log_probs.device))
    # k2 wants segments [utterance, first frame, frames] on the CPU, by decreasing frames.
    order = frames.argsort(descending=True, stable=True)
    segments = torch.stack([order, torch.zeros_like(order), frames[order]], dim=1).to(torch.int32)
    lattice = k2.intersect_dense(graphs, k2.DenseFsaVec(log_probs, segments), output_beam=output_beam)
    totals = lattice.get_tot_scores(log_semiring=True, use_double_scores=True)
    return totals.to(torch.float32)[order.argsort().to(totals.device)]
