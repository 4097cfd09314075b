"""WER and CER: hand-made cases and a brute-force Levenshtein distance."""

import json
import random

import numpy as np
import pytest

from lowrank_speech.scoring import asr, text
from lowrank_speech.scoring.options import ScoreOptions

QUICK = ScoreOptions(bootstrap=200)
REF = {"a": "the cat sat on the mat", "b": "hello world", "c": "yes", "d": ""}
HYP = {"a": "the cat sat at mat", "b": "hello big world", "c": "yes", "d": ""}


def pairs(ref, hyp, **kwargs):
    return asr.pair({k: v.split() for k, v in ref.items()}, {k: v.split() for k, v in hyp.items()}, **kwargs)


def distance(a, b):
    """Levenshtein by its definition."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return distance(a[1:], b[1:])
    return 1 + min(distance(a[1:], b[1:]), distance(a[1:], b), distance(a, b[1:]))


def test_golden():
    result = asr.score(pairs(REF, HYP), QUICK, seed=1)
    # a: on -> at, one "the" deleted; b: "big" inserted
    assert [result[k] for k in ("words", "substitutions", "deletions", "insertions")] == [9, 1, 1, 1]
    assert result["wer"] == 3 / 9
    assert result["utterances"] == 4 and result["utterances_wrong"] == 2 and result["ser"] == 0.5
    assert result["empty_references"] == 1
    assert result["confusions"] == {
        "substitutions": [["on", "at", 1]],
        "deletions": [["the", 1]],
        "insertions": [["big", 1]],
    }
    assert [w["id"] for w in result["worst"]] == ["a", "b"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_characters_with_and_without_spaces():
    two = pairs({"a": "ab cd"}, {"a": "abcd"})
    kept = asr.score(two, QUICK, 1)
    assert (kept["characters"], kept["char_deletions"], kept["cer"]) == (5, 1, 1 / 5)
    removed = asr.score(two, ScoreOptions(bootstrap=0, characters="without-spaces"), 1)
    assert (removed["characters"], removed["cer"], removed["wer"]) == (4, 0.0, 1.0)


def test_code_points_are_characters():
    result = asr.score(pairs({"a": "été 東京"}, {"a": "ete 東"}), QUICK, 1)
    assert result["characters"] == 6
    assert (result["char_substitutions"], result["char_deletions"]) == (2, 1)


def test_against_brute_force():
    rng = random.Random(0)
    for _ in range(300):
        ref = [rng.choice("abc") for _ in range(rng.randrange(6))]
        hyp = [rng.choice("abc") for _ in range(rng.randrange(6))]
        n, substitutions, deletions, insertions = asr.count(ref, hyp)
        assert n == len(ref)
        assert substitutions + deletions + insertions == distance(ref, hyp)
        assert insertions - deletions == len(hyp) - len(ref)
        found = asr.align(ref, hyp)
        assert [r for r, _ in found if r] == ref and [h for _, h in found if h] == hyp
        assert sum(r != h for r, h in found) == distance(ref, hyp)


def test_identities():
    rng = random.Random(1)
    ref = {str(i): " ".join(rng.choices("abcd", k=rng.randrange(1, 7))) for i in range(20)}
    assert asr.score(pairs(ref, ref), QUICK, 1)["wer"] == 0
    empty = asr.score(pairs(ref, dict.fromkeys(ref, "")), QUICK, 1)
    assert empty["wer"] == empty["cer"] == 1 and empty["deletions"] == empty["words"]
    hyp = {k: " ".join(rng.choices("abcd", k=4)) for k in ref}
    one, other = asr.score(pairs(ref, hyp), QUICK, 1), asr.score(pairs(hyp, ref), QUICK, 1)
    errors = ("substitutions", "deletions", "insertions")
    assert sum(one[e] for e in errors) == sum(other[e] for e in errors)


def test_empty_reference_counts_insertions_and_no_words():
    result = asr.score(pairs({"a": "x", "b": ""}, {"a": "x", "b": "y z"}), QUICK, 1)
    assert (result["words"], result["insertions"], result["wer"]) == (1, 2, 2.0)
    assert result["worst"][0]["wer"] is None


@pytest.mark.parametrize(
    "ref, hyp, match",
    [
        ({}, {"a": "x"}, "REF: there is no utterance"),
        ({"a": "x"}, {"a": "x", "b": "y"}, "HYP: utterance 'b' has no reference in REF"),
        ({"a": "x", "b": "y", "c": "z"}, {"a": "x"}, r"HYP: no hypothesis for utterance 'b' \(and 1 more\)"),
        ({"a": "", "b": ""}, {"a": "x", "b": ""}, "REF: all 2 references are empty"),
    ],
)
def test_pair_errors(ref, hyp, match):
    with pytest.raises(ValueError, match=match):
        pairs(ref, hyp, names=("REF", "HYP"))


def test_missing_as_empty():
    result = asr.score(pairs({"a": "x y", "b": "z"}, {"b": "z"}, missing_as_empty=True), QUICK, 1)
    assert (result["words"], result["deletions"]) == (3, 2)


def test_order_of_ids_changes_nothing():
    backwards = {k: REF[k] for k in reversed(REF)}
    a, b = asr.score(pairs(REF, HYP), QUICK, 1), asr.score(pairs(backwards, HYP), QUICK, 1)
    assert {k: a[k] for k in asr.COUNTS[:8]} == {k: b[k] for k in asr.COUNTS[:8]}


def corpus(n, rate, seed):
    """n utterances of 10 words, each word wrong with probability ``rate``."""
    rng = np.random.default_rng(seed)
    wrong = rng.random((n, 10)) < rate
    ref = {f"u{i}": "w " * 10 for i in range(n)}
    return ref, {f"u{i}": " ".join("v" if x else "w" for x in wrong[i]) for i in range(n)}


def test_interval_is_that_of_independent_words():
    result = asr.score(pairs(*corpus(400, 0.2, 0)), ScoreOptions(), 1)
    low, high = result["interval"]["wer"]
    half = 1.96 * (0.2 * 0.8 / 4000) ** 0.5
    assert low < result["wer"] < high
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    options = ScoreOptions(bootstrap=200, confidence=0.9)
    inside = 0
    for seed in range(60):
        low, high = asr.score(pairs(*corpus(60, 0.2, seed)), options, seed)["interval"]["wer"]
        inside += low <= 0.2 <= high
    assert 46 <= inside <= 60


def test_speakers_widen_the_interval_where_they_differ():
    ref = {f"u{i}": "a b c d" for i in range(100)}
    hyp = {f"u{i}": "a b c d" if i < 50 else "a b x x" for i in range(100)}
    speakers = {f"u{i}": f"s{i // 10}" for i in range(100)}
    alone = asr.score(pairs(ref, hyp), QUICK, 1)
    together = asr.score(pairs(ref, hyp), QUICK, 1, speakers=speakers)
    assert alone["wer"] == together["wer"] == 0.25
    assert (alone["resampled"], alone["units"]) == ("utterances", 100)
    assert (together["resampled"], together["units"]) == ("speakers", 10)

    def width(r):
        return r["interval"]["wer"][1] - r["interval"]["wer"][0]

    assert width(together) > 2 * width(alone)
    assert together["by_speaker"]["s9"]["wer"] == 0.5


def test_same_seed_same_interval():
    two = pairs(*corpus(30, 0.3, 0))
    a, b, c = (asr.score(two, QUICK, seed)["interval"] for seed in (1, 1, 2))
    assert a == b != c


def test_no_interval_without_bootstrap_or_with_one_utterance():
    assert asr.score(pairs(REF, HYP), ScoreOptions(bootstrap=0), 1)["interval"]["wer"] is None
    assert asr.score(pairs({"a": "x"}, {"a": "y"}), QUICK, 1)["interval"]["wer"] is None


def test_by_language_adds_up():
    languages = {"a": "en", "b": "de", "c": "de", "d": "fr"}
    result = asr.score(pairs(REF, HYP), QUICK, 1, languages=languages)
    assert list(result["by_language"]) == ["de", "en", "fr"]
    for key in ("words", "insertions", "characters", "utterances"):
        assert sum(one[key] for one in result["by_language"].values()) == result[key]
    assert result["by_language"]["fr"]["wer"] is None  # one empty reference: nothing to divide by
    assert result["language_mean"]["wer"] == pytest.approx((2 / 6 + 1 / 3) / 2)
    with pytest.raises(ValueError, match="'d' has no language"):
        asr.score(pairs(REF, HYP), QUICK, 1, languages={"a": "en", "b": "de", "c": "de"})


def test_confusions_are_ranked():
    two = pairs({"a": "x x y z", "b": "x y"}, {"a": "p p q z", "b": "p q"})
    found = asr.confusions(two, most=2)
    assert found["substitutions"] == [["x", "p", 3], ["y", "q", 2]]
    assert found["deletions"] == found["insertions"] == []
    assert asr.confusions(two, most=1)["substitutions"] == [["x", "p", 3]]


def test_first_line_is_kaldis():
    result = asr.score(pairs(REF, HYP), ScoreOptions(bootstrap=0), 1)
    lines = text.asr_lines(result)
    assert lines[0] == "%WER 33.33 [ 3 / 9, 1 ins, 1 del, 1 sub ]"
    assert lines[2] == "%SER 50.00 [ 2 / 4 ]"
    assert lines[3] == "Scored 4 utterances, 0 not present in hyp."
    result = asr.score(pairs(REF, HYP), QUICK, 1)
    low, high = result["interval"]["wer"]
    assert text.asr_lines(result)[0].endswith(f"sub ] [ 95% interval {100 * low:.2f} - {100 * high:.2f} ]")
