"""LF-MMI and the delay penalty: k2 compared with this package's torch code, and with graphs that k2 composes itself.

Runs where k2 is installed, also under Python 3.9 (`make test-k2`): imports only torch, k2 and pytest, and loads the
modules under test by their paths.
"""

import importlib.util
import pathlib
import sys

import pytest
import torch

k2 = pytest.importorskip("k2", reason="k2 is not installed here; `make test-k2` runs these tests", exc_type=ImportError)

LOSSES = pathlib.Path(__file__).resolve().parents[2] / "src" / "lowrank_speech" / "training" / "losses"


def load(name):
    spec = importlib.util.spec_from_file_location(name, LOSSES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


ctc, mmi, with_k2 = load("ctc_losses"), load("denominator"), load("denominator_k2")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() and k2.with_cuda else [])]
BEAM = 1e4  # nothing is pruned


def bigram(vocabulary, seed=1, explicit=0.4):
    """A bigram graph with random probabilities: explicit ones for a share of the pairs, and the rest by back-off."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, dtype=torch.float64, generator=generator)

    tokens = vocabulary - 1
    size = tokens + 1  # the last context is the start
    end = 0.05 + 0.1 * rand(size)
    unigram = 0.01 + rand(tokens)
    unigram /= unigram.sum()
    pairs = (rand(size, tokens) * (rand(size, tokens) < explicit)) + 0.0
    empty = 0.3 * (1 - end)
    pairs *= ((1 - end - empty) / pairs.sum(1).clamp(min=1e-9))[:, None]
    empty = 1 - end - pairs.sum(1)  # all of it where no pair is explicit
    source, target = pairs.nonzero(as_tuple=True)
    everything = torch.arange(size)
    return mmi.Graph(
        last=torch.cat([torch.arange(1, vocabulary), torch.tensor([0])]),
        start=torch.tensor(tokens),
        arcs=torch.stack([source, target]),
        weights=pairs[source, target],
        shorter=torch.stack([everything, everything]),
        share=torch.ones(size, dtype=torch.float64),
        empty=empty,
        unigram=unigram,
        final=end,
    )


def batch(seed, vocabulary=9, utterances=6, most=40, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(12, most + 1, (utterances,), generator=generator)
    frames[2] = most
    log_probs = (scale * torch.randn(utterances, most, vocabulary, generator=generator)).log_softmax(-1)
    targets = [torch.randint(1, vocabulary, (int(n) // 4,), generator=generator).tolist() for n in frames]
    return log_probs, frames, targets


def acceptor(graph):
    """The n-gram as an acceptor of tokens, for k2."""
    moves, start, size = graph.probabilities(), int(graph.start), len(graph.last)
    place = list(range(size))
    place[0], place[start] = start, 0
    lines = []
    for state in range(size):
        here = place[state]  # its own inverse
        for there, p in enumerate(moves[here].tolist()):
            if p > 0:
                lines.append(f"{state} {place[there]} {int(graph.last[there])} {torch.tensor(p).log().item()}")
        lines.append(f"{state} {size} -1 {graph.final[here].log().item()}")
    return k2.arc_sort(k2.Fsa.from_str("\n".join([*lines, str(size)])))


def composed(graph):
    """CTC's topology composed with the n-gram, by k2: labels are outputs of the network, aux_labels tokens."""
    topology = k2.arc_sort(k2.ctc_topo(len(graph.unigram)))
    return k2.arc_sort(k2.connect(k2.compose(topology, acceptor(graph))))


def totals_by_k2(graphs, log_probs, frames):
    order = frames.argsort(descending=True, stable=True)
    segments = torch.stack([order, torch.zeros_like(order), frames[order]], 1).to(torch.int32)
    vec = k2.create_fsa_vec([graphs[i] for i in order.tolist()])
    lattice = k2.intersect_dense(vec, k2.DenseFsaVec(log_probs, segments), output_beam=BEAM)
    return lattice.get_tot_scores(log_semiring=True, use_double_scores=True)[order.argsort()]


def with_gradient(function, log_probs):
    log_probs = log_probs.detach().clone().requires_grad_()
    found = function(log_probs)
    (found * torch.arange(1, len(found) + 1).to(found)).sum().backward()
    return found.detach().cpu().double(), log_probs.grad.cpu().double()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_denominator_is_that_of_k2_and_that_of_its_composition(seed, scale, device):
    graph, (log_probs, frames, _) = bigram(9, seed), batch(seed, scale=scale)
    mine, k2s, expected = (
        with_gradient(function, log_probs.to(device if i < 2 else "cpu"))
        for i, function in enumerate(
            (
                lambda x: mmi.log_totals(x, frames, graph.to(x.device)),
                lambda x: with_k2.log_totals_k2(k2, x, frames, graph, BEAM),
                lambda x: totals_by_k2([composed(graph)] * len(frames), x, frames),
            )
        )
    )
    for found in (mine, k2s):
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-4)


def test_the_numerator_is_ctc_times_the_probability_of_the_tokens():
    """As ``lfmmi`` computes it; expected: the graph of the denominator composed with the transcript."""
    graph, (log_probs, frames, targets) = bigram(9), batch(3)
    moves, final = graph.probabilities(), graph.final
    weights = []
    for target in targets:
        where, total = int(graph.start), 0.0
        for token in target:
            total += float(moves[where, token - 1].log())
            where = token - 1
        weights.append(total + float(final[where].log()))
    whole = composed(graph)
    graphs = []
    for target in targets:
        graphs.append(k2.arc_sort(k2.connect(k2.compose(whole, k2.arc_sort(k2.linear_fsa(target))))))
    expected = totals_by_k2(graphs, log_probs, frames)
    labels, sizes = torch.tensor([i for target in targets for i in target]), torch.tensor([len(t) for t in targets])
    for module in (None, k2):
        found, possible = ctc.ctc_losses(log_probs, frames, labels, sizes, module, BEAM)
        assert possible.all()
        torch.testing.assert_close(-found.double() + torch.tensor(weights), expected.double(), rtol=0, atol=1e-4)


def test_the_beam_of_the_config_is_wide_enough():
    graph, (log_probs, frames, _) = bigram(9), batch(5, scale=3.0)
    wide, narrow = (with_k2.log_totals_k2(k2, log_probs, frames, graph, beam) for beam in (20.0, 2.0))
    expected = mmi.log_totals(log_probs, frames, graph)
    torch.testing.assert_close(wide, expected, rtol=0, atol=1e-4)
    assert float((narrow - expected).abs().max()) > 1e-3


def test_a_graph_that_is_too_large_for_k2_is_refused():
    log_probs, frames, _ = batch(1, vocabulary=200)
    with pytest.raises(ValueError, match="arcs; k2 takes at most"):
        with_k2.log_totals_k2(k2, log_probs, frames, bigram(200), BEAM)


# --- variants of CTC


def variants(data, module, **keys):
    log_probs, frames, targets = data
    labels, sizes = torch.tensor([i for target in targets for i in target]), torch.tensor([len(t) for t in targets])
    return with_gradient(lambda x: ctc.ctc_losses(x, frames, labels, sizes, module, BEAM, **keys)[0], log_probs)


@pytest.mark.parametrize("penalty", [0.01, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_the_delay_penalty_is_that_of_k2(seed, penalty):
    data = batch(seed)
    data[2][1] = [3, 3, 3]  # repeated labels
    data[2][4] = []
    found, expected = (variants(data, module, delay_penalty=penalty) for module in (None, k2))
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-4)
    assert not torch.allclose(found[0], variants(data, k2)[0], atol=0.1)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_label_priors_are_the_same_in_both(penalty):
    data = batch(7)
    log_priors = 0.3 * torch.randn(9, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    keys = {"log_priors": log_priors, "delay_penalty": penalty}
    found, expected = (variants(data, module, **keys) for module in (None, k2))
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=2e-4)
