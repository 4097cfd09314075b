"""Words -> tokens: spelling, pronunciation dictionaries, disambiguation symbols as in Kaldi."""

import math

import pytest

from lowrank_speech.errors import UserError
from lowrank_speech.lang.lexicon import Lexicon, Pronunciation, disambiguated, read, spelled
from lowrank_speech.lang.tokens import CharTokens

TOKENS = CharTokens.build("abc1")  # <blk> <unk> | 1 a b c


def dictionary(tmp_path, text):
    path = tmp_path / "lexicon.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_words_are_spelled_and_those_that_cannot_be_are_named():
    lexicon, missing = spelled(["cab", "a", "cab", "<s>", "<unk>", "axb", "|"], TOKENS)
    assert [(e.word, e.tokens) for e in lexicon.entries] == [("a", (4,)), ("cab", (6, 4, 5))]
    assert lexicon.words == ("a", "cab") and lexicon.boundary == 2
    assert missing == {"axb": "the token set lacks x", "|": "the token set lacks |"}


def test_pieces_begin_words_themselves():
    from lowrank_speech.lang.pieces import train_pieces
    from lowrank_speech.lang.tokens import PieceTokens

    sentences = ["one two three", "two one three", "three two one"] * 20
    tokens = PieceTokens(train_pieces(sentences, 13, "unigram", False, 1))
    lexicon, missing = spelled(["one", "twothree", "six"], tokens)
    assert lexicon.boundary is None and list(missing) == ["six"]
    for word, (sequence,) in lexicon.pronunciations.items():
        assert tokens.decode(sequence) == word and tokens.symbols[sequence[0]].startswith("▁")
    # A sentence is the words in a row, so a graph of words covers what the network learned to write.
    in_a_row = [token for word in ("one", "twothree") for token in lexicon.pronunciations[word][0]]
    assert tokens.encode("one twothree") == in_a_row


def test_a_dictionary_has_several_pronunciations_and_probabilities(tmp_path):
    plain = read(dictionary(tmp_path, "b a b\na a\na  b a\n\nb a b\n"), TOKENS)
    assert [(e.word, e.tokens, e.cost) for e in plain.entries] == [
        ("a", (4,), 0.0),
        ("a", (5, 4), 0.0),
        ("b", (4, 5), 0.0),
    ]
    weighted = read(dictionary(tmp_path, "a 1.0 a\na 0.25 b a\na 0.5 b a\n"), TOKENS)
    assert weighted.pronunciations == {"a": ((4,), (5, 4))}
    assert [e.cost for e in weighted.entries] == [0.0, pytest.approx(math.log(2))]
    # A digit that is a token is no probability.
    assert read(dictionary(tmp_path, "one 1 a\n"), TOKENS).entries[0].tokens == (3, 4)
    assert plain.only(["b", "zzz"]).words == ("b",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a a\nax a x y\n", "line 2: the token set lacks x y of 'ax'"),
        ("a a\nb\n", "line 2: 'b' has no pronunciation"),
        ("a 0.5 a\nb b\n", "line 2: 'b' has no probability, unlike line 1"),
        ("\na a\nb 0.5 b\n", "line 3: 'b' has a probability, unlike line 2"),
        ("a 0.0 a\n", "line 1: the probability 0.0 is not above 0"),
        ("a 1.5 a\n", "line 1: the probability 1.5 is not above 0"),
        ("a <blk>\n", "line 1: the token set lacks <blk>"),
        ("a a |\n", "line 1: 'a' begins or ends with |"),
        ("<s> a\n", "line 1: '<s>' is a symbol of the graph"),
        ("\n", "has no words"),
    ],
)
def test_a_bad_dictionary_is_refused_with_its_line(tmp_path, text, message):
    path = dictionary(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read(path, TOKENS)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_dictionary_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "none", TOKENS)
    (tmp_path / "latin").write_bytes("ä a\n".encode("latin-1"))
    with pytest.raises(UserError, match="byte 0 is not UTF-8"):
        read(tmp_path / "latin", TOKENS)


def test_disambiguation_symbols_are_those_of_kaldi():
    """The example in utils/add_lex_disambig.pl: homophones, and beginnings of other pronunciations, need a symbol."""
    prons = {"red": (1, 2, 3), "read": (1, 2, 3), "re": (1, 2), "rid": (1, 4, 3), "id": (4, 3)}
    lexicon = Lexicon(tuple(Pronunciation(word, sequence) for word, sequence in prons.items()))
    numbers, highest = disambiguated(lexicon)
    assert numbers == [1, 2, 1, 0, 0] and highest == 2
    assert disambiguated(Lexicon(())) == ([], 0)
    marked = {
        sequence + ((-number,) if number else ()) for sequence, number in zip(prons.values(), numbers, strict=True)
    }
    assert len(marked) == len(prons)
    assert not any(a != b and b[: len(a)] == a for a in marked for b in marked)
