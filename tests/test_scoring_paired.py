"""Paired bootstrap: agreement with brute force, behaviour without a difference, and what it refuses."""

import numpy as np
import pandas as pd
import pytest

from lowrank_speech.scoring import asr, bootstrap, lid, paired, utterances
from lowrank_speech.scoring.options import ScoreOptions

OPTIONS = ScoreOptions(bootstrap=399)


def table(wrong, words=10, speakers=None, characters=50) -> pd.DataFrame:
    """A recognition table with so many substitutions in each utterance."""
    n = len(wrong)
    frame = pd.DataFrame({"speaker": speakers or [""] * n, "language": "", "seconds": ""})
    frame = frame.assign(words=words, substitutions=wrong, characters=characters, char_substitutions=wrong)
    frame = frame.assign(**dict.fromkeys(["deletions", "insertions", "char_deletions", "char_insertions"], 0))
    return frame.set_index(pd.Index([f"u{i}" for i in range(n)], name="id"))


def difference(one, other, options=OPTIONS, seed=1, metric="wer"):
    return paired.differences(paired.resample(one, options, seed), paired.resample(other, options, seed))[metric]


def test_difference_interval_and_p_are_those_of_drawing_by_hand():
    rng = np.random.default_rng(3)
    speakers = [f"s{i % 7}" for i in range(40)]
    words = rng.integers(3, 15, size=40)
    a, b = rng.integers(0, 3, size=40), rng.integers(0, 3, size=40)
    found = difference(table(a, words, speakers), table(b, words, speakers))
    units, _ = bootstrap.units_of(list(range(40)), dict(enumerate(speakers)), "auto")
    drawn = []
    for weights in np.concatenate(list(bootstrap.weights(units, 399, 1))):
        # An utterance that is drawn n times counts n times, on both sides.
        chosen = np.repeat(np.arange(40), weights.astype(int))
        drawn.append(a[chosen].sum() / words[chosen].sum() - b[chosen].sum() / words[chosen].sum())
    drawn = np.array(drawn)
    assert (found.unit, found.units, found.utterances, found.bootstrap) == ("speakers", 7, 40, 399)
    assert found.difference == pytest.approx(a.sum() / words.sum() - b.sum() / words.sum())
    assert found.interval == pytest.approx([np.sort(drawn)[9], np.sort(drawn)[-10]])  # 2.5 % of 400 on each side
    tail = min((drawn <= 1e-12).sum(), (drawn >= -1e-12).sum())
    assert found.p == pytest.approx(min(1, 2 * (1 + tail) / 400))


def test_equal_systems_are_not_told_apart_and_swapping_mirrors():
    a, b = table([1, 0, 2, 1] * 10), table([0, 1, 1, 1] * 10)
    same = difference(a, a.copy())
    assert (same.difference, same.interval, same.p, same.decided, same.better) == (0, [0, 0], 1, False, False)
    one, other = difference(a, b), difference(b, a)
    assert one.difference == -other.difference and one.p == other.p
    assert one.interval == [-end for end in reversed(other.interval)]


def test_a_pair_sees_what_two_intervals_do_not():
    """Utterances that are hard for both do not hide that one system has an error more in most of them."""
    hard = np.random.default_rng(1).integers(0, 8, size=60)
    a, b = table(hard + (np.arange(60) % 4 > 0)), table(hard)
    one, other = (paired.resample(t, OPTIONS, 1) for t in (a, b))
    (_, high), (low, _) = (bootstrap.interval(s.draws["wer"], 0.95) for s in (other, one))
    assert low < high  # they overlap
    found = difference(a, b)
    assert found.decided and found.p == 2 / 400 and not found.better


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
def test_the_interval_excludes_0_exactly_if_p_is_small(confidence):
    options = ScoreOptions(bootstrap=99, confidence=confidence)
    rng, decided = np.random.default_rng(0), 0
    for seed in range(60):
        lean = rng.random()
        a, b = (table((rng.random(30) < share).astype(int)) for share in (0.3, 0.3 + 0.4 * lean))
        found = difference(a, b, options, seed)
        assert found.decided == (found.p <= 1 - confidence + 1e-12)
        decided += found.decided
    assert 5 < decided < 55
    # 38 resamples have no p <= 0.05, so there is no interval of 95 % to speak of.
    assert difference(a, b, ScoreOptions(bootstrap=38)).interval is None
    assert difference(a, b, ScoreOptions(bootstrap=39)).interval is not None


def null(speakers: int, each: int, runs: int, draws: int) -> np.ndarray:
    """p-values of two systems that are equally good: each word error of an utterance or a speaker falls on either."""
    found, rng = [], np.random.default_rng(speakers)
    names = [f"s{i // each}" for i in range(speakers * each)]
    for seed in range(runs):
        # What is hard for a speaker is hard for both, but each system has its own trouble with him as well.
        rates = np.repeat(np.clip(0.2 + 0.1 * rng.normal(size=speakers), 0, 1), each)
        own = [np.clip(rates + np.repeat(0.05 * rng.normal(size=speakers), each), 0, 1) for _ in range(2)]
        a, b = (table(rng.binomial(10, rate), speakers=names) for rate in own)
        found.append(difference(a, b, ScoreOptions(bootstrap=draws), seed).p)
    return np.array(found)


def test_p_values_of_equal_systems_are_uniform():
    p = null(speakers=60, each=2, runs=300, draws=199)
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        share, deviation = (p <= level).mean(), (level * (1 - level) / len(p)) ** 0.5
        assert abs(share - level) < 3.5 * deviation + 0.01, (level, share)


def test_language_costs_are_those_of_the_scorer():
    rng, names = np.random.default_rng(0), ["de", "en", "es"]
    ids = [f"s{i}" for i in range(60)]
    labels = dict(zip(ids, [names[i % 3] for i in range(58)] + ["es", "es"], strict=True))
    systems = []
    for noise in (0.8, 1.6):
        scores = 2 * np.eye(3)[[names.index(labels[i]) for i in ids]] + noise * rng.normal(size=(60, 3))
        found = lid.score(ids, names, scores, labels, OPTIONS, 1)
        frame = utterances.of_languages(ids, names, scores, labels, OPTIONS)
        frame = frame.assign(speaker="", language=[labels[i] for i in ids])
        system = paired.resample(frame, OPTIONS, 1)
        for metric in ("accuracy", "act_cprimary"):
            assert system.values[metric] == pytest.approx(found[metric])
            # The same resamples: within each language.
            assert bootstrap.interval(system.draws[metric], 0.95) == pytest.approx(found["interval"][metric])
        systems.append(system)
    found = paired.differences(*systems)
    assert found["accuracy"].better and found["act_cprimary"].better
    assert found["accuracy"].difference > 0 > found["act_cprimary"].difference


def test_intervals_of_one_system_are_those_of_the_scorer():
    rng = np.random.default_rng(0)
    pairs = {f"u{i}": (["a"] * 5, list(rng.choice(["a", "b"], size=5))) for i in range(30)}
    frame = asr.per_utterance(pairs).assign(speaker="", language="")
    system, scored = paired.resample(frame, OPTIONS, 4), asr.score(pairs, OPTIONS, 4)
    for metric in ("wer", "cer"):
        assert system.values[metric] == pytest.approx(scored[metric])
        assert bootstrap.interval(system.draws[metric], 0.95) == pytest.approx(scored["interval"][metric])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.iloc[1:], "X decoded 1 utterances that Y did not: 'u0'; a paired test needs the same utterances"),
        (lambda t: t.rename(index={"u0": "w0"}), "X decoded 1 utterances that Y did not: 'u0'"),
        (
            lambda t: t.assign(words=[9, *t["words"][1:]]),
            "'u0' has words 10 in X, but 9 in Y; score both against the same",
        ),
        (lambda t: t.assign(characters=7), "'u0' has characters 50 in X, but 7 in Y"),
        (lambda t: t.assign(speaker="s"), "'u0' has speaker  in X, but s in Y"),
        (lambda t: t.iloc[::-1], "different orders"),
        (lambda t: t.assign(right=1.0, cost=0.0, language="de"), "different types of task"),
    ],
)
def test_what_cannot_be_paired_is_named(change, match):
    one = table([1] * 6)
    systems = [paired.resample(t, OPTIONS, 1) for t in (one, change(one.copy()))]
    with pytest.raises(ValueError, match=match):
        paired.differences(*systems, names=("X", "Y"))


def test_other_resamples_cannot_be_paired():
    one = table([1, 2, 0] * 3)
    for other, match in (
        (paired.resample(one, ScoreOptions(bootstrap=100), 1), "score.bootstrap is 399 for X, but 100 for Y"),
        (paired.resample(one, OPTIONS, 2), "X was scored with seed 1, Y with 2"),
    ):
        with pytest.raises(ValueError, match=match):
            paired.differences(paired.resample(one, OPTIONS, 1), other, names=("X", "Y"))


def test_one_unit_has_no_test():
    found = difference(table([1, 2], speakers=["s", "s"]), table([0, 2], speakers=["s", "s"]))
    assert (found.difference, found.interval, found.p, found.decided) == (pytest.approx(0.05), None, None, None)


def test_other_token_sets_are_not_compared():
    tokens = dict.fromkeys(utterances.TOKENS[1:], 1)
    one, same, other = (table([1, 0, 1]).assign(tokens=n, **tokens) for n in (12, 12, 30))
    assert "ter" in paired.differences(*(paired.resample(t, OPTIONS, 1) for t in (one, same)))
    assert "ter" not in paired.differences(*(paired.resample(t, OPTIONS, 1) for t in (one, other)))


HEADER = "id\tspeaker\tlanguage\tseconds\twords\tsubstitutions\tdeletions\tinsertions\tcharacters\tchar_substitutions"
HEADER += "\tchar_deletions\tchar_insertions\n"
ROW = "\ts\ten\t1.5\t3\t1\t0\t0\t9\t1\t0\t0\n"


def test_a_table_is_read_as_it_was_written(tmp_path):
    (tmp_path / "t.tsv").write_text(HEADER + 'NA"' + ROW + "null\t\t\t" + ROW.split("\t", 3)[3])
    found = utterances.read(tmp_path / "t.tsv", "asr")
    assert list(found.index) == ['NA"', "null"] and list(found["speaker"]) == ["s", ""]
    assert found["words"].tolist() == [3, 3]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "does not exist; run the stage score again"),
        ("", "is not a table of utterances"),
        ("id\twords\n", "has no column 'speaker'"),
        (HEADER, "has no utterance"),
        (HEADER + "a" + ROW + "a" + ROW, "utterance 'a' occurs twice"),
        (HEADER + "a" + ROW.replace("\t3\t", "\tx\t"), "the column 'words' has a value that is not a number"),
        (HEADER + "a" + ROW.replace("\n", "\t5\t6\n"), "has a line with more fields than its header"),
        (HEADER + "a" + ROW.replace("\t0\t0\n", "\n"), "'char_deletions' has a value that is not a number"),
    ],
)
def test_a_broken_table_is_named(tmp_path, text, match):
    path = tmp_path / "t.tsv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=match) as error:
        utterances.read(path, "asr")
    assert str(path) in str(error.value)
