"""The stage lang: token sets from transcripts, utterances that it sets aside, and its errors."""

import gzip
import json

import pytest
from lhotse import MonoCut, SupervisionSegment
from lhotse.cut import PaddingCut
from lhotse.testing.dummies import dummy_recording

from lowrank_speech.artefact import read_manifest
from lowrank_speech.lang.load import Lang
from lowrank_speech.stages import lang

TEXTS = ["Hello world", "the world turns", "Hello, you!", "over there"]


def cut(name, text, language="en", supervisions=1):
    said = [
        SupervisionSegment(f"{name}-{i}", name, 0.0, 1.0, text=text, language=language) for i in range(supervisions)
    ]
    return MonoCut(name, 0.0, 1.0, 0, supervisions=said, recording=dummy_recording(0)).to_dict()


def mixed(name, text):
    """A cut joined of two with a pause; as in ``corpora.digits``, the supervision stands in the first track."""
    parts = [MonoCut(f"{name}-{i}", 0.0, 1.0, 0, recording=dummy_recording(i)) for i in range(2)]
    joined = parts[0].append(PaddingCut("pause", 0.5, 16000, -23.0, num_samples=8000)).append(parts[1])
    said = SupervisionSegment(name, name, 0.0, joined.duration, text=text, language="en")
    joined.tracks[0].cut.supervisions.append(said)
    joined.id = name
    return joined.to_dict()


def write(path, cuts):
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in cuts)
    return path


def run(folder, *cuts, **cfg):
    """The exit code; ``cfg``: keys of the slice's ``lang``."""
    cfg = {"seed": 1, "lang": {"kind": "char", **cfg}}
    paths = ["--out", str(folder), "--manifest", str(folder / "lang.json")]
    return lang.main(["--cfg", json.dumps(cfg), *paths, "--cuts", *map(str, cuts)])


@pytest.fixture
def cuts(tmp_path):
    """A file of four utterances."""
    return write(tmp_path / "train.jsonl.gz", [cut(f"u{i}", text) for i, text in enumerate(TEXTS)])


def refused(capsys, message, folder, *cuts, **cfg):
    capsys.readouterr()
    assert run(folder, *cuts, **cfg) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last and not (folder / "lang.json").exists(), last


def test_characters(tmp_path, cuts):
    assert run(tmp_path / "l", cuts) == 0
    numbers = read_manifest(tmp_path / "l" / "lang.json", "lang")["metrics"]
    assert numbers["utterances"] == 4 and numbers["words"] == 9 and numbers["different_words"] == 7
    letters = set("helloworldtheturnsyouoverthere")
    assert numbers["characters"].keys() == letters
    read = Lang.load(tmp_path / "l")
    assert read.tokens.decode(read.tokens.encode("over the world")) == "over the world"
    assert (tmp_path / "l" / "words.txt").read_text().splitlines()[0] == "hello 2"


def test_the_same_bytes_again_and_a_file_named_twice_counts_once(tmp_path, cuts):
    assert run(tmp_path / "a", cuts) == run(tmp_path / "b", cuts, cuts) == 0
    for name in ("tokens.txt", "words.txt", "set_aside.tsv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_pieces(tmp_path, cuts):
    assert run(tmp_path / "l", cuts, kind="sentencepiece", vocab_size=20) == 0
    numbers = read_manifest(tmp_path / "l" / "lang.json", "lang")["metrics"]
    assert numbers["kind"] == "sentencepiece" and numbers["size"] > 20  # and the special symbols of a decoder
    read = Lang.load(tmp_path / "l")
    assert read.tokens.decode(read.tokens.encode("hello there")) == "hello there"


def test_transcripts_of_mixed_cuts_are_read(tmp_path, cuts):
    joined = write(tmp_path / "joined.jsonl.gz", [mixed(f"u{i}", text) for i, text in enumerate(TEXTS)])
    assert run(tmp_path / "a", cuts) == run(tmp_path / "b", joined) == 0
    assert (tmp_path / "a" / "words.txt").read_bytes() == (tmp_path / "b" / "words.txt").read_bytes()


def test_what_says_nothing_is_set_aside_and_listed(tmp_path):
    path = write(tmp_path / "train.jsonl.gz", [cut("good", "a word"), cut("none", None), cut("dots", "...")])
    assert run(tmp_path / "l", path) == 0
    rows = [line.split("\t")[0] for line in (tmp_path / "l" / "set_aside.tsv").read_text().splitlines()[1:]]
    assert rows == ["dots", "none"]
    assert read_manifest(tmp_path / "l" / "lang.json")["metrics"]["utterances"] == 1


def test_rare_characters_become_unknown(tmp_path, cuts):
    assert run(tmp_path / "l", cuts, min_count=2) == 0
    assert read_manifest(tmp_path / "l" / "lang.json")["metrics"]["rare"] == {"n": 1, "s": 1, "v": 1, "y": 1}


@pytest.mark.parametrize("supervisions", [0, 2])
def test_a_cut_has_one_supervision(tmp_path, capsys, supervisions):
    path = write(tmp_path / "train.jsonl.gz", [cut("good", "a"), cut("bad", "a word", supervisions=supervisions)])
    message = f"{path}, line 2: the cut bad has {supervisions} supervisions; expected one"
    refused(capsys, message, tmp_path / "l", path)


def test_broken_files(tmp_path, capsys, cuts):
    refused(capsys, "nowhere.jsonl.gz", tmp_path / "l", tmp_path / "nowhere.jsonl.gz")
    short = tmp_path / "short.jsonl.gz"
    short.write_bytes(cuts.read_bytes()[:-20])
    refused(capsys, str(short), tmp_path / "l", short)
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps(cut("good", "a word")) + "\nhello\n")
    refused(capsys, f"{text}, line 2", tmp_path / "l", text)


def test_nothing_to_learn_from(tmp_path, capsys, cuts):
    silent = write(tmp_path / "silent.jsonl.gz", [cut("none", None)])
    refused(capsys, f"no transcript is left in {silent}: 1 x", tmp_path / "l", silent)
    refused(capsys, "lang.min_count: 99 leaves no character", tmp_path / "l", cuts, min_count=99)
    refused(capsys, "kind char needs --cuts", tmp_path / "l")


def test_config_errors_name_the_key(tmp_path, capsys, cuts):
    refused(capsys, "cfg.lang.kind: unknown kind 'word'", tmp_path / "l", cuts, kind="word")
    refused(capsys, "min_count", tmp_path / "l", cuts, min_count=0)
    refused(capsys, "min_cuont", tmp_path / "l", cuts, min_cuont=1)
