"""Bootstrap: resampling, its groups, and intervals compared with closed forms."""

import numpy as np
import pytest

from lowrank_speech.scoring import bootstrap
from lowrank_speech.scoring.options import ScoreOptions


def all_weights(*args, **kwargs):
    return np.concatenate(list(bootstrap.weights(*args, **kwargs)))


def test_every_resample_draws_as_many_units_as_there_are():
    weights = all_weights(np.arange(7), 100, seed=1)
    assert weights.shape == (100, 7) and (weights.sum(axis=1) == 7).all()


def test_items_of_a_unit_are_drawn_together():
    units = np.array([0, 1, 0, 2, 1])
    weights = all_weights(units, 50, seed=1)
    assert (weights[:, 0] == weights[:, 2]).all() and (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()


def test_strata_keep_their_size_even_where_a_unit_spans_two():
    strata = np.array([0, 0, 0, 1, 1, 0])
    units = np.array([0, 1, 2, 2, 3, 2])  # speaker 2 speaks both languages
    weights = all_weights(units, 200, seed=3, strata=strata)
    assert (weights[:, [0, 1, 2]].sum(axis=1) == 3).all()
    assert (weights[:, [3, 4]].sum(axis=1) == 2).all()
    assert (weights[:, 2] == weights[:, 5]).all()
    assert (weights[:, 2] != weights[:, 3]).any()


def test_seed_decides_and_blocks_are_filled(monkeypatch):
    a, b = (all_weights(np.arange(9), 30, seed=5) for _ in range(2))
    assert (a == b).all() and (a != all_weights(np.arange(9), 30, seed=6)).any()
    monkeypatch.setattr(bootstrap, "CELLS", 40)
    assert [len(block) for block in bootstrap.weights(np.arange(9), 30, seed=5)] == [4] * 7 + [2]


def test_weights_are_those_of_drawing_with_replacement():
    weights = all_weights(np.arange(5), 20_000, seed=1)
    assert np.allclose(weights.mean(axis=0), 1, atol=0.03)
    assert np.allclose(weights.var(axis=0), 1 - 1 / 5, atol=0.03)


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    means = all_weights(np.arange(400), 4000, seed=1) @ values / 400
    low, high = bootstrap.interval(means, 0.95)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.01)
    assert high == pytest.approx(values.mean() + half, abs=0.01)


def test_interval_leaves_nan_out_and_may_be_none():
    assert bootstrap.interval(np.array([np.nan, 1.0, 3.0]), 0.5) == [1.5, 2.5]
    assert bootstrap.interval(np.array([np.nan]), 0.5) is None


def test_units():
    ids = ["a", "b", "c"]
    speakers = {"a": "s", "b": "t", "c": "s", "more": "u"}
    assert bootstrap.units_of(ids, None, "auto")[1] == "utterances"
    units, drawn = bootstrap.units_of(ids, speakers, "auto")
    assert drawn == "speakers" and units.tolist() == [0, 1, 0]
    assert bootstrap.units_of(ids, speakers, "utterances")[0].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="utt2spk"):
        bootstrap.units_of(ids, None, "speakers")
    with pytest.raises(ValueError, match="'c' has no speaker"):
        bootstrap.units_of(ids, {"a": "s", "b": "t"}, "auto")


def test_varies():
    assert not bootstrap.varies(np.zeros(3, int))
    assert bootstrap.varies(np.arange(2))
    assert not bootstrap.varies(np.arange(2), strata=np.arange(2))
    assert bootstrap.varies(np.arange(3), strata=np.array([0, 1, 1]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"bootstrap": 1},
        {"bootstrap": -1},
        {"confidence": 1.0},
        {"confidence": 0.0},
        {"worst": -1},
        {"confusions": -1},
        {"p_target": ()},
        {"p_target": (1.0,)},
        {"c_miss": 0.0},
        {"c_fa": float("inf")},
    ],
)
def test_options_out_of_range_name_the_key(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ScoreOptions(**wrong)


def test_betas():
    assert ScoreOptions().betas == pytest.approx((1, 9))
    assert ScoreOptions(p_target=(0.5,), c_miss=2.0, c_fa=3.0).betas == pytest.approx((1.5,))
