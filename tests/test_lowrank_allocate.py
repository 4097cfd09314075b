"""Rank allocation: against brute force on small cases, within the budget, and with the ranks that were measured."""

import itertools
import math

import pytest
import torch

from lowrank_speech.lowrank.allocate import allocate_ranks, bounds, curves, predicted, trial_ranks
from lowrank_speech.lowrank.plan import largest_rank, plan_ranks
from lowrank_speech.lowrank.structure import dense_size, factored_size


def case(seed):
    """Shapes, and curves that fall with the rank at very different heights."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(6, 4), (3, 9), (8, 5, 2)]
    shapes = {name: sizes[(i + seed) % 3] for i, name in enumerate("abc")}
    measured = {}
    for name, shape in shapes.items():
        ranks = range(1, largest_rank(shape) + 1)
        drops = torch.rand(len(ranks), generator=generator).mul(3).cumsum(0)
        height = 10.0 ** float(torch.randint(-2, 2, (), generator=generator))
        measured[name] = [(r, height * math.exp(-float(d))) for r, d in zip(ranks, drops, strict=True)]
    return shapes, measured


def size(shapes, ranks):
    return sum(dense_size(s) if ranks[n] is None else factored_size(s, ranks[n]) for n, s in shapes.items())


def test_against_brute_force():
    exact, gaps = [], []
    for seed in range(20):
        shapes, measured = case(seed)
        options = [[*(r for r, _ in measured[name]), None] for name in shapes]
        every = [dict(zip(shapes, ranks, strict=True)) for ranks in itertools.product(*options)]
        worst = max(predicted(measured, ranks) for ranks in every)
        for budget in {size(shapes, ranks) for ranks in every}:
            found = allocate_ranks(shapes, measured, budget)
            best = min(predicted(measured, ranks) for ranks in every if size(shapes, ranks) <= budget)
            assert size(shapes, found) <= budget
            gaps.append((predicted(measured, found) - best) / worst)
            assert gaps[-1] > -1e-12
            exact.append(gaps[-1] < 1e-12)
    # A knapsack: the greedy solution may miss when one large step does not fit, which with three layers is a lot.
    assert sum(exact) / len(exact) > 0.8 and sum(gaps) / len(gaps) < 0.03


def test_one_layer_that_costs_everything_stays_dense():
    shapes = {str(i): (32, 128) for i in range(8)}
    measured = {n: [(3, 0.4), (6, 0.2), (12, 0.1), (19, 0.05), (25, 0.02)] for n in shapes}
    measured["5"] = [(3, 9.0), (6, 8.0), (12, 6.0), (19, 4.0), (25, 2.0)]
    uniform = plan_ranks(shapes, 100_000, keep=0.6)
    budget = sum(factored_size(shapes[n], r) for n, r in uniform.items())
    found = allocate_ranks(shapes, measured, budget)
    assert found["5"] is None and predicted(measured, found) < 0.3 * predicted(measured, uniform)
    assert 0 <= budget - size(shapes, found) < 160  # less than one more rank


def test_ranks_keep_to_the_floor_and_to_multiples():
    assert bounds((64, 64), 0.3, 4) == (20, 28) and trial_ranks((64, 64), 0.3, 4) == [20, 24, 28]
    assert trial_ranks((64, 64), 0.0) == [1, 9, 16, 23, 31]
    assert trial_ranks((4, 4), 0.9) == []  # every useful rank is below the floor
    shapes, tried = {"a": (64, 64), "b": (4, 4)}, []

    def divergence(ranks):
        tried.append(ranks)
        return 1 / next(iter(ranks.values()))

    measured = curves(shapes, divergence, 0.3, 4)
    assert tried == [{"a": 20}, {"a": 24}, {"a": 28}] and measured["b"] == []
    assert allocate_ranks(shapes, measured, 64 * 64 + 15, 4) == {"a": 28, "b": None}
    with pytest.raises(
        ValueError, match="the layers cost 2,576 parameters at their least ranks, but the budget is 2,575"
    ):
        allocate_ranks(shapes, measured, 2575, 4)


def test_noise_does_not_make_a_larger_rank_look_worse():
    measured = {"a": [(4, 0.5), (8, 0.1), (12, 0.2)]}
    assert predicted(measured, {"a": 12}) == pytest.approx(0.1)
    assert predicted(measured, {"a": 6}) == pytest.approx(math.sqrt(0.05))  # log-linear
    assert predicted(measured, {"a": None}) == 0 and predicted({"a": [(4, 0.0)]}, {"a": 4}) < 1e-8
