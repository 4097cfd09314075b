"""Readers of the scorer's input files: valid formats, and errors that name file and line."""

import math

import pytest

from lowrank_speech.scoring.files import read_map, read_scores, read_text


@pytest.fixture
def write(tmp_path):
    def write(data):
        path = tmp_path / "file"
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def test_text_takes_bom_tabs_crlf_blank_lines_and_empty_transcripts(write):
    path = write(b"\xef\xbb\xbfa\tthe  cat\r\n\r\nb\r\nc \xc3\xa9t\xc3\xa9 \n")
    assert read_text(path) == {"a": ["the", "cat"], "b": [], "c": ["été"]}


def test_text_splits_at_ascii_white_space_only(write):
    # A no-break space, U+2028 and U+0085 are inside a word for Kaldi; Python's str methods would cut there.
    assert read_text(write("a x\u00a0y p\u2028q r\u0085s\n")) == {"a": ["x\u00a0y", "p\u2028q", "r\u0085s"]}


@pytest.mark.parametrize(
    "data, match",
    [
        ("a x\nb y\na z w\n", r"file:3: id 'a' has 'z w' here and 'x' in line 1; keep one of the two lines"),
        ("a x\nb y\na x\n", r"file:3: id 'a' is also in line 1, with the same value; remove one line"),
        ("a x\na\n", r"file:2: id 'a' has '' here and 'x' in line 1"),
        (b"a x\nb \xff\n", r"file:2: byte 3 of the line is not UTF-8"),
        ("", "the file has no utterance"),
        ("\n \n", "the file has no utterance"),
    ],
)
def test_text_errors(write, data, match):
    with pytest.raises(ValueError, match=match):
        read_text(write(data))


def test_missing_file_and_folder_are_value_errors(tmp_path):
    with pytest.raises(ValueError, match="nothing: the file does not exist"):
        read_text(tmp_path / "nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        read_text(tmp_path)


@pytest.mark.parametrize("header", ["", "id\tlanguage\n", "ID\tLabel\n", "utt\tspk\n"])
def test_map_with_and_without_header(write, header):
    assert read_map(write(header + "a\ten\nb\tde\n")) == {"a": "en", "b": "de"}


def test_map_separated_by_spaces(write):
    assert read_map(write("a en\nb  de\n")) == {"a": "en", "b": "de"}


@pytest.mark.parametrize(
    "data, match",
    [
        ("a en\nb\n", r"file:2: expected two fields"),
        ("a\ten\nb\t\n", r"file:2: expected two fields"),
        ("a en x\n", r"file:1: expected two fields"),
        ("id lang\na en\na de\n", r"file:3: id 'a' has 'de' here and 'en' in line 2; keep one of the two lines"),
        ("a en\n\na en\n", r"file:3: id 'a' is also in line 1"),
        ("id language\n", "the file has no entry"),
    ],
)
def test_map_errors(write, data, match):
    with pytest.raises(ValueError, match=match):
        read_map(write(data))


def test_scores(write):
    ids, languages, scores = read_scores(write("id\ten\tde\na\t-1.5\t-inf\nb\t0\t1e-3\n"))
    assert ids == ["a", "b"] and languages == ["en", "de"]
    assert scores.tolist() == [[-1.5, -math.inf], [0.0, 0.001]]


@pytest.mark.parametrize(
    "data, match",
    [
        ("id\ten\tde\na\t1\n", r"file:2: expected 3 fields"),
        ("id\ten\tde\na\t1\tx\n", r"file:2: segment 'a', language 'de': 'x' is not a number"),
        ("id\ten\tde\na\t1\t\n", r"file:2: segment 'a', language 'de': '' is not a number"),
        ("id\ten\tde\na\t1\t2\na\t1\t3\n", r"file:3: id 'a' has '1.0 3.0' here and '1.0 2.0' in line 2"),
        ("id\ten\tde\na\t1\t2\na\t1\t2.0\n", r"file:3: id 'a' is also in line 2"),
        ("id\ten\ten\na\t1\t2\n", r"file:1: the language 'en' has two columns"),
        ("a\t1\t2\nb\t1\t2\n", r"file:1: the header is missing"),
        ("id\na\n", r"file:1: expected a header"),
        ("id\ten\tde\n", "the file has no segment"),
        ("", "the file has no segment"),
    ],
)
def test_scores_errors(write, data, match):
    with pytest.raises(ValueError, match=match):
        read_scores(write(data))
