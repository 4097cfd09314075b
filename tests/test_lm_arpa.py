"""ARPA files and KenLM binaries: what is written can be read, and what is broken is refused with its place."""

import gzip
import math

import numpy as np
import pytest

from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm import arpa, kenlm_file
from lowrank_speech.lang.lm.estimate import estimate
from lowrank_speech.lang.lm.query import OwnScorer
from test_lm_estimate import corpus_of, ngrams, random_text

TINY = r"""# a comment, as lmplz --verbose_header writes it
\data\
ngram 1=5
ngram 2=4
ngram 3=2

\1-grams:
-1	<unk>
-99	<s>	-0.3
-0.5	</s>
-0.6	ä	-0.2
-0.7	b	-0.1

\2-grams:
-0.2 <s> ä -0.4
-0.3 ä b 0
-0.4 b </s>
-0.45	<s>	b

\3-grams:
-0.05	<s>	ä	b
-0.15	ä	b	</s>

\end\
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.arpa"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_model_survives_writing_and_reading(order, tmp_path):
    model, _ = estimate(corpus_of(random_text(1)), order)
    arpa.write(model, tmp_path / "a.arpa")
    found = arpa.read(tmp_path / "a.arpa")
    assert found.counts == model.counts == arpa.counts(tmp_path / "a.arpa")
    assert ngrams(found) == {gram: pytest.approx(values, abs=1e-6) for gram, values in ngrams(model).items()}
    arpa.write(found, tmp_path / "b.arpa")
    assert (tmp_path / "a.arpa").read_bytes() == (tmp_path / "b.arpa").read_bytes()


def test_many_chunks(tmp_path, monkeypatch):
    model, _ = estimate(corpus_of(random_text(2)), 3)
    arpa.write(model, tmp_path / "a.arpa")
    monkeypatch.setattr(arpa, "CHUNK", 7)
    arpa.write(model, tmp_path / "b.arpa")
    assert (tmp_path / "a.arpa").read_bytes() == (tmp_path / "b.arpa").read_bytes()


def test_reads_gzip_blanks_tabs_and_any_order_of_lines(tiny, tmp_path):
    packed = tmp_path / "tiny.arpa.gz"
    packed.write_bytes(gzip.compress(tiny.read_bytes()))
    found = ngrams(arpa.read(tiny))
    assert found == ngrams(arpa.read(packed)) and arpa.counts(packed) == [5, 4, 2]
    assert found["<s>", "ä"] == (-0.2, -0.4) and found["ä", "b", "</s>"] == (-0.15, 0)


def test_backs_off_as_the_format_says(tiny):
    scorer = OwnScorer(arpa.read(tiny))
    start = scorer.start()
    assert scorer.score(start, "ä")[0] == pytest.approx(-0.2)
    state = scorer.score(start, "ä")[1]
    assert scorer.score(state, "b")[0] == pytest.approx(-0.05)
    assert scorer.score(state, "ä")[0] == pytest.approx(-0.4 - 0.2 - 0.6)
    assert scorer.end(scorer.score(state, "b")[1]) == pytest.approx(-0.15)
    assert scorer.score(state, "unheard")[0] == pytest.approx(-0.4 - 0.2 - 1)
    assert scorer.score(state, "unheard")[1] == scorer.empty()
    assert scorer.knows("ä") and not scorer.knows("unheard") and not scorer.knows("<unk>")


def test_without_unk(tiny):
    tiny.write_text(TINY.replace("-1\t<unk>\n", "").replace("ngram 1=5", "ngram 1=4"), encoding="utf-8")
    scorer = OwnScorer(arpa.read(tiny))
    assert scorer.score(scorer.empty(), "unheard") == (-100, scorer.empty())


BROKEN = {
    "not ARPA": (("\\data\\", "hello"), r"line 2: expected \\data\\, found 'hello'; this is not an ARPA file"),
    "header": (("ngram 2=4", "ngram two"), r"line 4: expected `ngram N=count`, found 'ngram two'"),
    "order left out": (("ngram 2=4\n", ""), r"line 4: expected the count of 2-grams, found 'ngram 3=2'"),
    "too few": (("ngram 2=4", "ngram 2=5"), r"line 19: \\2-grams: ends after 4 lines, but the header says 5"),
    "too many": (("ngram 2=4", "ngram 2=3"), r"line 18: \\2-grams: has more lines than the 3 that the header says"),
    "wrong section": (("\\2-grams:", "\\3-grams:"), r"line 14: expected \\2-grams:, found '\\\\3-grams:'"),
    "wrong order": (("ngram 3=2\n", ""), r"line 14: expected a log probability, 2 words, found '-0.2 <s> ä -0.4'"),
    "words missing": (("-0.3 ä b 0", "-0.3 ä"), r"line 16: expected a log probability, 2 words and a weight"),
    "words too many": (("-0.05\t<s>\tä\tb", "-0.05\t<s>\tä\tb\t-1"), r"line 21: expected a log probability, 3 words"),
    "NaN": (("-0.45", "nan"), r"line 18: the log probability is nan; it must be a number"),
    "positive": (("-0.45", "0.45"), r"line 18: the log probability is 0.45; it must be at most 0"),
    "not a number": (("-0.45", "-0,45"), r"line 18: expected a log probability, found '-0,45'"),
    "weight": (("ä\t-0.2", "ä\tinf"), r"line 11: the back-off weight is inf; it must be a number"),
    "no unigram": (("-0.7	b	-0.1", "-0.7	c	-0.1"), r"line 16: the word 'b' has no unigram; add it to"),
    "no context": (
        ("-0.3 ä b 0", "-0.3 b b 0"),
        r"line 22: this 3-gram has the context of its first 2 words, which is",
    ),
    "twice": (("-0.15\tä\tb\t</s>", "-0.15\t<s>\tä\tb"), r"line 22: this 3-gram occurs twice; remove one"),
    "unigram twice": (("-0.7	b", "-0.7	ä"), r"line 12: the word 'ä' occurs twice; remove one"),
    "no end": (("</s>", "s"), r"1-grams: lacks </s>"),
    "truncated": (("\n\\end\\\n", ""), r"line 22: the file ends before \\end\\, so it is truncated"),
    "truncated in a section": (("-0.15\tä\tb\t</s>\n\n\\end\\\n", ""), r"line 21: the file ends before \\end\\"),
    "empty": ((TINY, ""), r"line 0: expected \\data\\, found ''; this is not an ARPA file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_with_their_line(name, tiny):
    (old, new), message = BROKEN[name]
    assert old in TINY
    tiny.write_text(TINY.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        arpa.read(tiny)
    assert "\n" not in str(caught.value) and str(tiny) in str(caught.value)


def test_other_broken_files(tiny, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        arpa.read(tmp_path / "nowhere.arpa")
    packed = gzip.compress(tiny.read_bytes())
    tiny.write_bytes(packed[:-30])
    with pytest.raises(UserError, match="the compressed file is truncated or damaged"):
        arpa.read(tiny)
    tiny.write_bytes(TINY.encode("latin-1"))
    with pytest.raises(UserError, match="line 11: byte 6 of the line is not UTF-8"):
        arpa.read(tiny)
    tiny.write_text(TINY.replace("\\end\\", ""), encoding="utf-8")
    with pytest.raises(UserError, match="truncated"):  # the quick look before the first job
        arpa.counts(tiny)


def test_minus_infinity_is_log_zero(tiny):
    tiny.write_text(TINY.replace("-0.45", "-inf"), encoding="utf-8")
    probs = arpa.read(tiny).prob
    assert np.isfinite(probs).all() and probs.min() < -1e8 and not any(map(math.isnan, probs))


# What build_binary of KenLM (commit 4cb443e) made of lmplz's bigrams of the sentences `a b` and `b`.
BINARY = bytes.fromhex(
    "6d6d6170206c6d20687474703a2f2f6b6865616669656c642e636f6d2f636f646520666f726d61742076657273696f6e2035"
    "0a0000000000000000000000803f000000bf01000000ffffffff000000000100000000000000020000000000c03f00000000"
    "010000000000000005000000000000000400000000000000000000000000000005000000707e21bd3986750001000000116b"
    "6bd3d2171707030000000000000000000000000000000000000000000000000000000a6cf7f17d73e06b02000000372a2a92"
    "7dfc8bea04000000000000000000000000000000e83067bf00000080000000009b209abe9b201a3f000000809b201a3f9b20"
    "9abe9318da3e9b209abe00000000000000001a4449afe815c002b9d1b7be8172edf07d7b7c859318dabe08f2026884b13313"
    "fca126be000000000000000000000000000000000000000000000000298637d0bcc28320d50451be3c756e6b3e003c733e00"
    "3c2f733e0061006200"
)
WORDS = b"<unk>\0<s>\0</s>\0a\0b\0"


def test_header_and_words_of_a_kenlm_binary(tmp_path):
    path = tmp_path / "lm.bin"
    path.write_bytes(BINARY)
    assert kenlm_file.is_binary(path) and BINARY.endswith(WORDS)
    found = kenlm_file.describe(path)
    assert found.order == 2 and found.counts == (5, 4) and sorted(found.words) == ["</s>", "<s>", "<unk>", "a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BINARY[:-30], "truncated or damaged"),
        (BINARY[:-3], "truncated or damaged"),
        (BINARY[:95], "truncated or damaged"),
        (BINARY[:110], "truncated or damaged"),
        (BINARY.replace(b"version 5", b"version 4"), "not of format version 5"),
        (BINARY[:100] + b"\0" + BINARY[101:], "has no vocabulary"),
        (BINARY.replace(b"\0b\0", b"\0\xff\0"), "not UTF-8"),
    ],
)
def test_broken_binaries(content, message, tmp_path):
    path = tmp_path / "lm.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        kenlm_file.describe(path)
