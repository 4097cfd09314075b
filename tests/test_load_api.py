"""Models by name, and the Python API: ``load(name)`` with ``transcribe``, ``identify`` and ``logits``."""

import json

import pytest

from lowrank_speech.errors import UserError
from lowrank_speech.inference.naming import find


def fake_model(folder, **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2", **config}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def refused(*arguments, **keys):
    with pytest.raises(UserError) as error:
        find(*arguments, **keys)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for system in ("w/asr/lowrank", "w/asr/full", "w/lid/full"):
        fake_model(tmp_path / "exp/mine/train" / system / "model", lowrank_speech={"lang_sha256": None})
        (tmp_path / "exp/mine/train" / system / "train.json").write_text("{}")
    return tmp_path / "exp/mine"


def test_a_system_has_several_names(experiment):
    wanted = experiment / "train/w/asr/full/model"
    names = ("exp/mine:w/asr/full", "exp/mine/train/w/asr/full", "exp/mine/train/w/asr/full/model", wanted)
    for name in names:
        found = find(name)
        assert found.folder.absolute() == wanted and found.system == "w/asr/full", name
        assert found.experiment.absolute() == experiment and found.origin == "experiment"
        assert found.ours and found.trained and found.lang is None


def test_errors_list_the_systems(experiment):
    for name in ("exp/mine:w/asr/ful", "exp/mine:w/asr", "exp/mine:", "exp/mine", "exp/mine:../mine/train/w/asr/full"):
        assert "w/asr/full, w/asr/lowrank, w/lid/full" in refused(name), name
    assert "exp/other does not exist" in refused("exp/other:w/asr/full")
    (experiment / "train").rename(experiment / "gone")
    (experiment / "train").mkdir()
    assert "no system of it is trained yet" in refused("exp/mine")


def test_a_plain_folder(tmp_path):
    found = find(fake_model(tmp_path / "hub"))
    assert (found.origin, found.ours, found.trained, found.experiment) == ("folder", False, False, None)
    assert "only hub names have revisions" in refused(tmp_path / "hub", revision="main")


def test_a_name_below_the_folder_of_models(tmp_path, monkeypatch):
    fake_model(tmp_path / "tiny")
    monkeypatch.setenv("SPEECH_MODELS", str(tmp_path))
    assert find("tiny").folder == tmp_path / "tiny"
    monkeypatch.delenv("SPEECH_MODELS")
    assert "SPEECH_MODELS is not set" in refused("tiny")


def test_folders_that_are_not_models(tmp_path, experiment):
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in refused("empty")
    folder = fake_model(tmp_path / "half")
    (folder / "model.safetensors").unlink()
    assert "half is not a complete model folder: model.safetensors is missing" in refused("half")
    (folder / "config.json").write_text("{")
    assert "half/config.json is not valid" in refused("half")
    (tmp_path / "text.txt").write_text("")
    assert "text.txt is a file" in refused("text.txt")
    assert "does not exist" in refused("./nothing") and "does not exist" in refused("a/b/c")
    adapter = experiment / "train/w/asr/full/adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert "LoRA adapter" in refused(adapter) and "full/model" in refused(adapter)
