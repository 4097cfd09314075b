"""Scorers: our own and kenlm's agree; states may be merged; perplexities as KenLM's query prints them."""

import random

import pytest

from lowrank_speech.lang.lm import arpa
from lowrank_speech.lang.lm.estimate import estimate
from lowrank_speech.lang.lm.query import KenlmScorer, OwnScorer, perplexity, sentence_score
from test_lm_estimate import LMPLZ, corpus_of, ngrams, random_text


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """ARPA files of several orders, with and without pruning."""
    folder = tmp_path_factory.mktemp("arpa")
    for order, prune in ((2, ()), (3, (0, 0, 1)), (4, (0, 1)), (6, ())):
        model, _ = estimate(corpus_of(random_text(5, words=15, sentences=150)), order, prune)
        arpa.write(model, folder / f"{order}.arpa")
    return folder


@pytest.mark.parametrize("order", [2, 3, 4, 6])
def test_agrees_with_kenlm(order, files):
    pytest.importorskip("kenlm", reason="the package kenlm is an extra")
    path = files / f"{order}.arpa"
    own, other = OwnScorer(arpa.read(path)), KenlmScorer(path)
    rng, words = random.Random(order), [*(f"w{i}" for i in range(17)), "<unk>", "</s>"]
    for start in ("start", "empty"):
        for _ in range(100):
            states = [getattr(scorer, start)() for scorer in (own, other)]
            for word in rng.choices(words, k=12):
                assert own.end(states[0]) == pytest.approx(other.end(states[1]), abs=1e-5)
                (a, first), (b, second) = own.score(states[0], word), other.score(states[1], word)
                assert a == pytest.approx(b, abs=1e-5)
                states = [first, second]
    assert all(own.knows(word) == other.knows(word) for word in words)


def test_states_of_kenlm_can_be_merged(files):
    pytest.importorskip("kenlm", reason="the package kenlm is an extra")
    scorer = KenlmScorer(files / "2.arpa")
    states = {scorer.score(scorer.score(scorer.start(), word)[1], "w1")[1] for word in ("w2", "w3", "w4")}
    assert len(states) == 1  # of a bigram model: only the last word


@pytest.mark.parametrize("order", [2, 3, 4, 6])
def test_equal_states_score_equally(order, files):
    """The scores after any two histories with one state are those of the full histories."""
    model = arpa.read(files / f"{order}.arpa")
    scorer, table, rng = OwnScorer(model), ngrams(model), random.Random(1)
    words = [*(f"w{i}" for i in range(15)), "unheard", "</s>"]
    full = {("<s>",): scorer.start()}
    for _ in range(300):
        history, state = ("<s>",), scorer.start()
        for word in rng.choices(words[:-1], k=7):
            score, state = scorer.score(state, word)
            assert score == pytest.approx(back_off(table, order, history, word), abs=1e-9)
            history = (*history, word)
            full[history] = state
    assert len(set(full.values())) < len(full)  # some were merged


def back_off(table, order, history, word):
    """Log10 probability by the recursion of the format, with the whole history."""
    *history, word = (w if (w,) in table else "<unk>" for w in (*history, word))
    history, weight = tuple(history)[-(order - 1) :], 0.0
    while (*history, word) not in table:
        weight += table[history][1] if history in table else 0.0
        history = history[1:]
    return weight + table[*history, word][0]


QUERY = {"including": 6.870728738993572, "excluding": 5.223871951436418, "oov": 2, "tokens": 16}


def test_perplexity_is_that_of_kenlms_query(tmp_path):
    """What `query` of KenLM (commit 4cb443e) prints for the model of lmplz and these sentences."""
    path = tmp_path / "lmplz.arpa"
    path.write_text(LMPLZ[()].lstrip(), encoding="utf-8")
    scorer = OwnScorer(arpa.read(path))
    sentences = [line.split() for line in ("the cat sat on a mouse", "mouse", "", "a dog saw the log")]
    found = perplexity(scorer, sentences)
    assert found["perplexity"] == pytest.approx(QUERY["including"], abs=1e-3)
    assert found["perplexity_without_oov"] == pytest.approx(QUERY["excluding"], abs=1e-3)
    assert found["oov"] == QUERY["oov"] and found["words"] + found["sentences"] == QUERY["tokens"]
    assert found["oov_rate"] == pytest.approx(2 / 12, abs=1e-6)
    total = sum(sentence_score(scorer, sentence) for sentence in sentences)
    assert found["perplexity"] == pytest.approx(10 ** (-total / QUERY["tokens"]), abs=1e-3)
    assert perplexity(scorer, [])["perplexity"] is None and perplexity(scorer, [[]])["oov_rate"] is None
