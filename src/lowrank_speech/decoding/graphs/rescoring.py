"""What the decoders that rescore share: the search, and the n-grams to add and to take away."""

from typing import Any

from lowrank_speech.decoding.graphs.reading import Ranked, Reader
from lowrank_speech.decoding.graphs.scorers import InGraph, Named
from lowrank_speech.decoding.graphs.searching import Search, graph_of, open_search
from lowrank_speech.decoding.graphs.settings import Rescoring
from lowrank_speech.lang.lm.query import sentence_score

Scorers = list[tuple[Any, float]]


def opened(source: Any, lang: Any, settings: Rescoring) -> tuple[Search, Reader, Scorers]:
    """The search, the reader of its symbols, and the pairs (scorer, weight) of ``Lattice.rescored``.

    UserError: graph or lang of another token set; the n-gram is over other units than the graph's outputs.
    """
    graph = graph_of(source, lang)
    model = source.resources["rescore_lm"]
    model.check_lang(lang, "decode")
    weight = settings.lm_weight if settings.rescore_weight is None else settings.rescore_weight
    scorers: Scorers = [(Named(model.scorer(), graph.names(model.unit)), weight)]
    if graph.grammar is not None:
        scorers.append((InGraph(graph.grammar, len(graph.symbols)), -settings.lm_weight))
    # A weight of 0 takes no part, not even where a score is infinite.
    return (
        open_search(graph, settings, source, lattices=True),
        Reader(graph, lang),
        [pair for pair in scorers if pair[1]],
    )


def rescored_list(pairs: Ranked, scorers: Scorers) -> Ranked:
    """An n-best list with the scores added, sorted again; ties by symbols."""
    found = [
        (score + sum(weight * sentence_score(scorer, symbols) for scorer, weight in scorers), symbols)
        for score, symbols in pairs
    ]
    return sorted(found, key=lambda pair: (-pair[0], pair[1]))
