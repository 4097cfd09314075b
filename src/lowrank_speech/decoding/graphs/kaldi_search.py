"""Search a graph with kaldi-decoder, on a CPU: best paths, and lattices over its output symbols.

``FasterDecoder`` finds one path and bounds the active states. ``LatticeSimpleDecoder``, which makes lattices, prunes
only by its beam. Utterances are decoded one by one.

F frames, V tokens.
"""

import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_speech.lang.graphs.convert import from_kaldifst, to_kaldifst
from lowrank_speech.lang.graphs.fst import ARC, Arcs

MIN_ACTIVE = 30
"""States that survive the beam in each frame, at least; as in k2."""
PAIR = np.dtype([("ilabel", "<i4"), ("olabel", "<i4"), ("graph", "<f4"), ("acoustic", "<f4"), ("dst", "<i4")])
"""An arc of a Kaldi lattice (arc type lattice4)."""

Best = tuple[list[int], list[int], float]


class KaldiSearch:
    """Searches ``graph`` (an ``Arcs``), whose input labels are token ids plus one.

    beam          paths worse than the best by more (nats) are dropped in each frame
    lattice_beam  arcs of the lattice whose best path is worse than the best by more are dropped
    max_active    states that survive in a frame, at most; only of ``best``
    """

    def __init__(self, graph: Arcs, beam: float, lattice_beam: float, max_active: int):
        import kaldi_decoder as kaldi

        self._kaldi, self._graph = kaldi, to_kaldifst(graph, constant=True)
        self._tokens = int(graph.arcs["ilabel"].max(initial=0))
        self._faster = kaldi.FasterDecoderOptions(beam=beam, max_active=max_active, min_active=MIN_ACTIVE)
        self._simple = kaldi.LatticeSimpleDecoderConfig(beam=beam, lattice_beam=lattice_beam)

    def best(self, log_probs: np.ndarray) -> Best | None:
        """The token of each frame, the output symbols and the score of the best path; None: nothing survived.

        ``log_probs``: (F, V) float32. ValueError: the graph has more tokens than V.
        """
        decoder = self._kaldi.FasterDecoder(self._graph, self._faster)
        decoder.decode(self._decodable(log_probs))
        # Without a final state Kaldi gives the best partial path; k2 gives none.
        return _path(decoder.get_best_path()) if decoder.reached_final() else None

    def lattice(self, log_probs: np.ndarray) -> tuple[Best, dict[str, list]] | None:
        """The best path, and a lattice over the output symbols as ``K2Search.symbol_lattices`` gives it."""
        decoder = self._kaldi.LatticeSimpleDecoder(self._graph, self._simple)
        alive = decoder.decode(self._decodable(log_probs))
        if not alive or not np.isfinite(decoder.final_relative_cost()):
            return None
        done, raw = decoder.get_raw_lattice()
        found = symbols_only(_arrays(raw)) if done else None
        return None if found is None else (_path(decoder.get_best_path()), found)

    def _decodable(self, log_probs: np.ndarray) -> Any:
        if log_probs.shape[-1] < self._tokens:
            raise ValueError(f"the graph has {self._tokens} tokens, the network {log_probs.shape[-1]}")
        return self._kaldi.DecodableCtc(np.ascontiguousarray(log_probs, np.float32))


def _path(found: tuple[bool, Any]) -> Best:
    import kaldifst

    _, labels, symbols, weight = kaldifst.get_linear_symbol_sequence(found[1])
    return [label - 1 for label in labels], list(symbols), -(weight.value1 + weight.value2)


def symbols_only(lattice: Arcs) -> dict[str, list] | None:
    """The acceptor of the output symbols of ``lattice``, without epsilons, as columns; None: it is empty."""
    import kaldifst

    arcs = lattice.arcs.copy()
    arcs["ilabel"] = arcs["olabel"]
    acceptor = to_kaldifst(Arcs(arcs, lattice.splits, lattice.finals, lattice.start))
    kaldifst.rmepsilon(acceptor)
    found = from_kaldifst(acceptor)
    if not found.states:
        return None
    number = np.arange(found.states)
    number[0], number[found.start] = found.start, 0
    finals = np.empty(found.states)
    finals[number] = -found.finals.astype(np.float64)
    return {
        "sources": number[found.sources].tolist(),
        "dests": number[found.arcs["dst"]].tolist(),
        "symbols": found.arcs["ilabel"].tolist(),
        "scores": (-found.arcs["weight"].astype(np.float64)).tolist(),
        "finals": finals.tolist(),
    }


def _arrays(lattice: Any) -> Arcs:
    """A ``kaldifst.Lattice`` with the sum of both costs of each arc, read from its binary form."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lattice.fst")
        lattice.write(str(path))
        data = path.read_bytes()
    # The header ends with start, number of states, number of arcs (8 bytes each) after the names of the types.
    offset = 4
    for _ in range(2):
        (length,) = struct.unpack_from("<i", data, offset)
        offset += 4 + length
    start, states = struct.unpack_from("<qq", data, offset + 16)
    offset += 40
    parts, counts, finals = [], np.zeros(states, np.int64), np.zeros(states, np.float32)
    for state in range(states):
        graph, acoustic, count = struct.unpack_from("<ffq", data, offset)
        counts[state], finals[state] = count, graph + acoustic
        parts.append(data[offset + 16 : offset + 16 + count * PAIR.itemsize])
        offset += 16 + count * PAIR.itemsize
    pairs = np.frombuffer(b"".join(parts), PAIR)
    arcs = np.zeros(len(pairs), ARC)
    for name in ("ilabel", "olabel", "dst"):
        arcs[name] = pairs[name]
    arcs["weight"] = pairs["graph"] + pairs["acoustic"]
    return Arcs(arcs, np.concatenate([[0], np.cumsum(counts)]), finals, start)
