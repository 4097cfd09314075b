"""Forced alignment: the best path of a label sequence, words with times and scores."""

import itertools

import numpy as np
import pytest
import torch

from lowrank_speech.decoding.ctc.spelling import spellings
from lowrank_speech.decoding.ctc.times import aligned, needed, score_of, words_of
from lowrank_speech.lang.pieces import train_pieces
from lowrank_speech.lang.tokens import PieceTokens
from tiny_ctc import characters, collapsed, emissions


def best_path(row, labels):
    """The most probable path of ``labels`` by exhaustive search, and its log probability."""
    paths = (path for path in itertools.product(range(row.shape[1]), repeat=len(row)) if collapsed(path) == labels)
    return max(((sum(float(row[t, s]) for t, s in enumerate(path)), path) for path in paths), default=(None, None))


@pytest.mark.parametrize("labels", [(2,), (1, 2), (2, 2), (1, 1, 2), (3, 1, 3)])
def test_spans_are_those_of_the_best_path(labels):
    rng = np.random.default_rng(1)
    for frames in range(7):
        row = emissions(rng, frames, 4)
        spans = aligned(torch.from_numpy(row), labels)
        score, path = best_path(row, labels)
        if path is None:
            assert spans == [] and frames < needed(labels)
            continue
        assert tuple(span.token for span in spans) == labels
        assert score_of(spans) == pytest.approx(score, abs=1e-4)
        written = [0] * frames
        for span in spans:
            written[span.start : span.end] = [span.token] * (span.end - span.start)
        assert tuple(written) == path


def test_what_has_no_path_has_no_spans():
    row = emissions(np.random.default_rng(2), 6, 4)
    assert aligned(torch.from_numpy(row), ()) == [] == aligned(torch.from_numpy(row[:0]), (1,))
    row[:, 2] = -np.inf
    assert aligned(torch.from_numpy(row), (1, 2)) == []
    assert len(aligned(torch.from_numpy(row), (1, 3))) == 2
    row[:] = np.nan
    assert aligned(torch.from_numpy(row), (1,)) == []


def test_words_of_characters_have_the_times_of_their_letters():
    lang = characters("ab")
    row = np.full((9, 5), -9.0, np.float32)
    for frame, symbol in enumerate([0, 3, 3, 4, 0, 2, 2, 4, 0]):  # "ab b" with blanks
        row[frame, symbol] = -0.25
    spans = aligned(torch.from_numpy(row), lang.tokens.encode("ab b"))
    first, second = words_of(spans, spellings(lang), 0.02)
    assert (first.text, first.start, first.end) == ("ab", pytest.approx(0.02), pytest.approx(0.08))
    assert (second.text, second.start, second.end) == ("b", pytest.approx(0.14), pytest.approx(0.16))
    assert first.score == pytest.approx(-0.75) and second.score == pytest.approx(-0.25)


def test_blanks_that_write_nothing_make_no_words():
    lang = characters("ab")
    rng = np.random.default_rng(3)
    for ids in ((2,), (2, 2, 3), (3, 2, 2, 4, 2), (2, 4, 3)):
        spans = aligned(torch.from_numpy(emissions(rng, 12, 5)), ids)
        assert [word.text for word in words_of(spans, spellings(lang), 1.0)] == lang.tokens.decode(ids).split()


def test_pieces_are_joined_to_words():
    sentences = ["the cat sat", "the bat sat there", "that cat there"] * 5
    tokens = PieceTokens(train_pieces(iter(sentences), 14, "unigram", False, 1))
    lang = type("Lang", (), {"kind": "sentencepiece", "tokens": tokens})
    spelled = spellings(lang)
    for sentence in sentences[:3]:
        ids = tokens.encode(sentence)
        assert b"".join(spelled[i] for i in ids).decode().strip() == sentence
        spans = aligned(torch.from_numpy(emissions(np.random.default_rng(4), 60, tokens.size)), ids)
        assert [word.text for word in words_of(spans, spelled, 0.02)] == sentence.split()
