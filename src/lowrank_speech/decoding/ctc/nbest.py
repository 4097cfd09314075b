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
    from lowrank_speech.decoding.graphs.rescoring import opened, rescored_list

    search, reader, scorers = opened(source, lang, settings)

    def decode(batch: dict[str, Any]) -> list[Any]:
        lattices = search.lattices(settings.acoustic_scale * batch["log_probs"], batch["frames"].tolist())
        lists = [[] if lattice is None else lattice.nbest(settings.candidates) for lattice in lattices]
        return reader.of_ranked(batch, [rescored_list(pairs, scorers) for pairs in lists], settings.nbest)

    return decode
