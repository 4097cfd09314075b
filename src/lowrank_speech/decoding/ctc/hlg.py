"""Search of a graph: the best path through H, HL, HG or HLG, by k2 or kaldi-decoder.

    score of a path = acoustic_scale * log probabilities + lm_weight * graph scores + insertion * words

Words have times, from the path's frames. An n-best list comes from the lattice.
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
    from dataclasses import replace

    from lowrank_speech.decoding.graphs.searching import Reader, graph_of, listed, nothing, open_search
    from lowrank_speech.decoding.sources import spoken_seconds

    graph = graph_of(source, lang)
    search, reader = open_search(graph, settings, source), Reader(graph, lang)

    def decode(batch: dict[str, Any]) -> list[Any]:
        log_probs, frames = settings.acoustic_scale * batch["log_probs"], batch["frames"].tolist()
        paths = search.best(log_probs, frames)
        found = []
        for path, row, cut in zip(paths, batch["log_probs"], batch["cuts"], strict=True):
            if path is None:
                found.append(nothing())
                continue
            words = reader.timed(path, row, spoken_seconds(cut) / len(path.labels))
            found.append(reader.hypothesis(path.symbols, path.score, words=words))
        if settings.nbest > 1:
            for i, lattice in enumerate(search.lattices(log_probs, frames)):
                if lattice is not None:
                    best = listed(reader, lattice.nbest(settings.nbest), settings.nbest)
                    # The lattice may hold a better path than a search with fewer states finds.
                    found[i] = replace(best, words=found[i].words if best.text == found[i].text else ())
        return found

    return decode
