"""Search of a graph: the best path through H, HL, HG or HLG, by k2 or kaldi-decoder.

    score of a path = acoustic_scale * log probabilities + lm_weight * graph scores + insertion * words

Words have times. An n-best list comes from the lattice, which includes the best path.
"""

from typing import Any, Literal

from lowrank_speech.decoding.graphs.settings import GraphDecoding
from lowrank_speech.settings import Count, key, settings

READS = "emissions"


@settings
class Settings(GraphDecoding):
    """The best path of a graph."""

    kind: Literal["hlg"] = key("hlg", "the best path of a graph")
    nbest: Count = key(1, "hypotheses to list")


def open(source: Any, lang: Any, settings: Settings) -> Any:
    """Decoder for the emissions ``source``; see ``decoding.base``. UserError: graph or lang of another token set."""
    from lowrank_speech.decoding.graphs.reading import Reader
    from lowrank_speech.decoding.graphs.searching import graph_of, open_search

    graph = graph_of(source, lang)
    search, reader = open_search(graph, settings, source, lattices=settings.nbest > 1), Reader(graph, lang)

    def decode(batch: dict[str, Any]) -> list[Any]:
        log_probs, frames = settings.acoustic_scale * batch["log_probs"], batch["frames"].tolist()
        if settings.nbest == 1:
            return reader.of_paths(batch, search.best(log_probs, frames))
        lattices = search.lattices(log_probs, frames)
        ranked = [[] if lattice is None else lattice.nbest(settings.nbest) for lattice in lattices]
        return reader.of_ranked(batch, ranked, settings.nbest)

    return decode
