"""Search of a graph with k2, compared with brute force over all paths, and rescoring with k2's own intersection.

tests/test_graphs.py compares kaldi-decoder with the same brute force, so both back ends agree. Runs where k2 is
installed, under Python 3.9 with `make test-k2`; see test_ctc_k2.py. graphs.json has the graphs of brute force's lexicon
and n-gram; tests/test_graphs.py checks that it is what the stage graph would build.
"""

import importlib.util
import itertools
import json
import pathlib
import sys

import pytest
import torch

k2 = pytest.importorskip("k2", reason="k2 is not installed here; `make test-k2` runs these tests", exc_type=ImportError)

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "src" / "lowrank_speech" / "decoding" / "graphs"


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


brute = loaded(HERE.parent / "graph_brute.py")
k2_search = loaded(SOURCES / "k2_search.py")
lattices = loaded(SOURCES / "lattice.py")

GRAPHS = json.loads((HERE / "graphs.json").read_text(encoding="utf-8"))
SIZE = len(brute.TOKENS)
WIDE = 1e4
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() and k2.with_cuda else [])]


def graph(name, weight=1.0, insertion=0.0):
    """A stored graph as k2's, its costs scaled as ``Arcs.weighted`` does."""
    stored = dict(GRAPHS[name])
    start = stored.pop("start")
    stored["finals"] = [float("inf") if cost is None else cost for cost in stored["finals"]]
    columns = {key: torch.tensor(values) for key, values in stored.items()}
    columns["costs"] = weight * columns["costs"] - insertion * (columns["olabels"] > 0)
    columns["finals"] = torch.where(torch.isinf(columns["finals"]), columns["finals"], weight * columns["finals"])
    return k2_search.to_k2(k2, **columns, start=start)


def search(name, weight=1.0, insertion=0.0, beam=WIDE, lattice_beam=WIDE, device="cpu", max_active=10_000):
    return k2_search.K2Search(k2, graph(name, weight, insertion), torch.device(device), beam, lattice_beam, max_active)


def emissions(seed, frames, spread=0.7):
    torch.manual_seed(seed)
    probabilities = torch.distributions.Dirichlet(torch.full((SIZE,), spread)).sample((frames,))
    return probabilities.clamp_min(1e-12).log()


def padded(rows):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), [len(row) for row in rows]


def words_of(symbols):
    return tuple(brute.WORDS[symbol - 1] for symbol in symbols)


def listed(columns, n=10_000):
    return {words_of(symbols): score for score, symbols in lattices.Lattice.of(**columns).nbest(n)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weight, insertion", [(1.0, 0.0), (0.5, 0.3), (2.0, -1.0), (0.0, 0.0)])
def test_all_hypotheses_of_hlg_are_those_of_brute_force(weight, insertion, device):
    rows = [emissions(seed, frames) for seed, frames in enumerate((3, 6, 1, 5))]

    def score(words, cost):
        return weight * (brute.in_graph(brute.SMALL, words) - cost) + insertion * len(words)

    found = search("hlg", weight, insertion, device=device)
    batch = padded(rows)
    for row, path, columns in zip(rows, found.best(*batch), found.symbol_lattices(*batch)):
        expected = brute.hypotheses(row.tolist(), score)
        labels, symbols, best = path
        assert best == pytest.approx(max(expected.values()), abs=1e-3)
        assert expected[words_of(symbols)] == pytest.approx(best, abs=1e-3)
        assert len(labels) == len(row)
        assert words_of(symbols) in dict(brute.readings(brute.collapsed(labels)))
        alternatives = listed(columns)
        assert alternatives.keys() == expected.keys()
        assert all(alternatives[words] == pytest.approx(total, abs=2e-3) for words, total in expected.items())


@pytest.mark.parametrize("seed", range(3))
def test_the_best_path_of_h_is_the_greedy_one_and_that_of_k2(seed):
    log_probs = emissions(seed, 40)
    labels, symbols, score = search("h").best(log_probs[None], [40])[0]
    assert labels == log_probs.argmax(-1).tolist()
    assert tuple(s - 1 for s in symbols) == brute.collapsed(labels)
    assert score == pytest.approx(float(log_probs.max(-1).values.sum()), abs=1e-3)
    dense = k2.DenseFsaVec(log_probs[None], torch.tensor([[0, 0, 40]], dtype=torch.int32))
    own = k2.shortest_path(k2.intersect_dense_pruned(k2.ctc_topo(SIZE - 1), dense, 20, 8, 30, 10_000), True)
    assert float(own.get_tot_scores(True, False)[0]) == pytest.approx(score, abs=1e-3)


def expanded(model):
    """The n-gram as a deterministic acceptor of k2: a state for each history, an arc for each word."""
    order = max(map(len, model))
    states = {("<s>",): 0}
    arcs, pending = [], [("<s>",)]
    for history in pending:
        for number, word in [*enumerate(brute.WORDS, 1), (-1, "</s>")]:
            context, weight = history, 0.0
            while (*context, word) not in model:
                weight += model.get(context, (0, 0))[1]
                context = context[1:]
            after = (*history, word)[-(order - 1) :]
            if number > 0 and after not in states:
                states[after] = len(states)
                pending.append(after)
            score = 2.302585092994046 * (weight + model[(*context, word)][0])
            arcs.append((states[history], None if number < 0 else states[after], number, score))
    final = len(states)
    text = "".join(f"{s} {final if d is None else d} {n} {w}\n" for s, d, n, w in sorted(arcs, key=lambda a: a[0]))
    return k2.arc_sort(k2.Fsa.from_str(f"{text}{final}"))


class Exact:
    """The same n-gram as a scorer for ``Lattice.rescored``."""

    def start(self):
        return ()

    def score(self, state, symbol):
        return self._sum((*state, symbol)) - self._sum(state), (*state, symbol)

    def end(self, state):
        return brute.exact(brute.LARGE, words_of(state)) - self._sum(state)

    def _sum(self, symbols):
        # What the words cost without the end of the sentence.
        model, words = brute.LARGE, words_of(symbols)
        whole = brute.exact(model, words)
        history = ("<s>", *words)
        context, weight = history[-(max(map(len, model)) - 1) :], 0.0
        while (*context, "</s>") not in model:
            weight += model.get(context, (0, 0))[1]
            context = context[1:]
        return whole - 2.302585092994046 * (weight + model[(*context, "</s>")][0])


@pytest.mark.parametrize("seed", range(4))
def test_rescoring_is_that_of_k2_on_the_same_lattice(seed):
    log_probs = emissions(seed, 7)
    found = search("hl")
    whole, rows = found.lattices(log_probs[None], [7])
    assert rows == [0]
    acceptors = k2_search.symbols_only(k2, whole)
    ours = lattices.Lattice.of(**k2_search.columns(acceptors)[0]).rescored([(Exact(), 1.0)]).nbest(3)
    both = k2.connect(k2.intersect(k2.arc_sort(acceptors[0]), expanded(brute.LARGE), treat_epsilons_specially=False))
    best = k2.shortest_path(k2.top_sort(k2.create_fsa_vec([both])), use_double_scores=True)
    assert ours[0][0] == pytest.approx(float(best.get_tot_scores(True, False)[0]), abs=1e-3)
    expected = brute.hypotheses(log_probs.tolist(), lambda words, cost: brute.exact(brute.LARGE, words) - cost)
    assert [score for score, _ in ours] == pytest.approx([s for _, s in brute.ranked(expected)[:3]], abs=2e-3)
    assert words_of([s for s in best[0].labels.tolist() if s > 0]) in dict(brute.ranked(expected))


@pytest.mark.parametrize("seed", range(3))
def test_a_pruned_lattice_is_the_whole_one_within_the_beam(seed):
    log_probs = emissions(seed, 8)
    whole = search("hlg").symbol_lattices(log_probs[None], [8])[0]
    few = search("hlg", lattice_beam=3.0).symbol_lattices(log_probs[None], [8])[0]
    best = max(listed(whole).values())
    expected = {words for words, score in listed(whole).items() if score > best - 2.99}
    assert expected <= listed(few).keys()
    same = [lattices.Lattice.of(**columns).pruned(3.0).nbest(1000) for columns in (whole, few)]
    assert [symbols for _, symbols in same[0]] == [symbols for _, symbols in same[1]]
    assert [score for score, _ in same[0]] == pytest.approx([score for score, _ in same[1]], abs=1e-3)


def test_a_batch_gives_what_single_utterances_give():
    rows = [emissions(seed, frames) for seed, frames in enumerate((4, 9, 1, 6, 9))]
    found = search("hlg", beam=8.0, lattice_beam=4.0)
    together = found.best(*padded(rows))
    for row, path in zip(rows, together):
        alone = found.best(row[None], [len(row)])[0]
        assert alone[:2] == path[:2] and alone[2] == pytest.approx(path[2], abs=1e-4)


def test_where_nothing_survives_there_is_no_path_and_no_exception():
    rows = [emissions(0, 1), emissions(1, 2), emissions(2, 5)]
    batch, frames = padded(rows)
    found = search("one_word")  # at least two tokens
    best = found.best(batch, frames)
    assert best[0] is None and best[1][1] == [1] and best[2][1][0] == 1
    columns = found.symbol_lattices(batch, frames)
    assert columns[0] is None and columns[1] is not None
    assert found.best(batch, [0, 0, 0]) == [None] * 3 == found.symbol_lattices(batch, [0, 0, 0])
    assert found.best(batch, [0, 2, 0])[1][1] == [1]


def test_what_k2_would_not_notice_is_refused():
    with pytest.raises(ValueError, match="the graph has 5 tokens, the network 4"):
        search("hlg").best(torch.zeros(1, 3, 4), [3])
    columns = {key: torch.tensor(values) for key, values in GRAPHS["hl"].items() if key not in ("start", "finals")}
    with pytest.raises(ValueError, match="no path of the graph leads to a final state"):
        k2_search.to_k2(k2, **columns, finals=torch.full((len(GRAPHS["hl"]["finals"]),), float("inf")))


def test_k2_is_found():
    assert k2_search.import_k2() is k2
    assert list(itertools.islice(brute.readings((3,)), 1)) == [(("a",), 0.0)]
