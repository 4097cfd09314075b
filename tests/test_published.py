"""Models named by a folder below $SPEECH_MODELS: found wherever a source is read, and told where they are not."""

import json
from pathlib import Path

import pytest

from lowrank_speech import published
from lowrank_speech.errors import UserError
from lowrank_speech.experiment import outside
from lowrank_speech.models.sources import config_folder, resolve
from workflow_config import checked, refused
from workflow_tree import Tree, tiny_config, write_ocean


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    """A folder of models with a Whisper, which $SPEECH_MODELS names."""
    folder = tmp_path / "models" / "whisper-base"
    folder.mkdir(parents=True)
    config = {"model_type": "whisper", "max_source_positions": 1500, "architectures": ["WhisperForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "work").mkdir()
    write_ocean(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("SPEECH_MODELS", str(folder.parent))
    return folder.parent


def named(source: str, **keys) -> dict:
    """tiny_config with a published Whisper."""
    config = tiny_config()
    config["langs"]["own"] = {"kind": "whisper"}
    config["bases"]["whisper"] = {"family": "whisper", "source": source, "lang": "own", "features": "logmel", **keys}
    return config


def test_a_name_is_found_everywhere(models):
    assert published.local("whisper-base") == models / "whisper-base" == resolve("whisper-base", None).folder
    assert config_folder("whisper-base") == models / "whisper-base"
    assert outside.base_sources("whisper-base") == {"config.json": str(models / "whisper-base" / "config.json")}
    config = checked(named("whisper-base", window=10))
    assert outside.lost_bases(["whisper", "wav2vec2"], config) == {}


def test_a_folder_here_comes_first_and_hub_names_and_paths_are_not_looked_up(models):
    (models / "openai" / "whisper-base").mkdir(parents=True)
    for source in ("openai/whisper-base", "./whisper-base", str(models / "whisper-base")):
        assert published.local(source) == Path(source) and not published.is_name(source)
    Path("whisper-base").mkdir()
    assert published.local("whisper-base") == Path("whisper-base")


def test_what_the_config_says_of_the_model_is_read(models):
    message = refused(named("whisper-base", window=40))
    assert message.startswith("bases.whisper.window: 40 s is longer than the window of whisper-base, 30 s")
    (models / "whisper-base" / "config.json").unlink()
    assert f"the folder {models / 'whisper-base'} has no config.json" in refused(named("whisper-base"))


def test_a_name_that_is_not_there(models):
    message = f"there is no model folder whisper-bass here, nor below SPEECH_MODELS={models}; set it to the folder"
    assert refused(named("whisper-bass")).startswith(f"bases.whisper.source: {message}")
    with pytest.raises(UserError, match="base model whisper-bass: there is no model folder whisper-bass here"):
        resolve("whisper-bass", None)
    with pytest.raises(UserError, match=r"whisper-bass is not a model folder, .*nor below SPEECH_MODELS="):
        config_folder("whisper-bass")


@pytest.mark.slow
def test_without_the_variable_only_a_dry_run_is_accepted(models, tmp_path, monkeypatch):
    monkeypatch.delenv("SPEECH_MODELS")
    config = named("whisper-base")
    lost = outside.lost_bases(config["bases"], checked(config))
    message = "there is no model folder whisper-base here, and SPEECH_MODELS is not set; set it to the folder"
    assert list(lost) == ["bases.whisper.source"] and message in lost["bases.whisper.source"]
    (tmp_path / "tree").mkdir()
    tree = Tree(tmp_path / "tree")
    tree.write(config)
    assert tree.due()["base"] == 2
    done = tree.snakemake("--cores", "1")
    assert done.returncode != 0 and message in done.stdout and "Traceback" not in done.stdout
    assert tree.made() == []
