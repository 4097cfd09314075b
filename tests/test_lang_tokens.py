"""Token sets: round trips, unknown symbols, special symbols, and invalid files."""

import random

import pytest

from lowrank_speech.errors import UserError
from lowrank_speech.lang.pieces import train_pieces
from lowrank_speech.lang.tokens import CharTokens, PieceTokens

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "l'été où les garçons mangent",
    "नमस्ते दुनिया",
    "12 and 42 ẞ",
    "don't do well-known things",
    "the dog and the fox jump",
    "the lazy garçons don't jump",
    "things that the garçons do and the dogs do",
]


def chars(languages=None):
    return CharTokens.build({c for s in SENTENCES for c in s}, languages)


def pieces(languages=None, vocab_size=56, **options):
    return PieceTokens(train_pieces(SENTENCES, vocab_size, **options), languages)


SETS = {
    "char": chars,
    "unigram": pieces,
    "bpe": lambda languages=None: pieces(languages, 80, model_type="bpe"),
    "bytes": lambda languages=None: pieces(languages, 312, byte_fallback=True),
}


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("languages", [None, ["en", "de"]])
def test_round_trip(kind, languages):
    tokens, rng = SETS[kind](languages), random.Random(3)
    letters = sorted({c for s in SENTENCES for c in s} - {" "})
    drawn = [" ".join("".join(rng.choices(letters, k=rng.randint(1, 5))) for _ in range(4)) for _ in range(200)]
    for text in [*SENTENCES, "a", "aa a", "", *drawn]:
        ids = tokens.encode(text)
        assert tokens.decode(ids) == text
        assert all(1 < i < tokens.first_special for i in ids)
        assert tokens.unseen(text) == set()


@pytest.mark.parametrize("kind", SETS)
def test_layout(kind):
    for_ctc, tokens = SETS[kind](), SETS[kind](["nl", "de", "nl"])
    first = for_ctc.size
    assert tokens.symbols[:first] == for_ctc.symbols and tokens.symbols[:2] == ["<blk>", "<unk>"]
    assert tokens.symbols[first:] == [
        *("<|endoftext|>", "<|startoftranscript|>", "<|de|>", "<|nl|>", "<|transcribe|>", "<|notimestamps|>")
    ]
    assert (tokens.blank, tokens.unk, tokens.eot, tokens.sot) == (0, 1, first, first + 1)
    assert tokens.language_ids == {"de": first + 2, "nl": first + 3}
    assert (tokens.transcribe, tokens.no_timestamps, tokens.size) == (first + 4, first + 5, first + 6)
    assert tokens.prompt("nl") == [first + 1, first + 3, first + 4, first + 5]
    assert tokens.special == {symbol: first + i for i, symbol in enumerate(tokens.symbols[first:])}
    with pytest.raises(UserError, match="does not have the language 'fr'; expected one of: de, nl"):
        tokens.prompt("fr")
    assert for_ctc.language_ids == for_ctc.special == {}
    with pytest.raises(UserError, match="made for CTC"):
        for_ctc.prompt("de")
    with pytest.raises(UserError, match="needs one with `for: seq2seq`"):
        _ = for_ctc.eot


@pytest.mark.parametrize("kind", SETS)
def test_decode_leaves_special_symbols_out(kind):
    tokens = SETS[kind](["en"])
    ids = tokens.encode("the dog")
    wrapped = [0, *tokens.prompt("en"), *ids, 0, tokens.eot, tokens.eot]
    assert tokens.decode(wrapped) == "the dog"
    assert tokens.decode([]) == tokens.decode([0, 0]) == ""
    for wrong in (-1, tokens.size):
        with pytest.raises(ValueError, match=f"token id {wrong} is not in the token set"):
            tokens.decode([wrong])


@pytest.mark.parametrize("kind", ["char", "unigram", "bpe"])
def test_unknown_characters(kind):
    tokens = SETS[kind]()
    assert tokens.unseen("ж the dog ☃") == {"ж", "☃"}
    ids = tokens.encode("ж doжg")
    assert ids.count(tokens.unk) == 2
    assert tokens.decode(ids) == "\ufffd do\ufffdg"
    assert tokens.decode(tokens.encode("жж")) == ("\ufffd\ufffd" if kind == "char" else "\ufffd")


def test_bytes_know_everything():
    tokens = SETS["bytes"]()
    assert tokens.unseen("ж☃") == set()
    assert tokens.decode(tokens.encode("жж dog ☃")) == "жж dog ☃"


@pytest.mark.parametrize("kind", SETS)
def test_text_that_looks_like_symbols_is_text(kind):
    tokens = SETS[kind](["en"])
    for text in ("<blk>", "<unk>", "<|endoftext|>", "<|en|>", "<0x41>", "|"):
        ids = tokens.encode(text)
        assert tokens.blank not in ids and all(i < tokens.first_special for i in ids)
        assert len(ids) > 1 or ids == [tokens.unk]


def test_word_boundary():
    tokens = CharTokens.build("abc")
    assert tokens.symbols == ["<blk>", "<unk>", "|", "a", "b", "c"]
    assert tokens.encode("ab c") == [3, 4, 2, 5] == tokens.encode("  ab \n c ")
    assert tokens.decode([2, 2, 3, 4, 2, 2, 5, 2]) == "ab c"
    assert tokens.unseen("a|b") == {"|"}
    assert tokens.encode("|") == [1]


def test_tokens_txt(tmp_path):
    tokens = chars(["en", "tr"])
    path = tmp_path / "tokens.txt"
    path.write_text(tokens.table(), encoding="utf-8")
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines[:3] == ["<blk> 0", "<unk> 1", "| 2"] and lines[-2:] == [f"<|notimestamps|> {tokens.size - 1}", ""]
    assert CharTokens.load(path).symbols == tokens.symbols
    assert CharTokens.load(path).language_ids == tokens.language_ids


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<blk> 0\n<unk> 1\n| 2\na\n", "line 4: expected `symbol id`, found 'a'"),
        ("<blk> 0\n<unk> 1\n| 2\nab 3\n", "line 4: 'ab' is neither one character nor"),
        ("<blk> 0\n<unk> 1\n| 2\na 3\na 4\n", "line 5: the symbol 'a' or the id 4 occurs twice"),
        ("<blk> 0\n<unk> 1\n| 2\na 3\nb 3\n", "line 5"),
        ("<blk> 0\n<unk> 1\n| 2\na 4\n", "no symbol has the id 3"),
        ("<pad> 0\n<unk> 1\n| 2\n", "the id 0 must be <blk>"),
        ("<blk> 0\n<unk> 1\n", "the id 2 must be |"),
        ("", "line 1"),
    ],
)
def test_broken_tokens_txt(tmp_path, text, message):
    path = tmp_path / "tokens.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        CharTokens.load(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_foreign_sentencepiece_models(tmp_path):
    path = tmp_path / "pieces.model"
    path.write_bytes(b"no model at all")
    with pytest.raises(UserError, match=r"pieces\.model"):
        PieceTokens.load(path)
    # With sentencepiece's own defaults <unk> is 0, where CTC has its blank.
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=50, minloglevel=2
    )
    path.write_bytes(model.getvalue())
    with pytest.raises(UserError, match=r"ids 0 and 1 are \['<unk>', '<s>'\]"):
        PieceTokens.load(path)


@pytest.mark.parametrize("code", ["", "de en", "<|x|>", "transcribe", "d|e", "endoftext"])
def test_language_codes(code):
    with pytest.raises(ValueError, match="not a language code"):
        CharTokens.build("abc", ["de", code])


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_pieces_are_the_same_bytes_whatever_the_order(model_type):
    first = train_pieces(SENTENCES, 58, model_type)
    assert first == train_pieces(SENTENCES[::-1] + SENTENCES[:2], 58, model_type)
    assert first != train_pieces(SENTENCES, 57, model_type)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_vocab_size_has_limits_and_the_message_has_them(model_type):
    with pytest.raises(UserError, match=r"9000 is too large for 8 different sentences; give at most \d+") as caught:
        train_pieces(SENTENCES, 9000, model_type)
    largest = int(str(caught.value).split()[-1])
    assert PieceTokens(train_pieces(SENTENCES, largest, model_type)).size == largest
    with pytest.raises(UserError, match="vocab_size: 7 is too small: <blk>, <unk>") as caught:
        train_pieces(SENTENCES, 7, model_type)
    with pytest.raises(UserError, match="sentencepiece cannot train 7 pieces on 0 different sentences"):
        train_pieces([], 7, model_type)


def test_long_transcripts_are_not_left_out():
    # sentencepiece drops sentences of more than 4,192 bytes unless told otherwise.
    tokens = PieceTokens(train_pieces(["ab " * 3000 + "ż", "ab ab"], 6, "bpe"))
    assert tokens.unseen("abż") == set()


def test_pieces_from_text_that_looks_like_symbols():
    # sentencepiece learns nothing from them; the rest of the sentence counts.
    tokens = PieceTokens(train_pieces(["<unk> <blk> xyz", "<blk> yx <unk> zx"], 7, "bpe"))
    assert tokens.decode(tokens.encode("xyz zx")) == "xyz zx"
    assert tokens.unseen("<unk> x") == set("<unk>")
    assert tokens.blank not in tokens.encode("<unk> <blk> x")
