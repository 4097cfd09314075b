"""Search a graph with k2, on a CPU or with CUDA: best paths, and lattices over its output symbols.

In decoding, only this module uses k2. It imports nothing but torch and (on request) k2, and stays compatible with
Python 3.9: the k2 in the package index is built for that Python, and `make test-k2` loads this file there by its path.

The graph comes as arrays with OpenFst's labels: input 0 is epsilon, token i is i + 1. k2's decoder takes input 0 for
the blank and has no epsilons, so they are removed first. B batch, F frames, V tokens, A arcs.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

MIN_ACTIVE = 30
"""States that survive the beam in each frame, at least; k2's default."""


def import_k2(device: str = "cpu") -> ModuleType:
    """Import k2. Raises a one-line ImportError if it does not work with this torch on ``device`` (cpu or cuda)."""
    try:
        import k2
    except Exception as error:  # k2 raises ImportError for another torch, the loader OSError, its dependencies anything
        raise ImportError(f"{_named()} cannot be imported: {' '.join(str(error).split())}") from error
    if not hasattr(k2, "intersect_dense_pruned"):
        # Python treats any folder of that name on its path as a namespace package.
        raise ImportError(f"k2 is not installed; Python finds the folder {next(iter(k2.__path__))} instead")
    if device == "cuda" and not k2.with_cuda:
        raise ImportError(f"{_named()} was built without CUDA")
    return k2


def _named() -> str:
    try:
        return f"k2 {importlib.metadata.version('k2')}, under torch {torch.__version__},"
    except importlib.metadata.PackageNotFoundError:
        return f"k2, under torch {torch.__version__},"


def to_k2(
    k2: ModuleType,
    sources: Tensor,
    dests: Tensor,
    ilabels: Tensor,
    olabels: Tensor,
    costs: Tensor,
    finals: Tensor,
    start: int = 0,
) -> Any:
    """A k2.Fsa without epsilons, whose labels are token ids and whose ``aux_labels`` are the output symbols.

    ``sources`` ... ``costs``: (A,) of each arc; ``finals``: (S,) final cost of each state, infinite where not final.
    ValueError: no path leads to a final state.
    """
    states = len(finals)
    number = torch.arange(states)
    number[0], number[start] = start, 0  # k2 starts in state 0
    last = torch.nonzero(torch.isfinite(finals)).flatten()
    ends = torch.full((len(last),), -1, dtype=torch.int64)
    columns = [
        torch.cat([number[sources.long()], number[last]]),
        torch.cat([number[dests.long()], torch.full((len(last),), states, dtype=torch.int64)]),
        torch.cat([ilabels.long(), ends]),
    ]
    outputs, scores = torch.cat([olabels.long(), ends]), -torch.cat([costs.float(), finals[last].float()])
    order = torch.argsort(columns[0], stable=True)
    arcs = torch.stack([*columns, torch.zeros_like(columns[0])], 1).to(torch.int32)[order].contiguous()
    fsa = k2.Fsa(arcs, aux_labels=outputs[order].to(torch.int32))
    fsa.scores = scores[order]
    fsa = k2.connect(fsa)
    if fsa.num_arcs == 0:
        raise ValueError("no path of the graph leads to a final state")
    if bool((fsa.labels == 0).any()):
        fsa = k2.connect(k2.remove_epsilon(fsa))
    labels = fsa.labels.clone()
    labels[labels > 0] -= 1
    fsa.labels = labels
    return k2.arc_sort(fsa)


class K2Search:
    """Searches a graph from ``to_k2``.

    beam          search beam: paths worse than the best by more (nats) are dropped in each frame
    lattice_beam  arcs of the lattice whose best path is worse than the best by more are dropped in the end
    max_active    states that survive in a frame, at most
    """

    def __init__(
        self, k2: ModuleType, graph: Any, device: Any, beam: float, lattice_beam: float, max_active: int = 10_000
    ):
        self._k2, self._device = k2, device
        self._graph = k2.create_fsa_vec([graph]).to(device)
        self._beams = (beam, lattice_beam, MIN_ACTIVE, max_active)
        # k2 does not check labels in release builds.
        self._tokens = int(graph.labels.max()) + 1

    def lattices(self, log_probs: Tensor, frames: Sequence[int]) -> tuple[Any, list[int]]:
        """A vector of lattices (k2.FsaVec), and the row of the batch that each belongs to.

        ``log_probs``: (B, F, V) float32; ``frames``: valid frames of each row. Rows without frames have no lattice. An
        empty lattice: nothing survived. ValueError: the graph has more tokens than V.
        """
        if log_probs.shape[-1] < self._tokens:
            raise ValueError(f"the graph has {self._tokens} tokens, the network {log_probs.shape[-1]}")
        rows = sorted((row for row, n in enumerate(frames) if n), key=lambda row: -frames[row])
        if not rows:
            return None, rows
        segments = torch.tensor([[row, 0, frames[row]] for row in rows], dtype=torch.int32)
        dense = self._k2.DenseFsaVec(log_probs.float().to(self._device), segments)
        return self._k2.intersect_dense_pruned(self._graph, dense, *self._beams), rows

    def best(self, log_probs: Tensor, frames: Sequence[int]) -> list[tuple[list[int], list[int], float] | None]:
        """For each row the token of each frame, the output symbols and the score of the best path; None: nothing."""
        lattices, rows = self.lattices(log_probs, frames)
        found = [None] * len(frames)
        if rows:
            for row, path in zip(rows, self._paths(lattices)):
                found[row] = path
        return found

    def _paths(self, lattices: Any) -> list[tuple[list[int], list[int], float] | None]:
        k2 = self._k2
        best = k2.shortest_path(lattices, use_double_scores=True)
        scores = best.get_tot_scores(use_double_scores=True, log_semiring=False).tolist()
        result = []
        for i, score in enumerate(scores):
            path = best[i].to("cpu")
            if path.num_arcs == 0:
                result.append(None)
                continue
            outputs = path.aux_labels
            outputs = outputs.values if isinstance(outputs, k2.RaggedTensor) else outputs
            labels = path.labels[:-1].tolist()  # without that of the final arc
            result.append((labels, [o for o in outputs.tolist() if o > 0], score))
        return result

    def symbol_lattices(self, log_probs: Tensor, frames: Sequence[int]) -> list[dict[str, list] | None]:
        """For each row a lattice over the output symbols, without epsilons; None: nothing survived.

        A lattice is a dictionary with the columns ``sources``, ``dests``, ``symbols``, ``scores`` of its arcs and the
        final score of each state, ``finals`` (-inf: not final). It starts in state 0.
        """
        lattices, rows = self.lattices(log_probs, frames)
        found = [None] * len(frames)
        for i, row in enumerate(rows):
            found[row] = columns(self._k2, symbols_only(self._k2, lattices[i].to("cpu")))
        return found


def symbols_only(k2: ModuleType, lattice: Any) -> Any:
    """The acceptor (k2.Fsa) of the output symbols of a lattice, without epsilons; it may be empty."""
    if lattice.num_arcs == 0:
        return lattice
    inverted = k2.invert(lattice)
    acceptor = k2.Fsa(inverted.arcs)  # without the labels of frames
    return k2.top_sort(k2.connect(k2.remove_epsilon(k2.connect(acceptor))))


def columns(k2: ModuleType, acceptor: Any) -> dict[str, list] | None:
    """The arcs of an acceptor as lists; see ``K2Search.symbol_lattices``. None: it is empty."""
    if acceptor.num_arcs == 0:
        return None
    arcs, scores = acceptor.arcs.values()[:, :3].long(), acceptor.scores.double()
    ends = arcs[:, 2] == -1
    finals = torch.full((int(acceptor.shape[0]),), float("-inf"), dtype=torch.double)
    for source, score in zip(arcs[ends, 0].tolist(), scores[ends].tolist()):
        finals[source] = max(float(finals[source]), score)
    inner = arcs[~ends]
    names = ("sources", "dests", "symbols")
    found = {name: inner[:, i].tolist() for i, name in enumerate(names)}
    return {**found, "scores": scores[~ends].tolist(), "finals": finals.tolist()}
