"""detect: the kind of a folder and the keys of its section in a config."""

import pytest

from lowrank_speech.corpora import detect as module
from lowrank_speech.corpora import registry
from lowrank_speech.corpora.detect import detect
from lowrank_speech.corpora.layouts import guess_splits
from lowrank_speech.errors import UserError


def test_splits_are_guessed_from_names():
    assert guess_splits({"train": "train.tsv", "dev": "dev.tsv", "test": "t.tsv", "other": "o.tsv"}) == {
        "train": {"source": "train.tsv"},
        "dev": {"source": "dev.tsv"},
        "test": {"source": "t.tsv"},
    }
    assert guess_splits({"training": "a", "eval": "b"}) == {
        "train": {"source": "a", "part": [0.0, 0.9]},
        "dev": {"source": "a", "part": [0.9, 1.0]},
        "test": {"source": "b"},
    }
    assert guess_splits({"train": "a", "dev": "b"}) == {
        "train": {"source": "a", "part": [0.0, 0.9]},
        "dev": {"source": "a", "part": [0.9, 1.0]},
        "test": {"source": "b"},
    }
    assert list(guess_splits({"all": "x"}).values()) == [
        {"source": "x", "part": part} for part in ([0.0, 0.8], [0.8, 0.9], [0.9, 1.0])
    ]
    assert guess_splits({"dev-clean": "d", "dev-other": "o", "test-clean": "t", "train-clean-5": "r"}) == {
        "train": {"source": "r"},
        "dev": {"source": "d"},
        "test": {"source": "t"},
    }
    assert guess_splits({}) == {}


def test_kaldi_and_tables_and_digits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "k" / split).mkdir(parents=True)
        (tmp_path / "k" / split / "wav.scp").write_text("a a.wav\n")
    found = detect(tmp_path / "k")
    assert (found.kind, found.missing) == ("kaldi", ("language",))
    assert found.keys["path"] == str(tmp_path / "k")
    assert registry.read({**found.keys, "language": "en"}, "x").splits["test"].source == "test"
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "all.tsv").write_text("id\taudio\tlanguage\tspeaker\ttext\n")
    assert detect(tmp_path / "t").kind == "tsv"
    registry.read(detect(tmp_path / "t").keys, "x")


def test_none_and_several(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no known layout"):
        detect(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        detect(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; give the folder"):
        detect(tmp_path / "file")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "wav.scp").write_text("a a.wav\n")
    (tmp_path / "all.tsv").write_text("id\taudio\tlanguage\tspeaker\ttext\n")
    with pytest.raises(UserError, match="several kinds of corpus fit this folder: kaldi, tsv; choose one"):
        detect(tmp_path)
    assert [one.kind for one in module.candidates(tmp_path)] == ["kaldi", "tsv"]


def test_real_folders(speech_data):
    for folder, kind in (("digits", "digits"), ("speechocean762", "kaldi"), ("voices", "tsv")):
        assert detect(speech_data / folder).kind == kind
