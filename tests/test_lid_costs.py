"""Cllr, costs of pairs and of parts, points to draw: against definitions, brute force and scikit-learn."""

import json

import numpy as np
import pytest

from lowrank_speech.scoring import cllr, curves, detection, evaluation, groups, lid, pairs, text
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.scoring.survey import BINS, Survey
from lowrank_speech.scoring.trials import Trials

GOLDEN = np.array([[0, -3, -4], [0, -1, -5], [-2, 0, -2], [-0.5, 0, -3], [-3, -3, 0], [-4, -2, 0], [0, -2, -0.5]])
TRUTH = np.array([0, 0, 1, 1, 2, 2, 2])
PLAIN = ScoreOptions(bootstrap=0)


def run(scores, truth, options=PLAIN, **maps):
    scores = np.asarray(scores, dtype=float)
    languages = [f"l{i}" for i in range(scores.shape[1])]
    ids = [f"s{i}" for i in range(len(scores))]
    return lid.score(ids, languages, scores, {f"s{i}": languages[t] for i, t in enumerate(truth)}, options, 1, **maps)


def case(rng, s=30, n=3, ties=False, separation=2.0):
    truth = np.concatenate([np.arange(n), rng.integers(n, size=s - n)])
    scores = rng.normal(size=(s, n)) * 2
    scores[np.arange(s), truth] += separation
    return (np.round(scores) if ties else scores), truth


def trials_of(scores, truth):
    """Ratios, targets and weights (those of C_avg; of either kind they sum to 1) of all trials, with loops."""
    ratios, n = detection.llr(scores), scores.shape[1]
    rows = []
    for s, j in enumerate(truth):
        for i in range(n):
            weight = 1 / (n * (truth == j).sum()) / (1 if i == j else n - 1)
            rows.append((ratios[s, i], i == j, weight))
    return tuple(map(np.array, zip(*rows, strict=True)))


def pav(ratios, targets, weights):
    """Posterior of each trial by pool adjacent violators, written out; equal ratios are one point."""
    values = np.unique(ratios)
    blocks = [[weights[(ratios == v) & targets].sum(), weights[ratios == v].sum(), (ratios == v).sum()] for v in values]
    pooled = []
    for block, v in zip(blocks, values, strict=True):
        pooled.append([block[0], block[1], [v]])
        while len(pooled) > 1 and pooled[-2][0] / pooled[-2][1] >= pooled[-1][0] / pooled[-1][1]:
            a, w, members = pooled.pop()
            pooled[-1] = [pooled[-1][0] + a, pooled[-1][1] + w, pooled[-1][2] + members]
    posterior = {v: a / w for a, w, members in pooled for v in members}
    return np.array([posterior[r] for r in ratios])


def bits(posterior, targets, weights):
    """Cllr of posteriors with equal total weights of both kinds."""
    with np.errstate(divide="ignore"):
        loss = np.where(targets, -np.log2(posterior), -np.log2(1 - posterior))
    return 0.5 * (weights * np.where(weights > 0, loss, 0)).sum()


def test_multiclass_cllr_against_its_definition():
    scores, truth = case(np.random.default_rng(0))
    posterior = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = np.mean([np.mean([-np.log2(posterior[s, j]) for s in np.flatnonzero(truth == j)]) for j in range(3)])
    assert run(scores, truth)["cllr"] == pytest.approx(expected)
    assert run(scores + 1000, truth)["cllr"] == pytest.approx(expected)
    assert run(np.zeros((30, 3)), truth)["cllr"] == pytest.approx(np.log2(3))
    assert run(50 * np.eye(3)[truth], truth)["cllr"] < 1e-12


def test_detection_cllr_of_two_languages_is_the_multiclass_one():
    """With two languages and equal priors, both say the same of every segment."""
    result = run(*case(np.random.default_rng(1), n=2))
    assert result["detection_cllr"]["actual"] == pytest.approx(result["cllr"])


@pytest.mark.parametrize("ties", [False, True])
def test_detection_cllr_and_its_minimum_against_pav_written_out(ties):
    rng = np.random.default_rng(2)
    for _ in range(25):
        scores, truth = case(rng, int(rng.integers(4, 30)), 3, ties, 1.0)
        ratios, targets, weights = trials_of(scores, truth)
        found = run(scores, truth)["detection_cllr"]
        assert found["actual"] == pytest.approx(bits(1 / (1 + np.exp(-ratios)), targets, weights))
        assert found["minimum"] == pytest.approx(bits(pav(ratios, targets, weights), targets, weights))
        assert found["minimum"] <= min(found["actual"], 1) + 1e-12


def test_minimum_detection_cllr_against_scikit_learn():
    isotonic = pytest.importorskip("sklearn.isotonic", reason="scikit-learn is not installed")
    scores, truth = case(np.random.default_rng(3), 200, 4)
    ratios, targets, weights = trials_of(scores, truth)
    model = isotonic.IsotonicRegression(y_min=0, y_max=1).fit(ratios, targets.astype(float), sample_weight=weights)
    expected = bits(model.predict(ratios), targets, weights)
    assert run(scores, truth)["detection_cllr"]["minimum"] == pytest.approx(expected)


def test_operating_points_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    scores, truth = case(np.random.default_rng(4), 200, 4)
    ratios, targets, weights = trials_of(scores, truth)
    p_fa, hit, _ = metrics.roc_curve(targets, ratios, sample_weight=weights, drop_intermediate=False)
    result = run(scores, truth)
    expected = [(1 - hit + beta * p_fa).min() for beta in (1, 9)]
    assert list(result["min_cavg"].values()) == pytest.approx(expected)
    p_fa, hit, _ = metrics.roc_curve(targets, ratios, drop_intermediate=False)
    k = np.abs(1 - hit - p_fa).argmin()
    assert result["variants"]["eer"]["nearest"]["pooled"] == pytest.approx((1 - hit[k] + p_fa[k]) / 2, abs=1e-3)


def test_minimum_cllr_sees_only_the_order_of_ratios():
    scores, truth = case(np.random.default_rng(5), n=2)  # with two languages, a factor is a monotone change
    one, other = (run(x, truth)["detection_cllr"] for x in (scores, 3 * scores))
    assert one["minimum"] == pytest.approx(other["minimum"]) and one["actual"] != pytest.approx(other["actual"])


def test_hull_against_all_pairs_of_points():
    rng = np.random.default_rng(6)
    for _ in range(40):
        miss = np.concatenate([[0], np.sort(rng.integers(0, 20, 30)) / 20, [1]])
        fa = np.concatenate([[1], np.sort(rng.integers(0, 20, 30))[::-1] / 20, [0]])
        corners = cllr.hull(miss, fa)
        height = np.interp(miss, miss[corners], fa[corners])
        below = [
            min(
                (f1 + (f2 - f1) * (x - m1) / (m2 - m1) if m2 > m1 else min(f1, f2))
                for m1, f1 in zip(miss, fa, strict=True)
                for m2, f2 in zip(miss, fa, strict=True)
                if m1 <= x <= m2
            )
            for x in miss
        ]
        inner = (miss > 0) & (miss < 1)  # at the ends, several points share an abscissa
        assert height[inner] == pytest.approx(np.array(below)[inner])


def test_lre07_costs():
    result = run(GOLDEN, TRUTH)
    assert result["lre07_cavg"]["actual"]["0.5"] == pytest.approx(result["act_cavg"]["0.5"] / 2)
    assert result["lre07_cavg"]["minimum"]["0.1"] == pytest.approx(result["min_cavg"]["0.1"] / 10)
    # The sum over pairs of NIST's plan: mean of P C_miss P_miss + (1 - P) C_fa mean of P_fa.
    accepted = np.array(result["accepted"]["0.1"])
    off = accepted[~np.eye(3, dtype=bool)]
    expected = 0.1 * (1 - np.diag(accepted)).mean() + 0.9 * off.mean()
    assert result["lre07_cavg"]["actual"]["0.1"] == pytest.approx(expected, abs=1e-4)


def test_pairs_against_loops():
    rng = np.random.default_rng(7)
    for ties in (False, True):
        scores, truth = case(rng, 40, 4, ties)
        actual, minimum = pairs.pair_costs(scores, truth)
        for a in range(4):
            for b in range(4):
                if a == b:
                    assert actual[a, b] == minimum[a, b] == 0
                    continue
                ratio = scores[:, a] - scores[:, b]
                one, two = ratio[truth == a], ratio[truth == b]
                wrong = np.mean((one < 0) + (one == 0) / 2) + np.mean((two > 0) + (two == 0) / 2)
                assert actual[a, b] == pytest.approx(wrong / 2)
                thresholds = [-np.inf, *np.unique(ratio), np.inf]
                assert minimum[a, b] == pytest.approx(min((one < t).mean() + (two >= t).mean() for t in thresholds) / 2)
    worst = pairs.summary(actual, minimum, list("abcd"), 3)
    assert worst["pairs"] == 6 and len(worst["worst"]) == 3
    assert worst["worst"][0][3] == pytest.approx(minimum.max(), abs=1e-5)


def test_of_very_many_pairs_only_the_worst_have_a_minimum(monkeypatch):
    scores, truth = case(np.random.default_rng(15), 200, 8)
    actual, minimum = pairs.pair_costs(scores, truth)
    monkeypatch.setattr(pairs, "ALL", 10)
    monkeypatch.setattr(pairs, "MOST", 5)
    same, some = pairs.pair_costs(scores, truth)
    assert same.tolist() == actual.tolist()
    known = np.triu(~np.isnan(some), 1)
    assert known.sum() == 5 and some[known].tolist() == minimum[known].tolist()
    assert actual[known].min() >= actual[np.triu(np.isnan(some), 1)].max()
    found = pairs.summary(same, some, list("abcdefgh"), 3)
    assert found["minimum"] is None and all(0 < row[3] <= 0.5 for row in found["worst"])


def test_likelihood_zero_on_both_sides_of_a_pair_is_a_tie():
    actual, minimum = pairs.pair_costs(np.array([[0, -np.inf, -np.inf]] * 3), np.arange(3))
    assert actual[1, 2] == minimum[1, 2] == 0.5  # and the segments of l1 are always taken for l0


def test_parts_are_scored_as_test_sets_of_their_own():
    scores, truth = case(np.random.default_rng(8), 60, 3)
    seconds = np.where(np.arange(60) % 2, 3.0, 30.0)
    durations = {f"s{i}": f"{d}" for i, d in enumerate(seconds)}
    sources = {f"s{i}": "all" for i in range(60)}
    result = run(scores, truth, ScoreOptions(bootstrap=20), durations=durations, sources=sources)
    assert list(result["by_duration"]) == ["below 5 s", "20 s or more"]
    for name, rows in (("below 5 s", seconds < 5), ("20 s or more", seconds > 5)):
        part, alone = result["by_duration"][name], run(scores[rows], truth[rows])
        assert [part[key] for key in lid.METRICS] == pytest.approx([alone[key] for key in lid.METRICS])
        assert part["segments"] == 30 and part["lacking"] == []
    assert result["by_source"]["all"]["interval"] == result["interval"]


def test_languages_that_a_part_lacks_are_named():
    scores, truth = case(np.random.default_rng(9), 60, 3)
    sources = {f"s{i}": ("radio" if t < 2 else "phone") for i, t in enumerate(truth)}
    parts = run(scores, truth, sources=sources)["by_source"]
    assert parts["radio"]["languages"] == 2 and parts["radio"]["lacking"] == ["l2"]
    assert parts["phone"]["act_cprimary"] is None and parts["phone"]["accuracy"] is not None
    rows = truth < 2
    ratios = detection.llr(scores)[rows][:, :2]  # against all languages
    costs = [detection.average_cost(ratios > np.log(b), truth[rows], b)[0] for b in (1, 9)]
    assert parts["radio"]["act_cprimary"] == pytest.approx(np.mean(costs))


def test_all_segments_of_a_source_are_drawn_together():
    scores, truth = case(np.random.default_rng(10), 60, 2)
    sources = {f"s{i}": f"{i % 3}" for i in range(60)}
    options = ScoreOptions(bootstrap=20, resample="sources")
    result = run(scores, truth, options, sources=sources)
    assert result["resampled"] == "sources" and result["units"] == 6
    with pytest.raises(ValueError, match="resampling sources needs a map"):
        run(scores, truth, options)
    with pytest.raises(ValueError, match="there is no source of segment 's7'"):
        run(scores, truth, options, sources={k: v for k, v in sources.items() if k != "s7"})


@pytest.mark.parametrize("value", ["x", "0", "-1", "nan", "inf"])
def test_a_duration_must_be_seconds(value):
    durations = {f"s{i}": "2.5" for i in range(7)} | {"s3": value}
    with pytest.raises(ValueError, match=f"segment 's3' has the duration '{value}'; expected seconds"):
        run(GOLDEN, TRUTH, durations=durations)
    with pytest.raises(ValueError, match="no duration of segment 's0'"):
        run(GOLDEN, TRUTH, durations={})


def test_duration_bins():
    ids = list("abcd")
    found = groups.duration_bins(ids, dict(zip(ids, ("4.99", "5", "20", "900"), strict=True)), (5.0, 20.0), "x")
    assert found[1].tolist() == [0, 1, 2, 2] and found[2] == ["below 5 s", "5 to 20 s", "20 s or more"]
    assert groups.duration_bins(["a"], {"a": "1"}, (), "x")[2] == ["all"]
    with pytest.raises(ValueError, match="each edge must be above the one before"):
        ScoreOptions(durations=(5, 5))


def test_det_points_are_operating_points_and_few():
    rng = np.random.default_rng(11)
    scores, truth = case(rng, 3000, 4)
    curve = Trials(detection.llr(scores), truth).pooled()["balanced"]
    det = curves.det(curve, 60)
    assert 30 <= len(det["threshold"]) <= 60
    known = {(float(f"{f:.6g}"), float(f"{m:.6g}")) for f, m in zip(curve.p_fa, curve.p_miss, strict=True)}
    assert set(zip(det["p_fa"], det["p_miss"], strict=True)) <= known
    assert det["p_fa"] == sorted(det["p_fa"], reverse=True) and det["p_miss"] == sorted(det["p_miss"])
    for beta in (1, 9):  # the hull's corners are among them, if they are few
        best = (np.array(det["p_miss"]) + beta * np.array(det["p_fa"])).min()
        assert best == pytest.approx((curve.p_miss + beta * curve.p_fa).min(), abs=1e-3)
    small = curves.det(Trials(detection.llr(GOLDEN), TRUTH).pooled()["balanced"])
    assert len(small["threshold"]) <= 7


def test_reliability_of_calibrated_and_of_overconfident_scores():
    rng = np.random.default_rng(12)
    posterior = rng.dirichlet(np.ones(3) / 2, size=20_000)
    truth = (rng.random(20_000)[:, None] > posterior.cumsum(axis=1)).sum(axis=1).clip(max=2)
    result = run(np.log(posterior), truth)["reliability"]
    assert sum(result["segments"]) == 20_000 and len(result["segments"]) <= BINS
    assert result["ece"] < 0.02
    assert run(5 * np.log(posterior), truth)["reliability"]["ece"] > 0.1


def test_everything_is_json_and_the_text_shows_the_main_ones():
    scores, truth = case(np.random.default_rng(13), 60, 3)
    durations = {f"s{i}": str(1 + i) for i in range(60)}
    result = run(scores, truth, ScoreOptions(bootstrap=20), durations=durations, sources=dict.fromkeys(durations, "a"))
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    lines = "\n".join(text.lid_lines(result))
    for shown in ("Cllr ", "C_avg as in LRE07 at P = 0.5", "worst pairs", "below 5 s", "source  segments"):
        assert shown in lines


def test_many_languages_have_no_matrix_on_the_terminal():
    scores, truth = case(np.random.default_rng(14), 60, 25)
    lines = text.lid_lines(run(scores, truth))
    assert lines[-1] == "(--json has the confusions of all 25 languages)"


def test_infinite_ratios_leave_finite_json(monkeypatch):
    scores = np.where(np.eye(3)[TRUTH] > 0, 0.0, -np.inf)
    result = run(scores, TRUTH)
    assert result["cllr"] == 0 and result["detection_cllr"] == {"actual": 0, "minimum": 0}
    json.dumps(result, allow_nan=False)
    scores[0] = [-np.inf, 0, -np.inf]  # certain, and wrong
    for few in (True, False):
        monkeypatch.setattr(evaluation, "EXACT", 1000 if few else 0)
        wrong = run(scores, TRUTH, ScoreOptions(bootstrap=20), sources={f"s{i}": "a" for i in range(7)})
        assert wrong["cllr"] is None and wrong["interval"]["cllr"] is None
        assert wrong["detection_cllr"]["actual"] is None and wrong["interval"]["accuracy"] is not None
        json.dumps(wrong, allow_nan=False)
        assert "Cllr infinite bits" in text.lid_lines(wrong)[5]


def test_survey_of_ties_divides_the_decision():
    found = Survey.of(np.zeros((3, 3)), np.arange(3), (1.0,))
    assert found.tied == 3 and found.confusion == pytest.approx(np.full((3, 3), 1 / 3))
