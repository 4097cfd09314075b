"""Rescoring of lattices: all hypotheses of a graph's lattice, with a larger n-gram instead of the one in the graph.

The scores are those of ``nbest``, without its limit on the number of hypotheses.
"""

from typing import Any, Literal

from lowrank_speech.decoding.graphs.settings import Rescoring
from lowrank_speech.settings import key, settings

READS = "emissions"


@settings
class Settings(Rescoring):
    """Rescoring of lattices with a larger n-gram."""

    kind: Literal["rescore"] = key("rescore", "the lattice of a graph, rescored by a larger n-gram")


def open(source: Any, lang: Any, settings: Settings) -> Any:
    """Decoder for the emissions ``source``; see ``decoding.base``. UserError: graph, lang or n-gram do not fit."""
    from lowrank_speech.decoding.graphs.rescoring import opened

    search, reader, scorers = opened(source, lang, settings)

    def decode(batch: dict[str, Any]) -> list[Any]:
        lattices = search.lattices(settings.acoustic_scale * batch["log_probs"], batch["frames"].tolist())
        ranked = [[] if lattice is None else lattice.rescored(scorers).nbest(settings.nbest) for lattice in lattices]
        return reader.of_ranked(batch, ranked, settings.nbest)

    return decode
