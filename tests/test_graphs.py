"""Graphs and their search with kaldi-decoder, compared with brute force over paths, readings and ways to back off."""

import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

import graph_brute as brute
from lowrank_speech.decoding.graphs.kaldi_search import KaldiSearch
from lowrank_speech.decoding.graphs.lattice import Lattice
from lowrank_speech.decoding.graphs.scorers import InGraph, Named
from lowrank_speech.errors import UserError
from lowrank_speech.lang.graphs import build, convert, fst
from lowrank_speech.lang.graphs.load import names_in
from lowrank_speech.lang.lexicon import Lexicon, Pronunciation
from lowrank_speech.lang.lm import arpa
from lowrank_speech.lang.lm.query import OwnScorer, sentence_score

SIZE = len(brute.TOKENS)
LEXICON = Lexicon(
    tuple(Pronunciation(word, tokens, cost) for word in brute.WORDS for tokens, cost in brute.PRONUNCIATIONS[word]),
    brute.BOUNDARY,
)
STORED = Path(__file__).parent / "with_k2" / "graphs.json"
WIDE = 1e4
"""A beam that drops nothing."""
SCALES = [(1.0, 0.0), (0.5, 0.3), (2.0, -1.0), (0.0, 0.0)]
"""Weight of the graph's scores, and what each word adds."""


def emissions(seed, frames=6, size=SIZE, spread=0.7):
    probabilities = np.random.default_rng(seed).dirichlet(np.full(size, spread), size=frames)
    return np.log(np.maximum(probabilities, 1e-12)).astype(np.float32)


def search(graph, weight=1.0, insertion=0.0, beam=WIDE, lattice_beam=WIDE, max_active=100_000):
    return KaldiSearch(graph.weighted(weight, insertion), beam, lattice_beam, max_active)


def words_of(symbols):
    return tuple(LEXICON.words[symbol - 1] for symbol in symbols)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arpa")
    for name, model in (("small", brute.SMALL), ("large", brute.LARGE)):
        (folder / f"{name}.arpa").write_text(brute.arpa(model), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def grammar(files):
    return build.grammar(files / "small.arpa", LEXICON.words)


@pytest.fixture(scope="module")
def hlg(grammar):
    return build.compose_topology(SIZE, build.compose_lexicon(LEXICON, SIZE, grammar))


@pytest.fixture(scope="module")
def hl():
    return build.compose_topology(SIZE, build.compose_lexicon(LEXICON, SIZE))


def test_arrays_survive_openfst_and_its_format(grammar, hlg, tmp_path):
    for one in (grammar, hlg):
        assert fst.to_bytes(convert.from_kaldifst(convert.to_kaldifst(one))) == fst.to_bytes(one)
        (tmp_path / "one.fst").write_bytes(fst.to_bytes(one))
        read = fst.read(tmp_path / "one.fst")
        assert read.start == one.start and (read.arcs == one.arcs).all() and (read.splits == one.splits).all()
        np.testing.assert_array_equal(read.finals, one.finals)
    for broken in (fst.to_bytes(hlg)[:-5], b"", b"x" * 100):
        (tmp_path / "one.fst").write_bytes(broken)
        with pytest.raises(ValueError, match=r"one\.fst: not a constant OpenFst transducer"):
            fst.read(tmp_path / "one.fst")


@pytest.mark.parametrize("seed", range(3))
def test_the_best_path_of_h_is_the_greedy_one(seed):
    log_probs = emissions(seed, frames=40)
    labels, symbols, score = search(build.topology(SIZE)).best(log_probs)
    assert labels == log_probs.argmax(-1).tolist()
    assert tuple(s - 1 for s in symbols) == brute.collapsed(labels)
    assert score == pytest.approx(float(log_probs.max(-1).sum()), abs=1e-3)


@pytest.mark.parametrize("weight, insertion", SCALES)
@pytest.mark.parametrize("seed", range(2))
def test_all_hypotheses_of_hlg_are_those_of_brute_force(hlg, seed, weight, insertion):
    log_probs = emissions(seed)

    def score(words, cost):
        return weight * (brute.in_graph(brute.SMALL, words) - cost) + insertion * len(words)

    found = search(hlg, weight, insertion)
    expected = brute.hypotheses(log_probs, score)
    labels, symbols, best = found.best(log_probs)
    assert best == pytest.approx(max(expected.values()), abs=1e-3)
    # Homophones tie where the graph has no weight.
    assert expected[words_of(symbols)] == pytest.approx(best, abs=1e-3)
    assert words_of(symbols) in dict(brute.readings(brute.collapsed(labels)))
    path, columns = found.lattice(log_probs)
    assert path[2] == pytest.approx(best, abs=1e-3)
    listed = {words_of(symbols): score for score, symbols in Lattice.of(**columns).nbest(len(expected) + 10)}
    assert listed.keys() == expected.keys() and len(expected) > 50
    assert all(listed[words] == pytest.approx(total, abs=2e-3) for words, total in expected.items())


def test_all_hypotheses_of_hl_are_those_of_brute_force(hl):
    log_probs = emissions(5)
    expected = brute.hypotheses(log_probs, lambda words, cost: -cost)
    _, columns = search(hl).lattice(log_probs)
    listed = {words_of(symbols): score for score, symbols in Lattice.of(**columns).nbest(len(expected) + 10)}
    assert listed.keys() == expected.keys()
    assert all(listed[words] == pytest.approx(total, abs=2e-3) for words, total in expected.items())


@pytest.mark.parametrize("unit", ["token", "character"])
def test_all_token_sequences_of_hg_are_those_of_brute_force(unit, tmp_path):
    names = names_in(unit, brute.TOKENS, 1)
    symbol = dict(zip(brute.TOKENS, names, strict=True))
    model = {("<s>",): (-99, -0.4), ("</s>",): (-0.7, 0), ("<unk>",): (-2, 0)}
    model |= {(symbol["a"],): (-0.5, -0.2), (symbol["b"],): (-0.8, -0.1), (symbol["|"],): (-1, -0.3)}
    model |= {(symbol["a"], symbol["b"]): (-0.2, 0), ("<s>", symbol["b"]): (-0.3, 0), (symbol["|"], "</s>"): (-2, 0)}
    (tmp_path / "tokens.arpa").write_text(brute.arpa(model), encoding="utf-8")
    grammar = build.grammar(tmp_path / "tokens.arpa", names)
    graph = build.compose_topology(SIZE, build.without_marks(grammar, SIZE))
    log_probs = emissions(7, frames=5)
    expected = {}
    for path in itertools.product(range(SIZE), repeat=5):
        tokens = brute.collapsed(path)
        total = float(sum(row[t] for row, t in zip(log_probs, path, strict=True)))
        total += brute.in_graph(model, [names[t] for t in tokens])
        expected[tokens] = max(total, expected.get(tokens, -math.inf))
    _, columns = search(graph).lattice(log_probs)
    listed = {tuple(s - 1 for s in symbols): score for score, symbols in Lattice.of(**columns).nbest(10_000)}
    assert listed.keys() == expected.keys()
    assert all(listed[tokens] == pytest.approx(total, abs=2e-3) for tokens, total in expected.items())


def test_scores_in_the_graph_and_of_the_arpa(grammar, files):
    """They differ where backing off is cheaper than the n-gram of the ARPA."""
    inside = InGraph(grammar, len(LEXICON.words))
    model = Named(OwnScorer(arpa.read(files / "large.arpa")), LEXICON.words)
    differences = 0
    for length in range(5):
        for words in itertools.product(brute.WORDS, repeat=length):
            symbols = [LEXICON.words.index(word) + 1 for word in words]
            expected = brute.in_graph(brute.SMALL, words)
            assert sentence_score(inside, symbols) == pytest.approx(expected, abs=1e-4)
            assert sentence_score(model, symbols) == pytest.approx(brute.exact(brute.LARGE, words), abs=1e-4)
            differences += abs(expected - brute.exact(brute.SMALL, words)) > 1e-3
    assert differences > 10


@pytest.mark.parametrize("weight, insertion, new", [(1.0, 0.0, 1.0), (0.5, 0.4, 1.5), (2.0, -0.5, 0.0)])
def test_rescored_lattices_are_those_of_brute_force(hlg, grammar, files, weight, insertion, new):
    log_probs = emissions(3)

    def score(words, cost):
        return new * brute.exact(brute.LARGE, words) - weight * cost + insertion * len(words)

    expected = brute.ranked(brute.hypotheses(log_probs, score))
    model = Named(OwnScorer(arpa.read(files / "large.arpa")), LEXICON.words)
    scorers = [(model, new), (InGraph(grammar, len(LEXICON.words)), -weight)]
    lattice = Lattice.of(**search(hlg, weight, insertion).lattice(log_probs)[1])
    found = lattice.rescored(scorers).nbest(len(expected) + 10)
    assert len(found) == len(expected)
    assert {words_of(s): total for total, s in found} == pytest.approx(dict(expected), abs=3e-3)
    assert [total for total, _ in found] == sorted((total for total, _ in found), reverse=True)
    # The order has changed, so this is no accident.
    first = brute.hypotheses(log_probs, lambda w, c: weight * (brute.in_graph(brute.SMALL, w) - c) + insertion * len(w))
    assert [w for w, _ in brute.ranked(first)] != [w for w, _ in expected]


def test_a_narrow_beam_loses_hypotheses_and_never_invents_better_ones(hlg):
    log_probs = emissions(2, frames=8)
    best = search(hlg).best(log_probs)
    narrow = search(hlg, beam=1e-3, max_active=31).best(log_probs)
    assert narrow is None or narrow[2] <= best[2] + 1e-3
    _, few = search(hlg, lattice_beam=1.0).lattice(log_probs)
    listed, whole = Lattice.of(**few).nbest(1000), Lattice.of(**search(hlg).lattice(log_probs)[1]).nbest(1000)
    assert 1 <= len(listed) < len(whole)
    # All that is within the beam of the best one is there.
    assert [s for total, s in whole if total > whole[0][0] - 1.0] == [s for _, s in listed][: len(listed)]


@pytest.fixture(scope="module")
def one_word():
    """A graph of one word of two tokens, said once or more."""
    lexicon = build.compose_lexicon(Lexicon((Pronunciation("ab", (3, 4)),), None), SIZE)
    assert np.isfinite(lexicon.finals).tolist() == [s == lexicon.start for s in range(lexicon.states)]
    # The start state also ends words; a copy of it starts, so that no word is no sentence.
    first = lexicon.arcs[lexicon.splits[lexicon.start] : lexicon.splits[lexicon.start + 1]]
    arcs = np.concatenate([lexicon.arcs, first])
    splits = np.append(lexicon.splits, len(arcs))
    finals = np.append(lexicon.finals, np.float32(np.inf))
    return build.compose_topology(SIZE, fst.Arcs(arcs, splits, finals, start=lexicon.states))


def test_nothing_survives_where_the_graph_cannot_end(one_word):
    found = search(one_word)
    assert found.best(emissions(1, frames=1)) is None
    assert found.lattice(emissions(1, frames=1)) is None
    assert found.best(emissions(1, frames=2))[1] == [1]


def test_the_graphs_for_k2_are_those_that_are_built(hlg, hl, one_word):
    """tests/with_k2 runs where kaldifst is not installed. UPDATE_GRAPHS=1 writes the file again."""
    graphs = {"h": build.topology(SIZE), "hl": hl, "hlg": hlg, "one_word": one_word}
    names = {"dests": "dst", "ilabels": "ilabel", "olabels": "olabel", "costs": "weight"}
    made = {
        name: {"sources": one.sources.tolist(), "start": one.start}
        | {key: one.arcs[column].tolist() for key, column in names.items()}
        | {"finals": [cost if math.isfinite(cost) else None for cost in one.finals.tolist()]}
        for name, one in graphs.items()
    }
    if os.environ.get("UPDATE_GRAPHS"):
        STORED.write_text(json.dumps(made) + "\n", encoding="utf-8")
    assert json.loads(STORED.read_text(encoding="utf-8")) == made


def test_a_network_with_fewer_tokens_than_the_graph_is_refused(hlg):
    with pytest.raises(ValueError, match="the graph has 5 tokens, the network 4"):
        search(hlg).best(emissions(0, size=4))


def test_graphs_do_not_depend_on_the_run(files):
    def made():
        grammar = build.grammar(files / "small.arpa", LEXICON.words)
        return fst.to_bytes(build.compose_topology(SIZE, build.compose_lexicon(LEXICON, SIZE, grammar)))

    assert made() == made()


def test_an_arpa_that_kaldilm_cannot_read_is_refused(tmp_path):
    for text in ("", "\\data\\\nngram 1=2\n\n\\1-grams:\n-1 a\n"):
        (tmp_path / "broken.arpa").write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as caught:
            build.grammar(tmp_path / "broken.arpa", ("a",))
        assert "broken.arpa cannot be made a graph (" in str(caught.value) and "\n" not in str(caught.value)


def test_ngrams_of_other_words_are_left_out(files):
    grammar = build.grammar(files / "small.arpa", ("a", "b"))
    assert set(grammar.arcs["olabel"].tolist()) == {0, 1, 2}


# -- lattices ----------------------------------------------------------------------------------------------------------


def random_lattice(seed, states=7, symbols=3):
    rng = np.random.default_rng(seed)
    arcs = [[] for _ in range(states)]
    for source in range(states - 1):
        for _ in range(3):
            dest = int(rng.integers(source + 1, states))
            arcs[source].append((int(rng.integers(1, symbols + 1)), dest, float(rng.normal())))
    finals = [float(rng.normal()) if rng.random() < 0.5 or s == states - 1 else -math.inf for s in range(states)]
    return Lattice(arcs, finals)


def all_paths(lattice, state=0):
    if lattice.finals[state] > -math.inf:
        yield lattice.finals[state], ()
    for symbol, dest, score in lattice.arcs[state]:
        for rest, symbols in all_paths(lattice, dest):
            yield score + rest, (symbol, *symbols)


@pytest.mark.parametrize("seed", range(20))
def test_nbest_lists_different_sequences_in_order(seed):
    lattice, best = random_lattice(seed), {}
    for score, symbols in all_paths(lattice):
        best[symbols] = max(score, best.get(symbols, -math.inf))
    expected = brute.ranked(best)
    for n in (1, 3, 1000):
        found = lattice.nbest(n)
        assert [symbols for _, symbols in found] == [symbols for symbols, _ in expected[:n]]
        assert [score for score, _ in found] == pytest.approx([score for _, score in expected[:n]])


@pytest.mark.parametrize("seed", range(10))
def test_pruning_keeps_what_is_within_the_beam(seed):
    lattice = random_lattice(seed, states=9)
    for beam in (0.0, 0.5, 2.0, 100.0):
        few, whole = lattice.pruned(beam), dict(map(reversed, lattice.nbest(10_000)))
        kept = dict(map(reversed, few.nbest(10_000)))
        least = lattice.rest[0] - beam - 1e-9
        assert {s for s, score in whole.items() if score >= least} <= kept.keys() <= whole.keys()
        # Each arc that is left is part of a path within the beam.
        for state, arcs in enumerate(few.arcs):
            for arc in arcs:
                through = [score for score, path in arc_paths(few) if (state, *arc) in path]
                assert max(through) >= least - 1e-3 - 1e-6
        assert few.nbest(1) == lattice.nbest(1)


def arc_paths(lattice, state=0, score=0.0, path=()):
    if lattice.finals[state] > -math.inf:
        yield score + lattice.finals[state], path
    for symbol, dest, own in lattice.arcs[state]:
        yield from arc_paths(lattice, dest, score + own, (*path, (state, symbol, dest, own)))


def test_a_lattice_without_an_end_has_no_hypotheses_and_one_with_a_cycle_is_refused():
    assert Lattice([[(1, 1, 0.0)], []], [-math.inf, -math.inf]).nbest(3) == []
    with pytest.raises(ValueError, match="cycle"):
        Lattice([[(1, 1, 0.0)], [(1, 0, 0.0)]], [-math.inf, 0.0])
    with pytest.raises(ValueError, match="cycle"):
        Lattice([[(1, 1, 0.0)], [(1, 2, 0.0)], [(1, 1, 0.0)]], [-math.inf, 0.0, 0.0])
