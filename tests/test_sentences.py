"""Written sentences: well-formed files, closed vocabulary, splits that cannot share a sentence."""

import itertools
import unicodedata

import numpy as np
import pytest

from lowrank_speech.corpora import sentences
from lowrank_speech.errors import UserError

LANGUAGES = sentences.known()
SHARES = {"test": 0.1, "dev": 0.05}


def test_the_six_languages_are_there():
    assert {"de", "en", "es", "nl", "pl", "pt"} <= set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentence_file(language):
    grammar = sentences.load(language)
    made = list(grammar.made())
    assert len(made) == len(set(made)) == grammar.count() > 5000
    assert 80 <= len(grammar.words()) <= 115
    assert len(grammar.free) >= 40
    for text in [*made, *grammar.free]:
        assert text[0].isupper() and text.endswith(".") and text.count(".") == 1
        assert unicodedata.is_normalized("NFC", text) and text == " ".join(text.split())
        assert not any(c.isdigit() for c in text)
    assert {len(text.split()) for text in made} <= set(range(3, 8))
    # No free sentence can be made from a template, else a test sentence could stand in training.
    assert not {sentences.key(t) for t in grammar.free} & {sentences.key(t) for t in made}


# Letters that the usual spelling of the language has beside a to z; the templates must hold them all.
LETTERS = {"de": "äöüß", "en": "", "es": "áéíóúñ", "nl": "é", "pl": "ąćęłńóśźż", "pt": "áéíóúâêôãàç"}


@pytest.mark.parametrize("language", LETTERS)
def test_templates_and_free_sentences_cover_the_letters(language):
    grammar = sentences.load(language)
    every = set("".join(grammar.words())) | set("".join(sentences.key(text) for text in grammar.free))
    assert set(LETTERS[language]) <= every


@pytest.mark.parametrize(("one", "other"), [("es", "pt"), ("de", "nl"), *itertools.combinations(LANGUAGES, 2)])
def test_close_languages_have_different_text(one, other):
    """Words may be shared (español, português: carta), sentences not."""
    first, second = sentences.load(one), sentences.load(other)
    assert not set(first.made()) & set(second.made())
    assert not set(first.free) & set(second.free)
    shared = first.words() & second.words()
    assert len(shared) < 0.45 * min(len(first.words()), len(second.words())), sorted(shared)


def test_owner_gives_every_split_its_share_and_moves_with_nothing_else():
    made = list(sentences.load("es").made())
    owners = [sentences.owner(text, SHARES) for text in made]
    for split, share in SHARES.items():
        assert owners.count(split) / len(made) == pytest.approx(share, abs=0.01)
    assert owners == [sentences.owner(text, dict(reversed(SHARES.items()))) for text in made]
    assert sentences.owner("La niña come.", SHARES) == sentences.owner("la niña come", SHARES)
    assert sentences.owner("La nin\u0303a come.", SHARES) == sentences.owner("La niña come.", SHARES)
    assert sentences.owner("x", {"all": 1.0}) == "all"
    assert sentences.owner("x", {}) is None


@pytest.mark.parametrize("language", LANGUAGES)
def test_draws_of_splits_share_no_sentence_and_test_words_are_known(language):
    grammar = sentences.load(language)
    counts = {"pretrain": 400, "train": 300, "dev": 60, "test": 100}
    drawn = {
        split: sentences.draw(grammar, n, np.random.default_rng(i), split, SHARES, free=0.1)
        for i, (split, n) in enumerate(counts.items())
    }
    keys = {split: [sentences.key(text) for text, _ in found] for split, found in drawn.items()}
    for split, found in keys.items():
        assert len(found) == len(set(found)) == counts[split]
    for held_out in SHARES:
        others = set().union(*(set(found) for split, found in keys.items() if split != held_out))
        assert not set(keys[held_out]) & others
        assert not any(free for _, free in drawn[held_out])
        words = {word for text in keys[held_out] for word in text.split()}
        assert words <= {word for split in ("pretrain", "train") for text in keys[split] for word in text.split()}
    free = [text for text, free in drawn["pretrain"] if free]
    assert set(free) <= set(grammar.free) and 10 < len(free) <= len(grammar.free)


def test_a_longer_draw_begins_with_the_shorter_one():
    grammar = sentences.load("nl")
    short, long = (sentences.draw(grammar, n, np.random.default_rng(4), "train", SHARES, free=0.3) for n in (20, 200))
    assert long[:20] == short


def test_a_split_that_runs_out_of_sentences_says_so():
    tiny = sentences.parse(
        "{name: T, voices: [en], slots: {a: [x, y], b: [z]}, templates: ['{a} {b}'], free: [F.]}", "en", "t"
    )
    assert sorted(tiny.made()) == ["X z.", "Y z."]
    drawn = sentences.draw(tiny, 3, np.random.default_rng(0), "train", {}, free=0.5)
    assert sorted(drawn) == [("F.", True), ("X z.", False), ("Y z.", False)]
    with pytest.raises(UserError, match=r"split train needs 4 .*fewer utterances"):
        sentences.draw(tiny, 4, np.random.default_rng(0), "train", {}, free=0.5)


def test_unknown_language_lists_the_known_ones():
    with pytest.raises(UserError, match=r"'xx'.*de, en, es, nl, pl, pt"):
        sentences.load("xx")


GOOD = "{name: T, voices: [en], slots: {a: [x, y]}, templates: ['{a}'], free: [F.]}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("x, y", "x, no", "a must be a list of texts, found False"),
        ("x, y", "x, x", "'x' twice"),
        ("x, y", "", "nothing"),
        ("'{a}'", "'{b}'", r"template '\{b\}'"),
        ("'{a}'", "'the {a}'", "slots only"),
        ("name: T, ", "", "expected the keys"),
        ("x, y", "e\u0301", "NFC"),
        ("slots: {a: [x, y]}", "slots: {a: [x, y], a: [z]}", "lines 1 and 1: the key a occurs twice"),
    ],
)
def test_faults_of_a_sentence_file_are_named(old, new, message):
    assert sentences.parse(GOOD, "en", "f.yaml").count() == 2
    with pytest.raises(UserError, match=f"f.yaml.*{message}"):
        sentences.parse(GOOD.replace(old, new), "en", "f.yaml")
