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


Arcs = "dict[str, Tensor]"
"""Columns of arcs or paths: sources, dests, labels, costs, and ``outputs`` (A, M): output symbols, then zeros."""


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
    """A k2.Fsa without epsilons, whose labels are token ids and whose ``aux_labels`` (ragged) are the output symbols.

    ``sources`` ... ``costs``: (A,) of each arc; ``finals``: (S,) final cost of each state, infinite where not final.
    ValueError: no path leads to a final state.
    """
    ends = torch.nonzero(torch.isfinite(finals)).flatten()
    if not len(ends):
        raise ValueError("no path of the graph leads to a final state")
    last = len(finals)
    arcs = {
        "sources": torch.cat([sources.long(), ends]),
        "dests": torch.cat([dests.long(), torch.full_like(ends, last)]),
        "labels": torch.cat([ilabels.long(), torch.full_like(ends, -1)]),
        "costs": torch.cat([costs.double(), finals[ends].double()]),
        "outputs": torch.cat([olabels.long(), torch.zeros_like(ends)])[:, None],
    }
    arcs = without_epsilons(arcs, start, last + 1)
    number = torch.arange(last + 1)
    number[0], number[start] = start, 0  # k2 starts in state 0
    sources, labels = number[arcs["sources"]], arcs["labels"]
    order = torch.argsort(sources, stable=True)
    labels = torch.where(labels > 0, labels - 1, labels)
    rows = torch.stack([sources, number[arcs["dests"]], labels, torch.zeros_like(labels)], 1)[order]
    outputs = arcs["outputs"][order]
    splits = torch.cat([torch.zeros(1, dtype=torch.long), (outputs > 0).sum(1).cumsum(0)]).to(torch.int32)
    shape = k2.ragged.create_ragged_shape2(splits)
    fsa = k2.Fsa(rows.to(torch.int32).contiguous())
    fsa.aux_labels = k2.RaggedTensor(shape, outputs[outputs > 0].to(torch.int32))
    fsa.scores = -arcs["costs"][order].float()
    fsa = k2.connect(fsa)
    if fsa.num_arcs == 0:
        raise ValueError("no path of the graph leads to a final state")
    return k2.arc_sort(fsa)


def without_epsilons(arcs: Arcs, start: int, states: int) -> Arcs:
    """Equivalent arcs of which none has the label 0; each may have several output symbols.

    Unlike k2.remove_epsilon, this keeps paths with equal labels and different outputs apart, so that homophones stay in
    lattices.
    """
    silent = arcs["labels"] == 0
    epsilons, others = ({name: column[where] for name, column in arcs.items()} for where in (silent, ~silent))
    begins = torch.unique(torch.cat([torch.tensor([start]), others["dests"]]))
    # All paths of epsilons from where a label has just been read; the best of those that read and write the same.
    paths = {
        "sources": begins,
        "dests": begins,
        "labels": torch.zeros_like(begins),
        "costs": torch.zeros(len(begins), dtype=torch.double),
        "outputs": torch.zeros((len(begins), 1), dtype=torch.long),
    }
    longer = paths
    for _ in range(states):
        longer = _best(_joined(longer, epsilons, states))
        if not len(longer["sources"]):
            break
        paths = _best(_both(paths, longer))
    else:
        raise ValueError("the graph has a cycle of epsilons")
    return _best(_joined(paths, others, states))


def _joined(left: Arcs, right: Arcs, states: int) -> Arcs:
    """Every arc of ``left`` followed by each of ``right`` that begins where it ends."""
    order = torch.argsort(right["sources"], stable=True)
    counts = torch.bincount(right["sources"], minlength=states)
    first = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    fan = counts[left["dests"]]
    rows = torch.repeat_interleave(torch.arange(len(fan)), fan)
    within = torch.arange(len(rows)) - torch.repeat_interleave(fan.cumsum(0) - fan, fan)
    follow = order[first[left["dests"][rows]] + within]
    outputs = torch.cat([left["outputs"][rows], right["outputs"][follow]], 1)
    # Symbols first, in their order, then zeros; without columns that have only zeros.
    outputs = outputs.gather(1, torch.argsort((outputs == 0).long(), dim=1, stable=True))
    return {
        "sources": left["sources"][rows],
        "dests": right["dests"][follow],
        "labels": right["labels"][follow],
        "costs": left["costs"][rows] + right["costs"][follow],
        "outputs": outputs[:, : max(1, int((outputs > 0).sum(1).max()) if len(outputs) else 1)],
    }


def _both(left: Arcs, right: Arcs) -> Arcs:
    width = max(left["outputs"].shape[1], right["outputs"].shape[1])
    pad = torch.nn.functional.pad
    wide = [{**arcs, "outputs": pad(arcs["outputs"], (0, width - arcs["outputs"].shape[1]))} for arcs in (left, right)]
    return {name: torch.cat([arcs[name] for arcs in wide]) for name in left}


def _best(arcs: Arcs) -> Arcs:
    """The cheapest of all arcs with equal states, label and outputs."""
    if not len(arcs["sources"]):
        return arcs
    key = torch.cat([torch.stack([arcs["sources"], arcs["dests"], arcs["labels"]], 1), arcs["outputs"]], 1)
    rows, which = torch.unique(key, dim=0, return_inverse=True)
    costs = torch.full((len(rows),), float("inf"), dtype=torch.double).scatter_reduce(0, which, arcs["costs"], "amin")
    return {"sources": rows[:, 0], "dests": rows[:, 1], "labels": rows[:, 2], "costs": costs, "outputs": rows[:, 3:]}


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
        self._tokens = int(graph.labels.max()) + 1

    def lattices(self, log_probs: Tensor, frames: Sequence[int]) -> tuple[Any, list[int]]:
        """A vector of lattices (k2.FsaVec), and the row of the batch that each belongs to.

        ``log_probs``: (B, F, V) float32; ``frames``: valid frames of each row. Rows without frames have no lattice. An
        empty lattice: nothing survived. ValueError: the graph has more tokens than V.
        """
        if log_probs.shape[-1] < self._tokens:  # k2 does not check this in release builds
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
        best = self._k2.shortest_path(lattices, use_double_scores=True)
        scores = best.get_tot_scores(use_double_scores=True, log_semiring=False).tolist()
        labels, outputs = best.labels.tolist(), best.aux_labels.values.tolist()
        splits = best.aux_labels.shape.row_splits(1).tolist()
        found = []
        for (_, _, first, after), score in zip(ranges(best), scores):
            written = outputs[splits[first] : splits[after]]
            # The last arc leads to the final state and reads no frame.
            found.append((labels[first : after - 1], written, score) if after > first else None)
        return found

    def symbol_lattices(self, log_probs: Tensor, frames: Sequence[int]) -> list[dict[str, list] | None]:
        """For each row a lattice over the output symbols, without epsilons; None: nothing survived.

        A lattice is a dictionary with the columns ``sources``, ``dests``, ``symbols``, ``scores`` of its arcs and the
        final score of each state, ``finals`` (-inf: not final). It starts in state 0.
        """
        lattices, rows = self.lattices(log_probs, frames)
        found = [None] * len(frames)
        if rows:
            for row, lattice in zip(rows, columns(symbols_only(self._k2, lattices.to("cpu")))):
                found[row] = lattice
        return found


def ranges(fsas: Any) -> list[tuple[int, int, int, int]]:
    """First state, state after the last, first arc, arc after the last, of each of a vector (k2.FsaVec).

    Indexing the vector fails in k2 1.23.4 where one is empty.
    """
    shape = fsas.arcs.shape()
    states, arcs = shape.row_splits(1).tolist(), shape.row_splits(2).tolist()
    bounds = [(states[i], states[i + 1]) for i in range(len(states) - 1)]
    return [(first, after, arcs[first], arcs[after]) for first, after in bounds]


def symbols_only(k2: ModuleType, lattices: Any) -> Any:
    """The acceptors (k2.FsaVec) of the output symbols of lattices (likewise), without epsilons; some may be empty."""
    inverted = k2.invert(k2.connect(lattices))
    acceptors = k2.Fsa(inverted.arcs)  # without the labels of frames
    return k2.top_sort(k2.connect(k2.remove_epsilon(k2.top_sort(k2.connect(acceptors)))))


def columns(acceptors: Any) -> list[dict[str, list] | None]:
    """The arcs of acceptors (k2.FsaVec) as lists; see ``K2Search.symbol_lattices``. None: it is empty."""
    arcs, scores = acceptors.arcs.values()[:, :3].tolist(), acceptors.scores.tolist()
    found = []
    for first, after, begin, end in ranges(acceptors):
        finals = [float("-inf")] * (after - first)
        rows = []
        for (source, dest, symbol), score in zip(arcs[begin:end], scores[begin:end]):
            if symbol == -1:
                finals[source] = max(finals[source], score)
            else:
                rows.append((source, dest, symbol, score))
        names = ("sources", "dests", "symbols", "scores")
        lists = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        found.append({**lists, "finals": finals} if end > begin else None)
    return found
