"""Rescoring of n-best lists: the best hypotheses of a graph, with a larger n-gram instead of the one in the graph.

    score = acoustic_scale * log probabilities + rescore_weight * scores of rescore_lm + insertion * words
            + lm_weight * scores of pronunciations

``rescore`` does the same for all hypotheses of the lattice.
"""

from typing import Any, Literal

from lowrank_speech.decoding.graphs.settings import Rescoring
from lowrank_speech.settings import Count, key, settings

READS = "emissions"


@settings
class Settings(Rescoring):
    """Rescoring of n-best lists with a larger n-gram."""

    kind: Literal["nbest"] = key("nbest", "n-best lists of a graph, rescored by a larger n-gram")
    candidates: Count = key(100, "hypotheses of the graph to rescore")


def open(source: Any, lang: Any, settings: Settings) -> Any:
    """Decoder for the emissions ``source``; see ``decoding.base``. UserError: graph, lang or n-gram do not fit."""
    from lowrank_speech.decoding.graphs.lattice import sequence_score
    from lowrank_speech.decoding.graphs.rescoring import opened
    from lowrank_speech.decoding.graphs.searching import ranked_hypotheses

    search, reader, scorers = opened(source, lang, settings)

    def rescored(lattice: Any) -> list[tuple[float, tuple[int, ...]]]:
        pairs = [
            (score + sum(weight * sequence_score(scorer, symbols) for scorer, weight in scorers), symbols)
            for score, symbols in lattice.nbest(settings.candidates)
        ]
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1]))

    def decode(batch: dict[str, Any]) -> list[Any]:
        lattices = search.lattices(settings.acoustic_scale * batch["log_probs"], batch["frames"].tolist())
        ranked = [[] if lattice is None else rescored(lattice) for lattice in lattices]
        return ranked_hypotheses(batch, ranked, reader, settings.nbest)

    return decode
