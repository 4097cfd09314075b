"""The stages train and base, killed and started again."""

import json
import os
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile

from lowrank_speech.artefact import Manifest
from lowrank_speech.models import folder as folder_module
from lowrank_speech.stages import base, lang, train
from lowrank_speech.training import loop
from lowrank_speech.training.config import Noise, Runtime, TrainConfig
from lowrank_speech.training.data.prepared import RECORD
from lowrank_speech.training.data.splits import Split
from lowrank_speech.training.loop import Trainer
from lowrank_speech.training.run import Run
from lowrank_speech.training.step import Stepper
from stage_world import (
    FAMILIES,
    MODEL,
    RECIPE,
    done,
    make_base,
    make_features,
    odd_cuts,
    run,
    train_cfg,
    train_paths,
    utterance,
)


def kill(monkeypatch, stage, cfg, manifest, **paths):
    """Run the stage and stop it in its second epoch."""
    with monkeypatch.context() as patch:
        real = Trainer._evaluate

        def killed(self, dev):
            if self.state.epoch == 1:  # epochs that are done
                raise KeyboardInterrupt
            return real(self, dev)

        patch.setattr(Trainer, "_evaluate", killed)
        assert run(stage, cfg, manifest, **paths)[0] == 130
    assert not manifest.exists() and states(paths) and not (paths["out"] / "model").exists()


def states(paths):
    """The states of all unfinished runs."""
    return sorted(paths["scratch"].glob("*/state-*.pt"))


def only_run(paths):
    """The folder of the only unfinished run."""
    (found,) = (path for path in paths["scratch"].iterdir() if path.is_dir())
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_training_stage_goes_on(world, systems, tmp_path, monkeypatch, family):
    paths = train_paths(world, family, tmp_path)
    kill(monkeypatch, train, train_cfg(), tmp_path / "train.json", **paths)
    again = done(train, train_cfg(), tmp_path / "train.json", **paths)
    assert again["outputs"] == systems[family, "asr"].record["outputs"]


def test_a_training_killed_while_it_writes_its_model_goes_on(world, systems, tmp_path, monkeypatch):
    paths = train_paths(world, "wav2vec2", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "save_model", Mock(side_effect=KeyboardInterrupt))
        assert run(train, train_cfg(), tmp_path / "train.json", **paths)[0] == 130
    assert states(paths)
    monkeypatch.setattr(Stepper, "step", Mock(side_effect=AssertionError("a step was taken again")))
    again = done(train, train_cfg(), tmp_path / "train.json", **paths)
    assert again["outputs"] == systems["wav2vec2", "asr"].record["outputs"]
    assert not list(paths["scratch"].iterdir())


def test_a_ctrl_c_that_meets_a_complete_training_loses_nothing(world, systems, tmp_path, monkeypatch):
    """The stage ends with 0. Snakemake, which got the signal too, does not count that and removes the outputs."""
    paths = train_paths(world, "wav2vec2", tmp_path)
    with monkeypatch.context() as patch:
        real = Manifest.write
        patch.setattr(Manifest, "write", lambda *given, **keys: os.kill(os.getpid(), 2) or real(*given, **keys))
        done(train, train_cfg(), tmp_path / "train.json", **paths)
    assert states(paths)
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "train.json").unlink()
    monkeypatch.setattr(Stepper, "step", Mock(side_effect=AssertionError("a step was taken again")))
    again = done(train, train_cfg(), tmp_path / "train.json", **paths)
    assert again["outputs"] == systems["wav2vec2", "asr"].record["outputs"] and not list(paths["scratch"].iterdir())


def aside_paths(world, task, tmp_path):
    """Inputs of a training of which some utterances are set aside."""
    cuts = [*world.cuts["train"], *odd_cuts(tmp_path), utterance(tmp_path, "x-fr", "ab", "fr")]
    found = make_features(world, "wav2vec2", cuts, tmp_path, "train")
    return train_paths(world, "wav2vec2", tmp_path / "out", task, train_cuts=found)


@pytest.mark.parametrize("task", ["asr", "lid"])
def test_a_run_that_goes_on_passes_over_no_cuts(world, tmp_path, monkeypatch, task):
    cfg, manifest = train_cfg(task), tmp_path / "out" / "train.json"
    if task == "lid":
        cfg["task"]["languages"] = ["de", "en"]
    paths = aside_paths(world, task, tmp_path)
    whole = done(train, cfg, manifest, **paths)
    aside = (paths["out"] / "set_aside.tsv").read_bytes()
    assert whole["metrics"]["set_aside"] and not list(paths["scratch"].iterdir())
    shutil.rmtree(paths["out"])
    kill(monkeypatch, train, cfg, manifest, **paths)
    for owner, name in ((Split, "cuts"), (loop, "plan")):
        monkeypatch.setattr(owner, name, Mock(side_effect=AssertionError("a pass over the cuts")))
    again = done(train, cfg, manifest, **paths)
    for key in ("outputs", "cfg", "seed"):
        assert again[key] == whole[key]
    for key in ("set_aside", "utterances_train", "labels", "steps"):
        assert again["metrics"][key] == whole["metrics"][key]
    assert (paths["out"] / "set_aside.tsv").read_bytes() == aside
    assert not list(paths["scratch"].iterdir())


@pytest.mark.parametrize("lost", ["train.jsonl", "dev.npy", RECORD, "the record's end", "another run's"])
def test_prepared_cuts_that_are_not_whole_are_made_again(world, tmp_path, monkeypatch, lost):
    cfg, manifest, paths = train_cfg(), tmp_path / "out" / "train.json", aside_paths(world, "asr", tmp_path)
    whole = done(train, cfg, manifest, **paths)
    shutil.rmtree(paths["out"])
    kill(monkeypatch, train, cfg, manifest, **paths)
    folder = only_run(paths)
    if lost == "another run's":
        record = json.loads((folder / RECORD).read_text())
        (folder / RECORD).write_text(json.dumps(record | {"key": "0" * 64}))
    elif lost == "the record's end":
        (folder / RECORD).write_text((folder / RECORD).read_text()[:-20])
    elif lost == "train.jsonl":
        (folder / lost).write_bytes(b"")
    else:
        (folder / lost).unlink()
    again = done(train, cfg, manifest, **paths)
    assert again["outputs"] == whole["outputs"] and again["metrics"]["set_aside"] == whole["metrics"]["set_aside"]


@pytest.mark.parametrize(
    "changed",
    ["train_cuts", "dev_cuts", "model", "config of the model", "seed", "lang", "normaliser", "code"],
)
def test_a_run_with_another_key_starts_beside_the_old_one(world, tmp_path, monkeypatch, capsys, changed):
    paths = train_paths(world, "wav2vec2", tmp_path / "out") | {"code": "a" * 64}
    manifest, cfg, old = tmp_path / "train.json", train_cfg(), None
    kill(monkeypatch, train, cfg, manifest, **paths)
    old, before, new = only_run(paths), states(paths), dict(paths)
    if changed == "seed":
        cfg = train_cfg(seed=2)
    elif changed == "code":
        new["code"] = "b" * 64
    elif changed == "model":
        make_base(world, "wav2vec2", tmp_path / "base", seed=2)
        new["model"] = tmp_path / "base" / "model"
    elif changed == "config of the model":  # the same weights
        new["model"] = shutil.copytree(paths["model"], tmp_path / "model")
        file = new["model"] / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"layer_norm_eps": 1e-3}))
    elif changed == "lang":  # as many symbols, but other ones
        new["lang"] = tmp_path / "lang"
        upper = {"seed": 1, "lang": {"kind": "char", "normalise": {"case": "upper"}}}
        done(lang, upper, new["lang"] / "lang.json", cuts=world.corpus / "train.jsonl.gz", out=new["lang"])
    elif changed == "normaliser":  # the same symbols
        new["lang"] = shutil.copytree(paths["lang"], tmp_path / "lang")
        file = new["lang"] / "lang.json"
        record = json.loads(file.read_text())
        record["metrics"]["normalise"]["replace"] = {"ä": "a"}
        file.write_text(json.dumps(record))
    else:
        (tmp_path / "new").mkdir()
        new[changed] = make_features(world, "wav2vec2", world.cuts["test"], tmp_path / "new", "other")
    early = paths["scratch"] / ("0" * 12)  # of a run that was killed before its first state
    early.mkdir()
    (early / "train.jsonl").write_text("")
    capsys.readouterr()
    done(train, cfg, manifest, **new)
    log = capsys.readouterr().err
    assert f"{old}: an unfinished run with other settings, inputs or code" in log
    assert f"{old} (0." in log and "continuing from" not in log
    assert only_run(paths) == old and states(paths) == before
    done(train, train_cfg(), manifest, **paths)
    assert "continuing from" in capsys.readouterr().err and not list(paths["scratch"].iterdir())


def test_what_changes_no_result_may_change_in_a_run_that_goes_on(world, systems, tmp_path, monkeypatch, capsys):
    paths = train_paths(world, "wav2vec2", tmp_path)
    kill(monkeypatch, train, train_cfg(), tmp_path / "train.json", **paths)
    cfg = train_cfg(training={"lr": 0.003, "clip": 1.0})  # spelt out, and as before
    more = {
        "runtime": '{"workers": 1, "save_minutes": 1, "tensorboard": true, "device": "cpu"}',
        "tensorboard": tmp_path / "events",
    }
    again = done(train, cfg, tmp_path / "train.json", **paths, **more)
    assert "continuing from" in capsys.readouterr().err and list((tmp_path / "events").iterdir())
    assert again["outputs"] == systems["wav2vec2", "asr"].record["outputs"]
    assert again["cfg"] == systems["wav2vec2", "asr"].record["cfg"]
    assert not {"workers", "save_minutes", "tensorboard", "device", "dry_run"} & set(again["cfg"]["training"])


def test_a_state_goes_on_with_an_equal_lang_that_took_another_time(world, tmp_path, monkeypatch):
    paths = train_paths(world, "wav2vec2", tmp_path / "out")
    kill(monkeypatch, train, train_cfg(), tmp_path / "train.json", **paths)
    paths["lang"] = shutil.copytree(paths["lang"], tmp_path / "lang")
    manifest = paths["lang"] / "lang.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"seconds": 99.0}))
    folder, steps = only_run(paths), []
    real = Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda self, *given: steps.append(self.steps) or real(self, *given))
    assert done(train, train_cfg(), tmp_path / "train.json", **paths) and not folder.exists() and 0 not in steps


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_pretraining_on_other_cuts_starts_beside_the_old_one(world, tmp_path, monkeypatch, capsys, split):
    paths = {f"{name}_cuts": world.corpus / f"{name}.jsonl.gz" for name in ("train", "dev")}
    paths |= {"lang": world.lang["wav2vec2"], "scratch": tmp_path / "scratch", "out": tmp_path / "out" / "model"}
    cfg = {"seed": 1, "family": "wav2vec2", "source": "scratch", "model": MODEL["wav2vec2"], "pretrain": RECIPE}
    kill(monkeypatch, base, cfg, tmp_path / "base.json", **paths)
    old, before = only_run(paths), states(paths)
    done(base, cfg, tmp_path / "base.json", **paths | {f"{split}_cuts": world.corpus / "test.jsonl.gz"})
    assert f"{old}: an unfinished run" in capsys.readouterr().err and states(paths) == before


def test_recordings_of_noise_are_part_of_the_key(world, tmp_path):
    noise, cuts = tmp_path / "noise", world.corpus / "train.jsonl.gz"
    noise.mkdir()

    def key():
        recipe = TrainConfig(noise=Noise(folder=str(noise)))
        return Run(recipe, Runtime(), 1, tmp_path / "scratch", cuts, cuts, ["settings"]).key

    soundfile.write(noise / "a.wav", np.ones(400) / 2, 16_000)
    first = key()
    assert key() == first
    soundfile.write(noise / "a.wav", np.ones(500) / 2, 16_000)
    second = key()
    soundfile.write(noise / "b.wav", np.ones(400) / 2, 16_000)
    assert len({first, second, key()}) == 3
