"""Prefix beam search: equal to exhaustive search, to greedy with beam 1, independent of the batch."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lowrank_speech.decoding.ctc import beam
from lowrank_speech.decoding.ctc.fusion import Memo, Units, Words
from lowrank_speech.decoding.ctc.prefixes import Limits, search
from lowrank_speech.decoding.ctc.spelling import spellings
from lowrank_speech.decoding.ctc.trie import Trie
from lowrank_speech.errors import UserError
from tiny_ctc import Bigrams, characters, collapsed, emissions, exhaustive

ALL = Limits(beam=100_000, threshold=1e9)


def occurrences(text, phrase):
    words, wanted = text.split(), phrase.split()
    return sum(words[i : i + len(wanted)] == wanted for i in range(len(words)))


def opened(lang, model=None, **keys):
    """The decoder, and its settings."""
    keys = {"lm": "x"} | keys if model is not None else keys
    settings = beam.Settings(**{"beam": 100_000, "beam_threshold": 1e9} | keys)
    source = SimpleNamespace(lang_sha256="tokens", folder="f", resources={} if model is None else {"lm": model})
    return beam.open(source, lang, settings), settings


def batch(*rows):
    """A batch of emissions (F, V)."""
    tensors = [torch.from_numpy(row) for row in rows]
    return {
        "log_probs": torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True),
        "frames": torch.tensor([len(row) for row in rows]),
        "frame_seconds": [0.02] * len(rows),
    }


def expected(lang, log_probs, model, settings):
    """Text -> score of its best label sequence, by exhaustive search and the definition of the score."""
    found = {}
    for labels, score in exhaustive(log_probs).items():
        text = lang.tokens.decode(labels)
        words = text.split()
        if model is not None:
            units = {
                "word": words,
                "character": list("|".join(words).replace("\ufffd", "?")),
                "token": ["<unk>" if label == 1 else str(label) for label in labels],
            }[model.unit]
            unknown = settings.unknown if model.unit == "word" else 0.0
            if settings.vocabulary == "closed" and not set(words) <= set(model.vocabulary):
                continue
            score += settings.lm_weight * model.sentence(units, unknown)
        score += settings.insertion * len(words)
        score += settings.hotword_weight * sum(occurrences(text, word) for word in settings.hotwords)
        found[text] = max(found.get(text, -np.inf), score)
    return found


def agrees(nbest, found):
    """The n-best list has the scores of ``found``, in order."""
    assert {h.text for h in nbest} == set(found)
    for hypothesis in nbest:
        assert hypothesis.score == pytest.approx(found[hypothesis.text], abs=1e-4)
    scores = [h.score for h in nbest]
    assert scores == sorted(scores, reverse=True)


def test_a_wide_beam_is_exhaustive_search():
    rng = np.random.default_rng(1)
    for frames, symbols in itertools.product(range(7), (2, 3, 4)):
        row = emissions(rng, frames, symbols)
        (found,) = search(row[None], np.array([frames]), ALL)
        truth = exhaustive(row)
        assert {labels for labels, _ in found} == set(truth) and len(found) == len(truth)
        assert all(score == pytest.approx(truth[labels], abs=1e-5) for labels, score in found)


CASES = {
    "nothing": (None, {}),
    "words": (Bigrams(["a", "ab", "bba"]), {"lm_weight": 0.7, "insertion": 0.4, "unknown": -3.0}),
    "a penalty for words": (Bigrams(["a", "ab", "bba"]), {"lm_weight": 2.0, "insertion": -1.3}),
    "closed words": (Bigrams(["a", "ab", "bba"]), {"vocabulary": "closed", "insertion": 1.0}),
    "closed words without weight": (Bigrams(["a", "ab", "bba"]), {"vocabulary": "closed", "lm_weight": 0.0}),
    "tokens": (Bigrams(["2", "3", "4"], "token"), {"lm_weight": 1.5, "insertion": 0.5}),
    "characters": (Bigrams(["|", "a", "b"], "character"), {"lm_weight": 0.9, "insertion": -0.5}),
    "insertion": (None, {"insertion": 2.0}),
    "hot words": (None, {"hotwords": ("ab", "b", "b a", "a b"), "hotword_weight": 1.7}),
    "all": (Bigrams(["a", "b"]), {"hotwords": ("ba", "a"), "insertion": 0.3, "lm_weight": 0.4, "unknown": -1.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_definition(case):
    model, keys = CASES[case]
    lang, rng = characters(), np.random.default_rng(2)
    decode, settings = opened(lang, model, nbest=100_000, **keys)
    rows = [emissions(rng, frames, 5) for frames in (6, 5, 1, 0)]
    for row, hypothesis in zip(rows, decode(batch(*rows)), strict=True):
        agrees(hypothesis.nbest, expected(lang, row, model, settings))
        assert hypothesis.text == hypothesis.nbest[0].text and hypothesis.score == hypothesis.nbest[0].score


def test_a_narrow_beam_finds_the_best_of_sharp_emissions_and_never_more_than_there_is():
    lang, rng, (model, keys) = characters(), np.random.default_rng(3), CASES["all"]
    narrow, settings = opened(lang, model, nbest=50, **keys, beam=40, beam_threshold=15.0)
    for _ in range(10):
        row = emissions(rng, 6, 5, scale=4.0)
        (hypothesis,) = narrow(batch(row))
        truth = expected(lang, row, model, settings)
        assert hypothesis.text == max(truth, key=truth.get)
        assert all(h.score <= truth[h.text] + 1e-4 for h in hypothesis.nbest)
        assert len({h.text for h in hypothesis.nbest}) == len(hypothesis.nbest)


def test_beam_1_is_greedy():
    rng = np.random.default_rng(4)
    rows = np.stack([emissions(rng, 40, 6) for _ in range(20)])
    found = search(rows, np.full(20, 40), Limits(beam=1))
    for row, ((labels, score), *more) in zip(rows, found, strict=True):
        assert labels == collapsed(row.argmax(-1)) and not more
        assert score == pytest.approx(float(row.max(-1).sum()), abs=1e-3)


@pytest.mark.parametrize("case", ["words", "tokens", "characters"])
@pytest.mark.parametrize("size", [1, 10, 100])
def test_a_model_without_weight_changes_nothing(case, size):
    model, lang, rng = CASES[case][0], characters(), np.random.default_rng(5)
    rows = [emissions(rng, frames, 5) for frames in (30, 20, 9)]
    plain, _ = opened(lang, None, beam=size, beam_threshold=25.0, nbest=5)
    weightless, _ = opened(lang, model, beam=size, beam_threshold=25.0, nbest=5, lm_weight=0.0)
    assert plain(batch(*rows)) == weightless(batch(*rows))
    # Nor does it if the search is led by its zeros.
    spelled = spellings(lang)
    scorer = Words(model, spelled, 0.0) if case == "words" else Units(model, spelled, 0.0, 1)
    stacked, frames = batch(*rows)["log_probs"].numpy(), np.array([30, 20, 9])
    assert search(stacked, frames, Limits(size), scorer) == search(stacked, frames, Limits(size))


@pytest.mark.parametrize("case", ["nothing", "all", "characters"])
def test_results_do_not_depend_on_the_batch(case):
    model, keys = CASES[case]
    lang, rng = characters(), np.random.default_rng(6)
    rows = [emissions(rng, int(frames), 5) for frames in rng.integers(0, 50, 12)]
    rows += [np.full((8, 5), -math.log(5), np.float32)] * 2  # nothing but ties
    decode, _ = opened(lang, model, **keys, beam=12, beam_threshold=12.0, token_beam=3, nbest=4)
    together = decode(batch(*rows))
    assert together == decode(batch(*rows))
    assert together == [decode(batch(row))[0] for row in rows]
    shuffled = rng.permutation(len(rows))
    again = decode(batch(*[rows[i] for i in shuffled]))
    assert [again[i] for i in np.argsort(shuffled)] == together


def test_nothing_to_hear_and_nothing_left():
    lang = characters()
    decode, _ = opened(lang, Bigrams(["a"]))
    empty = np.zeros((0, 5), np.float32)
    silent, broken = np.full((4, 5), -np.inf, np.float32), np.full((4, 5), np.nan, np.float32)
    short, lost, unknown = decode(batch(empty, silent, broken))
    assert (short.ids, short.text, short.stopped) == ((), "", None)
    assert lost == unknown and (lost.ids, lost.text, lost.score, lost.stopped) == ((), "", None, "nothing")
    # Only one word is allowed, and it is not there.
    closed, _ = opened(lang, Bigrams(["ba"]), vocabulary="closed")
    row = np.full((3, 5), -50.0, np.float32)
    row[:, 3] = -0.1
    row[:, :3] = row[:, 4] = -np.inf
    (hypothesis,) = closed(batch(row))
    assert (hypothesis.text, hypothesis.stopped) == ("", "nothing")


def test_symbols_of_a_frame_are_limited():
    rng = np.random.default_rng(7)
    row = emissions(rng, 6, 6, scale=0.5)
    (found,) = search(row[None], np.array([6]), Limits(100_000, 1e9, tokens=2))
    able = [set(np.argsort(-frame[1:])[:2] + 1) for frame in row]
    whole = exhaustive(row)
    for labels, score in found:
        assert score <= whole[labels] + 1e-5
        # Some alignment begins each label in a frame of whose best two it is.
        frame = 0
        for label in labels:
            frame = next(t for t in range(frame, 6) if label in able[t]) + 1
    assert 1 < len(found) < len(whole)


def test_a_lower_threshold_and_beam_keep_less():
    row = emissions(np.random.default_rng(8), 12, 5)
    sizes = [len(search(row[None], np.array([12]), limits)[0]) for limits in (Limits(64), Limits(8), Limits(64, 2.0))]
    assert sizes[0] == 64 or sizes[0] > 32
    assert sizes[1] <= 8 and sizes[2] < sizes[0]


def test_a_hot_word_is_found_that_would_be_lost():
    lang = characters("abc")
    row = np.full((5, 6), -9.0, np.float32)
    for frame, symbol in enumerate([3, 4, 2, 5, 4]):  # "ab cb"
        row[frame, symbol] = -0.1
    row[4, 3] = -1.5  # "ab ca" is less likely
    assert opened(lang)[0](batch(row))[0].text == "ab cb"
    assert opened(lang, hotwords=("CA!",), hotword_weight=3.0)[0](batch(row))[0].text == "ab ca"
    assert opened(lang, hotwords=("c",), hotword_weight=3.0)[0](batch(row))[0].text == "ab cb"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"hotwords": ("ab", "axb")},
            "decoder.hotwords: 'axb' cannot be written in the tokens of the model, which lack",
        ),
        ({"hotwords": ("?!",)}, "decoder.hotwords: nothing of '?!' is left after normalisation; remove it"),
        ({"vocabulary": "closed", "lm": "x"}, "closed allows the words of a word n-gram, but x is one of tokens"),
    ],
)
def test_what_the_tokens_cannot_do_is_refused(keys, message):
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        opened(characters(), Bigrams(["2"], "token") if "lm" in keys else None, **keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"beam": 0}, "beam is 0; it must be at least 1"),
        ({"lm_weight": -1}, "lm_weight is -1; it must be at least 0"),
        ({"lm_weight": 1e4}, "lm_weight is 10000.0; it must be at most 100"),
        ({"beam_threshold": 0}, "beam_threshold is 0; it must be above 0"),
        ({"unknown": 1}, "unknown is 1; it must be at most 0"),
        ({"vocabulary": "closed"}, "vocabulary is closed, but no lm is named"),
    ],
)
def test_settings_out_of_range_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        beam.Settings(**keys)


def test_spelling_steps_are_those_of_the_words():
    words = sorted([b"a", b"ab", b"abc", b"ba", "ä".encode()])
    spelled = [b"", b" ", b"a", b" ab", b"c", b"bc", "ä".encode(), b" "]
    trie = Trie(words, spelled)
    sparse = Trie(words, spelled)
    sparse._table = None
    nodes = np.arange(trie.outside + 1)
    prefixes = {0: b""}
    for node in range(1, trie.outside):
        prefixes[node] = prefixes[trie._parents[node]] + bytes([trie._bytes[node]])
    for token, text in enumerate(spelled):
        after = trie.step(nodes, np.full(len(nodes), token))
        assert (after == sparse.step(nodes, np.full(len(nodes), token))).all()
        for node in range(trie.outside):
            whole = prefixes[node] + text.strip()
            assert prefixes.get(after[node]) == (whole if any(w.startswith(whole) for w in words) else None)
        assert after[-1] == trie.outside
    assert [prefixes[node] for node in range(trie.outside) if trie.word[node] < len(words)] == words
    values = np.array([-1.0, -5.0, -2.0, -7.0, -3.0])
    for node, value in enumerate(trie.best(values, -9.0)):
        under = [v for w, v in zip(words, values, strict=True) if w.startswith(prefixes.get(node, b"?"))]
        assert value == (max(under) if under else -9.0)


def test_a_memo_answers_as_if_it_asked_each_time():
    asked = []

    def answer(key):
        asked.append(key)
        return key / 7, key + 1

    memo, rng = Memo(answer, bits=4), np.random.default_rng(9)
    for _ in range(20):
        keys = rng.integers(0, 40, 30)
        scores, after = memo(keys)
        assert (scores == keys / 7).all() and (after == keys + 1).all()
    assert 40 <= len(asked) < 600
    assert len(memo(np.zeros(0, np.int64))[0]) == 0


@pytest.mark.parametrize(("symbols", "size", "threshold"), [(6, 5, 8.0), (30, 20, 12.0)])
def test_hypotheses_and_scores_are_those_of_flashlight(symbols, size, threshold):
    """Which also counts states, so that the same ones are dropped; prefixes come back, too."""
    flashlight = pytest.importorskip("flashlight.lib.text.decoder", reason="flashlight-text is not installed")
    rng = np.random.default_rng(10)
    rows = [emissions(rng, 40, symbols) for _ in range(6)]
    found = search(np.stack(rows), np.full(6, 40), Limits(size, threshold))
    options = flashlight.LexiconFreeDecoderOptions(
        beam_size=size,
        beam_size_token=symbols,
        beam_threshold=threshold,
        lm_weight=0.0,
        sil_score=0.0,
        log_add=True,
        criterion_type=flashlight.CriterionType.CTC,
    )
    lm = flashlight.ZeroLM()
    decoder = flashlight.LexiconFreeDecoder(options, lm, -1, 0, [])
    for row, ((labels, score), *_) in zip(rows, found, strict=True):
        best = decoder.decode(row.ctypes.data, *row.shape)[0]
        assert labels == collapsed([symbol for symbol in best.tokens if symbol >= 0])
        assert score == pytest.approx(best.score, abs=1e-3)
