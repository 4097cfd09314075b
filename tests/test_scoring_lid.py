"""Language-recognition costs: a reference example, identities, and brute force over all thresholds."""

import itertools
import json

import numpy as np
import pytest

from lowrank_speech.scoring import detection, lid, text
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.scoring.survey import Survey

GOLDEN = np.array([[0, -3, -4], [0, -1, -5], [-2, 0, -2], [-0.5, 0, -3], [-3, -3, 0], [-4, -2, 0], [0, -2, -0.5]])
TRUTH = np.array([0, 0, 1, 1, 2, 2, 2])
PLAIN = ScoreOptions(bootstrap=0)


def run(scores, truth, options=PLAIN, seed=1, languages=None, **kwargs):
    scores = np.asarray(scores, dtype=float)
    languages = languages or [f"l{i}" for i in range(scores.shape[1])]
    ids = [f"s{i}" for i in range(len(scores))]
    labels = {name: languages[t] for name, t in zip(ids, truth, strict=True)}
    return lid.score(ids, languages, scores, labels, options, seed, **kwargs)


def random_case(rng, n=None, s=None, ties=False):
    n = n or int(rng.integers(2, 5))
    truth = np.concatenate([np.arange(n), rng.integers(n, size=(s or int(rng.integers(n, 15))) - n)])
    scores = rng.normal(size=(len(truth), n)) * 2
    scores[np.arange(len(truth)), truth] += 2
    return (np.round(scores) if ties else scores), truth


def numbers(result):
    variants = result["variants"]
    return np.array(
        [result[k] for k in lid.METRICS]
        + list(variants["min_cprimary"].values())
        + [v for one in variants["eer"].values() for v in one.values()]
    )


def cavg(accepted, truth, beta):
    """C_avg by its definition, with loops."""
    n = accepted.shape[1]
    miss = [np.mean([not a[i] for a in accepted[truth == i]]) for i in range(n)]
    fa = [np.mean(accepted[truth == j][:, i]) for i in range(n) for j in range(n) if i != j]
    return sum(miss) / n + beta * sum(fa) / (n * (n - 1))


def plain_llr(scores):
    n = scores.shape[1]
    return np.stack([scores[:, i] - np.log(np.exp(np.delete(scores, i, 1)).mean(axis=1)) for i in range(n)], axis=1)


def test_golden_example():
    result = run(GOLDEN, TRUTH)
    assert result["act_cprimary"] == pytest.approx(0.375)
    assert result["min_cprimary"] == pytest.approx(1 / 9)
    assert result["accuracy"] == pytest.approx(6 / 7) and result["macro_accuracy"] == pytest.approx(8 / 9)
    assert result["eer"] == pytest.approx(1 / 14)
    assert result["variants"]["min_cprimary"] == {"common": pytest.approx(1 / 9), "per-language": 0}
    assert result["variants"]["eer"]["nearest"]["pooled"] == pytest.approx(1 / 7)
    assert result["confusion"] == [[2, 0, 0], [0, 2, 0], [1, 0, 2]]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_options_choose_the_variant():
    result = run(GOLDEN, TRUTH, ScoreOptions(bootstrap=0, minimum="per-language", eer="nearest"))
    assert result["min_cprimary"] == 0 and result["eer"] == pytest.approx(1 / 7)
    result = run(GOLDEN, TRUTH, ScoreOptions(bootstrap=0, eer_over="languages"))
    assert result["eer"] == np.mean([one["eer"] for one in result["by_language"].values()])


def test_llr_against_its_definition_and_far_from_zero():
    scores = np.random.default_rng(0).normal(size=(50, 4)) * 5
    assert np.allclose(detection.llr(scores), plain_llr(scores), atol=1e-8)
    # exp would underflow: two languages, so the ratio is the difference
    assert detection.llr(np.array([[-5000.0, -7000.0]])).tolist() == [[2000.0, -2000.0]]
    assert detection.llr(np.array([[0.0, -2000.0, -2000.0]]))[0, 0] == pytest.approx(2000)


def test_llr_of_likelihood_zero():
    assert detection.llr(np.array([[0.0, -np.inf]])).tolist() == [[np.inf, -np.inf]]
    ratios = detection.llr(np.array([[0.0, -1.0, -np.inf]]))
    assert ratios[0] == pytest.approx([1 + np.log(2), np.log(2) - 1, -np.inf])


def test_actual_cost_against_loops():
    rng = np.random.default_rng(1)
    for _ in range(30):
        scores, truth = random_case(rng)
        ratios = plain_llr(scores)
        expected = np.mean([cavg(ratios > np.log(beta), truth, beta) for beta in (1, 9)])
        assert run(scores, truth)["act_cprimary"] == pytest.approx(expected)


@pytest.mark.parametrize("ties", [False, True])
def test_minimum_costs_against_all_thresholds(ties):
    rng = np.random.default_rng(2)
    for _ in range(15):
        scores, truth = random_case(rng, s=9, ties=ties)
        n, ratios = scores.shape[1], detection.llr(scores)
        common, single = [], []
        for beta in (1, 9):
            thresholds = [-np.inf, *np.unique(ratios)]
            common.append(min(cavg(ratios > t, truth, beta) for t in thresholds))
            best = 0
            for i in range(n):
                costs = []
                for t in [-np.inf, *np.unique(ratios[:, i])]:
                    accepted = ratios[:, i] > t
                    miss = 1 - accepted[truth == i].mean()
                    fa = np.mean([accepted[truth == j].mean() for j in range(n) if j != i])
                    costs.append(miss + beta * fa)
                best += min(costs) / n
            single.append(best)
        found = run(scores, truth)["variants"]["min_cprimary"]
        assert found["common"] == pytest.approx(np.mean(common))
        assert found["per-language"] == pytest.approx(np.mean(single))


def test_per_language_minimum_against_all_combinations():
    scores, truth = random_case(np.random.default_rng(3), n=3, s=6)
    ratios = detection.llr(scores)
    thresholds = [[-np.inf, *np.unique(ratios[:, i])] for i in range(3)]
    costs = [min(cavg(ratios > np.array(t), truth, beta) for t in itertools.product(*thresholds)) for beta in (1, 9)]
    assert run(scores, truth)["variants"]["min_cprimary"]["per-language"] == pytest.approx(np.mean(costs))


def brute_eers(ratios, target):
    """EER on the hull: the lowest crossing of the diagonal by a segment between any two points; and nearest point."""
    points = [(np.mean(ratios[target] <= t), np.mean(ratios[~target] > t)) for t in [-np.inf, *np.unique(ratios)]]
    crossings = []
    for (m1, f1), (m2, f2) in itertools.product(points, points):
        d1, d2 = m1 - f1, m2 - f2
        if d1 >= 0 >= d2:
            share = 0 if d1 == d2 else d1 / (d1 - d2)
            crossings.append(m1 + share * (m2 - m1))
    gap = min(abs(m - f) for m, f in points)
    return min(crossings), min((m + f) / 2 for m, f in points if abs(m - f) < gap + 1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_eer_against_brute_force(ties):
    rng = np.random.default_rng(4)
    for _ in range(40):
        scores, truth = random_case(rng, ties=ties)
        ratios, n = detection.llr(scores), scores.shape[1]
        target = truth[:, None] == np.arange(n)
        hull, nearest = brute_eers(ratios.ravel(), target.ravel())
        each = np.array([brute_eers(ratios[:, i], target[:, i]) for i in range(n)]).mean(axis=0)
        found = run(scores, truth)["variants"]["eer"]
        assert found["rocch"] == {"pooled": pytest.approx(hull), "languages": pytest.approx(each[0])}
        assert found["nearest"] == {"pooled": pytest.approx(nearest), "languages": pytest.approx(each[1])}
        assert found["rocch"]["pooled"] <= 0.5 + 1e-12


def test_reject_all_costs_1_and_accept_all_beta():
    rejected, accepted = np.zeros((7, 3), bool), np.ones((7, 3), bool)
    for beta in (1, 9):
        assert detection.average_cost(rejected, TRUTH, beta) == pytest.approx([1])
        assert detection.average_cost(accepted, TRUTH, beta) == pytest.approx([beta])
    # C_primary of accepting all is the mean of beta 1 and 9
    assert np.mean([detection.average_cost(accepted, TRUTH, b) for b in (1, 9)]) == pytest.approx(5)


def test_perfect_scores():
    result = run(20 * np.eye(3)[TRUTH], TRUTH)
    assert result["act_cprimary"] == result["min_cprimary"] == result["eer"] == 0
    assert result["accuracy"] == result["macro_accuracy"] == 1
    assert result["tied"] == 0


@pytest.mark.parametrize("p_target", [(0.5, 0.1), (0.9,), (0.7, 0.2)])
def test_equal_scores_are_chance(p_target):
    options = ScoreOptions(bootstrap=0, p_target=p_target)
    result = run(np.arange(7.0)[:, None] * np.ones((7, 3)), TRUTH, options)
    for key in lid.METRICS:
        assert result[key] == pytest.approx(result["chance"][key])
    assert result["tied"] == 7
    assert result["chance"]["majority_accuracy"] == 3 / 7


def test_a_constant_per_segment_changes_nothing():
    rng = np.random.default_rng(5)
    for ties in (False, True):
        scores, truth = random_case(rng, s=12, ties=ties)
        moved = scores + rng.normal(size=(12, 1)) * 100
        assert np.allclose(numbers(run(scores, truth)), numbers(run(moved, truth)))


def test_the_order_of_languages_and_segments_changes_nothing():
    rng = np.random.default_rng(6)
    for ties in (False, True):
        scores, truth = random_case(rng, n=4, s=14, ties=ties)
        order, rows = rng.permutation(4), rng.permutation(14)
        moved = run(scores[:, order][rows], np.argsort(order)[truth][rows])
        assert np.allclose(numbers(run(scores, truth)), numbers(moved))


def test_duplicating_a_language_changes_no_cost():
    scores, truth = random_case(np.random.default_rng(7), n=3, s=12)
    again = np.concatenate([np.arange(12), np.flatnonzero(truth == 1), np.flatnonzero(truth == 1)])
    one, other = run(scores, truth), run(scores[again], truth[again])
    for key in ("act_cprimary", "min_cprimary", "macro_accuracy"):
        assert one[key] == pytest.approx(other[key])
    assert one["variants"]["min_cprimary"] == pytest.approx(other["variants"]["min_cprimary"])


def test_minimum_never_exceeds_actual_nor_1():
    rng = np.random.default_rng(8)
    for _ in range(30):
        result = run(*random_case(rng))
        found = result["variants"]["min_cprimary"]
        assert found["per-language"] <= found["common"] + 1e-12 <= min(result["act_cprimary"], 1) + 2e-12


def test_weights_equal_repeated_segments():
    """A resample by weights is the same as scoring the drawn segments: the whole bootstrap rests on it."""
    rng = np.random.default_rng(9)
    for options in (PLAIN, ScoreOptions(bootstrap=0, minimum="per-language", eer="nearest", eer_over="languages")):
        scores, truth = random_case(rng, n=3, s=12)
        weights = rng.integers(1, 4, size=(5, 12)).astype(float)
        found = lid.evaluation(Survey.of(scores, truth, options.betas), options).metrics(weights)
        for row, drawn in zip(found, weights.astype(int), strict=True):
            rows = np.repeat(np.arange(12), drawn)
            again = run(scores[rows], truth[rows], options)
            assert row == pytest.approx([again[key] for key in lid.METRICS])


def test_intervals():
    rng = np.random.default_rng(10)
    scores, truth = random_case(rng, n=3, s=120)
    options = ScoreOptions(bootstrap=300)
    a, b, c = (run(scores, truth, options, seed) for seed in (1, 1, 2))
    assert a["interval"] == b["interval"] != c["interval"]
    for key in lid.METRICS:
        low, high = a["interval"][key]
        assert low <= a[key] <= high and low < high
    half = 1.96 * (a["accuracy"] * (1 - a["accuracy"]) / 120) ** 0.5
    assert np.ptp(a["interval"]["accuracy"]) / 2 == pytest.approx(half, rel=0.2)
    assert run(GOLDEN, TRUTH)["interval"] == dict.fromkeys(lid.METRICS)
    assert run(np.eye(2), [0, 1], options)["interval"] == dict.fromkeys(lid.METRICS)


def test_speakers_are_drawn_within_their_language():
    scores, truth = random_case(np.random.default_rng(11), n=2, s=40)
    speakers = {f"s{i}": f"p{i % 4}" for i in range(40)}
    result = run(scores, truth, ScoreOptions(bootstrap=50), speakers=speakers)
    assert result["resampled"] == "speakers" and 4 < result["units"] <= 8
    assert result["interval"]["eer"] is not None


@pytest.mark.parametrize(
    "change, match",
    [
        (
            {"labels": {"a": "x", "b": "klingon", "c": "y"}},
            "LABELS: segment 'b' has the label 'klingon'; expected one of the scored languages: x, y",
        ),
        ({"labels": {"a": "x", "b": "y"}}, "SCORES: segment 'c' has scores but no label in LABELS"),
        ({"labels": {"a": "x", "b": "y", "c": "y", "d": "x"}}, "LABELS: segment 'd' has a label but no scores"),
        ({"labels": {"a": "x", "b": "x", "c": "x"}}, "there is no segment of the language 'y'"),
        ({"languages": ["x"], "scores": np.zeros((3, 1))}, "only one language"),
        ({"scores": [[0, 0], [np.nan, 0], [0, 0]]}, "segment 'b', language 'x': the score is nan"),
        ({"scores": [[0, 0], [0, np.inf], [0, 0]]}, "segment 'b', language 'y': the score is inf"),
        ({"scores": [[0, 0], [0, 0], [-np.inf, -np.inf]]}, "segment 'c': all scores are -inf"),
    ],
)
def test_errors(change, match):
    case = {
        "ids": ["a", "b", "c"],
        "languages": ["x", "y"],
        "scores": np.zeros((3, 2)),
        "labels": {"a": "x", "b": "y", "c": "y"},
    } | change
    with pytest.raises(ValueError, match=match):
        lid.score(**case, options=PLAIN, seed=1, names=("SCORES", "LABELS"))


def test_single_minus_infinity_is_legal():
    scores = np.where(np.eye(3)[TRUTH] > 0, 0.0, -np.inf)
    result = run(scores, TRUTH)
    assert result["act_cprimary"] == result["eer"] == 0 and result["accuracy"] == 1


def test_lines():
    lines = text.lid_lines(run(GOLDEN, TRUTH))
    assert lines[0].startswith("%accuracy 85.71 [ 6 / 7 ]")
    assert "C_primary actual 0.3750 (chance 1.0000)" in lines
    assert lines[-4:] == [
        "true \\ decided  l0  l1  l2",
        "l0               2   0   0",
        "l1               0   2   0",
        "l2               1   0   2",
    ]
