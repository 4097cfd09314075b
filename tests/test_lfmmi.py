"""LF-MMI: the token n-gram, the denominator against the sum over all paths, gradients, and training with it."""

import itertools
import math

import pytest
import torch

from lowrank_speech.training.losses import denominator
from lowrank_speech.training.losses.denominator import log_totals
from lowrank_speech.training.losses.ngram import END, NGram

FEW = [[1, 2], [2, 2, 1], [1], [], [2, 1, 1, 2], [1, 2, 1]]


def drawn(tokens, number=60, longest=9, seed=1):
    """Targets whose tokens depend on the one before."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(tokens + 1, tokens + 1, generator=generator) ** 4
    table[:, 0] += 0.2
    made = []
    for _ in range(number):
        target = [0]
        while len(target) <= longest:
            token = int(torch.multinomial(table[target[-1]], 1, generator=generator))
            if token == 0:
                break
            target.append(token)
        made.append(target[1:])
    return made


def by_brute_force(log_probs, ngram, scale=lambda target: 0.0):
    """The log of the sum over all label sequences (V to the power of F)."""
    frames, vocabulary = log_probs.shape
    paths = []
    for path in itertools.product(range(vocabulary), repeat=frames):
        target = [token for token, _ in itertools.groupby(path) if token]
        paths.append(log_probs[range(frames), path].sum() + ngram.log_probability(target))
    return torch.logsumexp(torch.stack(paths), 0)


# --- the n-gram


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("targets", "vocabulary"), [(FEW, 3), (FEW, 5), (drawn(4), 5), (drawn(6), 9)])
def test_the_probabilities_after_every_context_sum_to_one(targets, vocabulary, order):
    ngram = NGram.of(targets, vocabulary, order)
    for context in itertools.chain.from_iterable(itertools.product(range(1, vocabulary), repeat=n) for n in range(4)):
        for start in ((), (0,)):
            total = sum(ngram.probability((*start, *context), token) for token in (END, *range(1, vocabulary)))
            assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_graph_is_the_ngram(order):
    """Walks of the graph have the probability of their tokens, and lead to one context."""
    ngram = NGram.of(drawn(4), 6, order)
    graph = ngram.graph()
    moves = graph.probabilities()
    torch.testing.assert_close(moves.sum(1) + graph.final, torch.ones(len(graph.last), dtype=torch.float64))
    for target in itertools.chain.from_iterable(itertools.product(range(1, 6), repeat=n) for n in range(5)):
        mass = torch.zeros(len(graph.last), dtype=torch.float64)
        mass[graph.start] = 1.0
        for token in target:
            mass = (mass @ moves) * (graph.last == token)
        assert math.log(float(mass @ graph.final)) == pytest.approx(ngram.log_probability(list(target)), abs=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_sparse_transitions_are_the_dense_ones(order):
    graph = NGram.of(drawn(7, 100), 11, order).graph()
    dense, sparse = denominator._Dense(graph), denominator._Sparse(graph)
    generator = torch.Generator().manual_seed(2)
    sums = torch.rand(2 * len(graph.last), 3, dtype=torch.float64, generator=generator)
    later = torch.rand(len(graph.last), 3, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(sparse.forward(sums), dense.forward(sums), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sparse.backward(later), dense.backward(later), rtol=1e-12, atol=1e-12)


# --- the denominator


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_denominator_is_the_sum_over_all_paths(order, sparse, monkeypatch):
    if sparse:
        monkeypatch.setattr(denominator, "DENSE", 0)
    ngram = NGram.of(FEW, 4, order)
    frames = torch.tensor([4, 6, 1, 3])
    log_probs = 2 * torch.randn(4, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(order))
    found = log_totals(log_probs, frames, ngram.graph())
    for row, n, total in zip(log_probs, frames.tolist(), found, strict=True):
        assert total.item() == pytest.approx(by_brute_force(row[:n], ngram).item(), abs=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("pieces", [False, True])
def test_its_gradient_is_that_of_the_sum_over_all_paths(sparse, pieces, monkeypatch):
    monkeypatch.setattr(denominator, "DENSE", 0 if sparse else 1000)
    monkeypatch.setattr(denominator, "KEPT", 0 if pieces else 1 << 28)
    ngram = NGram.of(FEW, 4, 3)
    frames, weights = torch.tensor([4, 6, 5]), torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    log_probs = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator).requires_grad_()
    expected = log_probs.detach().clone().requires_grad_()
    (weights * log_totals(log_probs, frames, ngram.graph())).sum().backward()
    naive = torch.stack([by_brute_force(row[:n], ngram) for row, n in zip(expected, frames.tolist(), strict=True)])
    (weights * naive).sum().backward()
    torch.testing.assert_close(log_probs.grad, expected.grad, rtol=0, atol=1e-9)


def test_posteriors_sum_to_one_in_every_frame_and_padding_has_none():
    ngram = NGram.of(drawn(20, 200), 24, 2)
    log_probs = (10 * torch.randn(5, 80, 24, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    log_probs.requires_grad_()
    frames = torch.tensor([80, 3, 41, 80, 1])
    log_totals(log_probs, frames, ngram.graph()).sum().backward()
    sums = log_probs.grad.sum(-1)
    for row, n in zip(sums, frames.tolist(), strict=True):
        torch.testing.assert_close(row[:n], torch.ones(n))
        assert not row[n:].any()


def test_outputs_that_are_not_finite_show():
    graph = NGram.of(FEW, 3, 2).graph()
    log_probs = torch.zeros(3, 4, 3)
    log_probs[1, 2, 1] = math.nan
    log_probs[2, 3] = math.nan  # padding
    assert torch.isfinite(log_totals(log_probs, torch.tensor([4, 4, 3]), graph)).tolist() == [True, False, True]
