"""Scoring of many trials: the same values as all thresholds, resamples within the stated error, fast reading."""

import numpy as np
import pytest

from lowrank_speech.scoring import detection, files, grid, lid, per_language, survey, tables
from lowrank_speech.scoring.evaluation import METRICS, Evaluation, LargeEvaluation
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.scoring.survey import Survey
from lowrank_speech.scoring.trials import Trials, eer

OTHER = {"minimum": "per-language", "eer_over": "languages"}


def case(rng, s, n, separation=2.0, ties=False):
    truth = np.concatenate([np.arange(n), rng.integers(n, size=s - n)])
    scores = rng.normal(size=(s, n)) * 2
    scores[np.arange(s), truth] += separation
    return (np.round(scores) if ties else scores), truth


@pytest.mark.parametrize("ties", [False, True])
def test_operating_points_at_target_trials_have_all_minima_and_eers(ties):
    rng = np.random.default_rng(1)
    for _ in range(60):
        n = int(rng.integers(2, 5))
        scores, truth = case(rng, int(rng.integers(n, 25)), n, 1.0, ties)
        ratios = detection.llr(scores)
        trials = Trials(ratios, truth)
        balanced, equal = detection.segment_weights(truth, n, None), np.ones((1, len(truth)))
        curves = [(None, trials.pooled())]
        singles = trials.singles()
        curves += [(i, {kind: singles[kind][i] for kind in singles}) for i in range(n)]
        for column, found in curves:
            sweep = detection.Sweep.of(ratios, truth, None if column is None else np.array([column]))
            for beta in (0.1, 1, 9):
                expected = detection.minimum_cost(*sweep.points(balanced), beta)
                assert detection.minimum_cost(*found["balanced"].points, beta) == pytest.approx(expected)
            assert eer(found["equal"]) == pytest.approx(detection.eer_rocch(*sweep.points(equal))[0])
            columns = None if column is None else range(column, column + 1)
            nearest = detection.eer_nearest(*sweep.points(equal))[0]
            assert trials.eer_nearest(found["equal"], columns) == pytest.approx(nearest)


@pytest.mark.parametrize("options", [{}, OTHER, {"eer": "nearest"}, {**OTHER, "eer": "nearest"}])
def test_values_of_both_evaluations_are_equal(options):
    options = ScoreOptions(bootstrap=0, **options)
    scores, truth = case(np.random.default_rng(2), 300, 6)
    found = Survey.of(scores, truth, options.betas)
    few, many = Evaluation(found, options), LargeEvaluation(found, options)
    assert many.metrics() == pytest.approx(few.metrics())
    assert many.eers("rocch") == pytest.approx(few.eers("rocch"))


def drawn(many, units, number, seed):
    """The weights (B, S) of the resamples of the grid."""
    weights = np.empty((number, len(many.truth)))
    for j, unit in enumerate(grid.Units.of(many.trials, units)):
        counts = np.concatenate(list(grid.draws(unit, j, number, seed)))
        weights[:, many.trials.order[many.trials.rows[j]]] = counts[:, unit.unit]
    return weights


@pytest.mark.parametrize("speakers", [0, 60])
@pytest.mark.parametrize("separation", [1.0, 4.0])
def test_the_grid_is_within_its_bound_and_moves_no_end_by_3_percent(speakers, separation):
    rng = np.random.default_rng(3)
    scores, truth = case(rng, 2000, 8, separation)
    options = ScoreOptions(bootstrap=100)
    units = rng.integers(speakers, size=2000) if speakers else np.arange(2000)
    found = Survey.of(scores, truth, options.betas)
    few, many = Evaluation(found, options), LargeEvaluation(found, options)
    values, bound = many.resampled(units, 1)
    weights = drawn(many, units, 100, 1)
    assert (weights.sum(axis=1) == 2000).all() or speakers
    exact = np.concatenate([few.metrics(block) for block in np.split(weights, 10)])
    for name in ("accuracy", "macro_accuracy", "act_cprimary", "cllr"):  # no threshold: only float32
        assert values[:, METRICS.index(name)] == pytest.approx(exact[:, METRICS.index(name)], rel=1e-5)
    for name in ("min_cprimary", "eer"):
        k = METRICS.index(name)
        above = values[:, k] - exact[:, k]
        assert above.min() > -1e-6 and above.max() <= bound[name] + 1e-6
        ends = np.quantile(np.stack([values[:, k], exact[:, k]]), [0.025, 0.975], axis=1)
        assert np.abs(ends[:, 0] - ends[:, 1]).max() < 0.03 * np.ptp(ends[:, 1])


@pytest.mark.parametrize("kind, tolerance", [("rocch", 1e-9), ("nearest", 2e-3)])
def test_a_threshold_per_language_is_resampled_exactly(kind, tolerance, monkeypatch):
    scores, truth = case(np.random.default_rng(4), 800, 5)
    options = ScoreOptions(bootstrap=30, eer=kind, **OTHER)
    found = Survey.of(scores, truth, options.betas)
    few, many = Evaluation(found, options), LargeEvaluation(found, options)
    exact = few.metrics(drawn(many, np.arange(800), 30, 1))[:, 3:5]
    for window in (per_language.WINDOW, 0):  # all thresholds, and only those near the best
        monkeypatch.setattr(per_language, "WINDOW", window)
        values, bound = many.resampled(np.arange(800), 1)
        assert values[:, 3] == pytest.approx(exact[:, 0], abs=1e-9)
        assert values[:, 4] == pytest.approx(exact[:, 1], abs=tolerance)
        assert not bound


def test_the_size_of_blocks_changes_nothing(monkeypatch):
    scores, truth = case(np.random.default_rng(5), 400, 4)
    options = ScoreOptions(bootstrap=20)
    found = Survey.of(scores, truth, options.betas)
    many = LargeEvaluation(found, options)
    values, _ = many.resampled(np.arange(400), 1)
    monkeypatch.setattr(grid, "DRAWS", 700)
    monkeypatch.setattr(grid, "UNITS", 30)
    monkeypatch.setattr(survey, "BLOCK", 100)
    again = LargeEvaluation(Survey.of(scores, truth, options.betas), options)
    assert again.metrics() == pytest.approx(many.metrics())
    assert again.survey.confusion.tolist() == found.confusion.tolist()
    assert again.resampled(np.arange(400), 1)[0] == pytest.approx(values, rel=1e-5)
    assert again.resampled(np.arange(400), 2)[0] != pytest.approx(values, rel=1e-5)


def test_score_is_the_same_on_both_sides_of_the_limit(monkeypatch):
    """All of score.json; intervals differ by the draws, since each side has its own stream."""
    from lowrank_speech.scoring import evaluation, pairs

    rng = np.random.default_rng(6)
    scores, truth = case(rng, 1000, 5)
    ids, languages = [f"s{i}" for i in range(1000)], [f"l{i}" for i in range(5)]
    labels = {name: languages[t] for name, t in zip(ids, truth, strict=True)}
    durations = {name: f"{rng.uniform(1, 40):.2f}" for name in ids}

    def run():
        return lid.score(ids, languages, scores, labels, ScoreOptions(bootstrap=200), 1, durations=durations)

    few = run()
    monkeypatch.setattr(evaluation, "EXACT", 0)
    monkeypatch.setattr(survey, "DOUBLE", 0)
    monkeypatch.setattr(pairs, "SINGLE", 0)
    many = run()
    assert few["grid_error"] is None and set(many["grid_error"]) == {"min_cprimary", "eer"}
    assert few["confusion"] == many["confusion"] and few["accepted"] == many["accepted"]
    assert few["chance"] == many["chance"] and few["segments"] == many["segments"]
    for one, other in zip(numbers(few), numbers(many), strict=True):
        assert one == pytest.approx(other, abs=2e-3 if one > 1e-3 else 2e-4)
    for name in METRICS:
        width = np.ptp(few["interval"][name])
        assert np.abs(np.subtract(few["interval"][name], many["interval"][name])).max() < 0.3 * width


def numbers(result):
    """All numbers of a result but intervals and points to draw."""
    leave = {"interval", "grid_error", "det", "reliability", "confusion", "accepted", "worst", "chance"}
    if isinstance(result, dict):
        return [v for key, value in result.items() if key not in leave for v in numbers(value)]
    if isinstance(result, list):
        return [v for value in result for v in numbers(value)]
    return [result] if isinstance(result, float) else []


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file that counts as large."""
    monkeypatch.setattr(tables, "LARGE", 0)
    monkeypatch.setattr(tables, "BLOCK", 64)  # several blocks

    def write(data):
        path = tmp_path / "file"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def careful(read, path, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(tables, "LARGE", 1 << 40)
        try:
            return read(path), None
        except ValueError as error:
            return None, str(error)


ROWS = "".join(f"s{i}\t{-i / 7:.6f}\t-inf\t{i}e-3\n" for i in range(40))


@pytest.mark.parametrize(
    "data, fast",
    [
        ("id\ten\tde\tfr\n" + ROWS, True),
        ("id\ten\tde\tfr\n" + ROWS.rstrip("\n"), True),
        (("id\ten\tde\tfr\n" + ROWS).replace("\n", "\r\n"), True),
        (b"\xef\xbb\xbf" + ("id\ten\tde\tfr\n" + ROWS).encode(), True),
        ("id\ten\tde\tfr\n" + ROWS.replace("s5\t", 's"5é\t'), True),
        ("id\ten\tde\tfr\n" + ROWS.replace("s5\t", "s6\t"), False),
        ("id\ten\tde\tfr\n" + ROWS.replace("s5\t", " s5\t"), False),
        ("id\ten\tde\tfr\n" + ROWS.replace("-inf", "nan"), False),
        ("id\ten\tde\tfr\n" + ROWS.replace("\t5e-3", "\t"), False),
        ("id\ten\tde\tfr\n" + ROWS.replace("\t5e-3", "\tx"), False),
        ("id\ten\tde\tfr\n" + ROWS.replace("\t5e-3", "\t5_0"), False),
        ("id\ten\tde\tfr\n" + ROWS.replace("\t5e-3", ""), False),
        ("id\ten\tde\tfr\n" + ROWS.replace("\t5e-3", "").replace("\t7e-3", "\t7e-3\t1"), False),
        ("id\ten\tde\tfr\n\n" + ROWS, False),
        ("id\ten\tde\tfr\n" + ROWS.replace("s5\t", "s\r5\t"), False),
        (("id\ten\tde\tfr\n" + ROWS).encode().replace(b"s5\t", b"s\xff\t"), False),
        (("id\ten\tde\tfr\n" + ROWS).replace("\t", " "), False),
        ("id\ten\ten\tfr\n" + ROWS, False),
        (ROWS, None),  # without header: refused, however it is read
        ("id\ten\tde\tfr\n", False),
        ("", False),
    ],
)
def test_large_tables_are_read_as_small_ones(write, monkeypatch, data, fast):
    path = write(data)
    expected, error = careful(files.read_scores, path, monkeypatch)
    plain = tables.scores(path)
    if fast is not None:
        assert (plain is not None) == fast
    if error is not None:
        with pytest.raises(ValueError) as raised:
            files.read_scores(path)
        assert str(raised.value) == error
        return
    found = files.read_scores(path)
    assert found[:2] == expected[:2]
    assert np.array_equal(found[2], expected[2], equal_nan=True)


@pytest.mark.parametrize(
    "data, fast",
    [
        ("".join(f"s{i}\tl{i % 3}\n" for i in range(40)), True),
        ("id\tlanguage\n" + "".join(f"s{i}\tl{i % 3}\n" for i in range(40)), True),
        ("".join(f"s{i % 39}\tl{i % 3}\n" for i in range(40)), False),
        ("".join(f"s{i}\tl {i % 3}\n" for i in range(40)), True),
        ("".join(f"s{i} l{i % 3}\n" for i in range(40)), False),
        ("a\tb\tc\n", False),
    ],
)
def test_large_maps_are_read_as_small_ones(write, monkeypatch, data, fast):
    path = write(data)
    expected, error = careful(files.read_map, path, monkeypatch)
    assert (tables.mapping(path, frozenset(files.HEADERS), files.IDS) is not None) == fast
    if error is None:
        assert files.read_map(path) == expected
    else:
        with pytest.raises(ValueError) as raised:
            files.read_map(path)
        assert str(raised.value) == error
