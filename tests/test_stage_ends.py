"""One-line errors of the model stages."""

import errno
import gzip
import json
import shutil

import pytest
import torch
from lhotse import CutSet

from lowrank_speech.models.folder import load_model
from lowrank_speech.models.tasks import to_task
from lowrank_speech.stages import base, common, decode, features, train
from stage_world import (
    FAMILIES,
    KIND,
    MODEL,
    RECIPE,
    done,
    make_features,
    odd_cuts,
    refused,
    train_cfg,
    train_paths,
    utterance,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_model_folder(world, tmp_path, capsys, family):
    lost = tmp_path / "lost"
    paths = train_paths(world, family, tmp_path / "out", model=lost)
    refused(capsys, f"--model: {lost} does not exist", train, train_cfg(), tmp_path / "m.json", **paths)
    cuts, out = world.features[family] / "test.jsonl.gz", tmp_path / "out"
    cfg = {"task": {"type": "asr"}}
    refused(capsys, f"--model: {lost} does not", decode, cfg, tmp_path / "m.json", model=lost, cuts=cuts, out=out)
    raw = world.corpus / "test.jsonl.gz"
    cfg, made = {"kind": KIND[family]}, tmp_path / "f.jsonl.gz"
    refused(capsys, "lost is not a model folder", features, cfg, tmp_path / "m.json", cuts=raw, base=lost, out=made)
    lost.mkdir()
    refused(capsys, "config.json is missing", train, train_cfg(), tmp_path / "m.json", **paths)
    shutil.copy(world.base[family] / "config.json", lost)
    refused(capsys, "model.safetensors is missing", train, train_cfg(), tmp_path / "m.json", **paths)


@pytest.mark.parametrize("task", ["asr", "lid"])
@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_split_ends_training(world, tmp_path, capsys, task, split, family):
    CutSet.from_cuts([]).to_file(tmp_path / "empty.jsonl.gz")
    paths = train_paths(world, family, tmp_path / "out", task, **{f"{split}_cuts": tmp_path / "empty.jsonl.gz"})
    message = f"the {'training' if split == 'train' else 'dev'} cuts, {tmp_path}/empty.jsonl.gz: no utterance is left"
    refused(capsys, message, train, train_cfg(task), tmp_path / "m.json", **paths)


@pytest.mark.parametrize("task", ["asr", "lid"])
def test_an_empty_split_ends_decoding_and_features(world, systems, tmp_path, capsys, task):
    empty = tmp_path / "empty.jsonl.gz"
    CutSet.from_cuts([]).to_file(empty)
    paths = {"model": systems["wav2vec2", task].model, "cuts": empty, "out": tmp_path / "out"}
    paths |= {"lang": world.lang["wav2vec2"]} if task == "asr" else {}
    refused(capsys, "no utterance is left", decode, {"task": {"type": task}}, tmp_path / "m.json", **paths)
    for kind in ("conv", "waveform"):
        paths = {"cuts": empty, "base": world.base["wav2vec2"], "out": tmp_path / "f.jsonl.gz"}
        refused(capsys, "has no cuts", features, {"kind": kind}, tmp_path / "m.json", **paths)


def test_a_split_of_which_nothing_is_left_says_why(world, tmp_path, capsys):
    cuts = make_features(world, "whisper", odd_cuts(tmp_path)[:3], tmp_path, "train")
    paths = train_paths(world, "whisper", tmp_path / "out", train_cuts=cuts)
    message = "no utterance is left; set aside: 2 x no text, 1 x normalises to nothing"
    refused(capsys, message, train, train_cfg(), tmp_path / "m.json", **paths)
    assert not list(paths["scratch"].iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_target_that_matches_nothing(world, tmp_path, capsys, family):
    cfg = train_cfg(adapt="lora", lora={"rank": 2, "targets": ["*nowhere*"]})
    paths = train_paths(world, family, tmp_path / "out")
    refused(capsys, "'*nowhere*'", train, cfg, tmp_path / "m.json", **paths)
    cfg["lora"] = {"rank": 99}
    refused(capsys, "rank 99 is above the full rank", train, cfg, tmp_path / "m.json", **paths)
    assert not (tmp_path / "out" / "model").exists()


def test_features_of_the_wrong_family_and_a_task_without_tokens(world, systems, tmp_path, capsys):
    raw, made = world.corpus / "test.jsonl.gz", tmp_path / "f.jsonl.gz"
    paths = {"cuts": raw, "base": world.base["wav2vec2"], "out": made}
    message = "logmel does not fit the wav2vec2 model"
    refused(capsys, message, features, {"kind": "logmel"}, tmp_path / "m.json", **paths)
    paths = train_paths(world, "wav2vec2", tmp_path / "out", "lid")
    refused(capsys, "a recognition task needs --lang", train, train_cfg("asr"), tmp_path / "m.json", **paths)
    paths = {"model": systems["wav2vec2", "asr"].model, "cuts": world.features["wav2vec2"] / "test.jsonl.gz"}
    cfg, out = {"task": {"type": "lid"}}, tmp_path / "out"
    refused(capsys, "is a model for ctc, not for classification", decode, cfg, tmp_path / "m.json", out=out, **paths)


def test_whisper_on_other_tokens_is_refused(world, systems, tmp_path, capsys):
    paths = train_paths(world, "whisper", tmp_path / "out", lang=world.lang["wav2vec2"])
    refused(capsys, "trained on other tokens", train, train_cfg(), tmp_path / "m.json", **paths)


def test_one_language_is_nothing_to_tell_apart(world, tmp_path, capsys):
    german = [cut for cut in world.cuts["train"] if cut.supervisions[0].language == "de"]
    cuts = make_features(world, "wav2vec2", german, tmp_path, "train")
    paths = train_paths(world, "wav2vec2", tmp_path / "out", "lid", train_cuts=cuts, dev_cuts=cuts)
    refused(capsys, "needs at least two languages", train, train_cfg("lid"), tmp_path / "m.json", **paths)
    cfg = train_cfg("lid") | {"task": {"type": "lid", "languages": ["de", "fr"]}}
    refused(capsys, "the training cuts have no utterance in 'fr'", train, cfg, tmp_path / "m.json", **paths)


def test_a_training_utterance_without_language_in_lid(world, tmp_path):
    more = [*world.cuts["train"], utterance(tmp_path, "n1", "ab", None)]
    cuts = make_features(world, "wav2vec2", more, tmp_path, "train")
    out = tmp_path / "out"
    paths = train_paths(world, "wav2vec2", out, "lid", train_cuts=cuts)
    record = done(train, train_cfg("lid"), out / "train.json", **paths)
    assert record["metrics"]["set_aside"] == {"unknown language": 1}


def test_one_language_in_the_config_is_nothing_to_tell_apart(world, tmp_path, capsys):
    cfg = train_cfg("lid") | {"task": {"type": "lid", "languages": ["de"]}}
    paths = train_paths(world, "wav2vec2", tmp_path / "out", "lid")
    refused(capsys, "languages is ['de']; name at least two", train, cfg, tmp_path / "m.json", **paths)


def test_keys_of_how_a_training_runs_are_checked(world, tmp_path, capsys):
    paths = train_paths(world, "wav2vec2", tmp_path / "out")
    message = "runtime: unknown key 'workerz' (did you mean 'workers'?)"
    refused(capsys, message, train, train_cfg(), tmp_path / "m.json", runtime='{"workerz": 1}', **paths)
    message = "runtime.save_minutes is 0; it must be above 0"
    refused(capsys, message, train, train_cfg(), tmp_path / "m.json", runtime='{"save_minutes": 0}', **paths)
    cfg = train_cfg(training={"save_minutes": 1})
    refused(capsys, "cfg.training: unknown key 'save_minutes'", train, cfg, tmp_path / "m.json", **paths)


def test_a_segment_of_a_recognition_task_is_refused(world, tmp_path, capsys):
    """The audio would be cut, and the whole transcript kept."""
    paths = train_paths(world, "wav2vec2", tmp_path / "out")
    cfg = train_cfg() | {"task": {"type": "asr", "segment": {"seconds": 1.5}}}
    message = "cfg.task: segment cuts the audio, but not the transcript"
    refused(capsys, message, train, cfg, tmp_path / "m.json", **paths)
    cfg["task"]["segment"]["seconds"] = None
    done(train, cfg, tmp_path / "m.json", **paths)


def test_a_single_utterance_can_be_trained_on(world, tmp_path):
    cuts = make_features(world, "wav2vec2", world.cuts["train"][:1], tmp_path, "train")
    out = tmp_path / "out"
    paths = train_paths(world, "wav2vec2", out, train_cuts=cuts)
    assert done(train, train_cfg(), out / "train.json", **paths)["metrics"]["steps"] == 2


def test_another_task_keeps_every_weight_of_the_body(world):
    model = load_model(world.base["wav2vec2"])
    before = {name: weight.clone() for name, weight in model.body.state_dict().items()}
    other, _ = to_task(model, "classify", 2, ["de", "en"], seed=3)
    assert all(torch.equal(weight, before[name]) for name, weight in other.body.state_dict().items())


def test_ctc_decoding_with_other_tokens_is_refused(world, systems, tmp_path, capsys):
    paths = {"model": systems["wav2vec2", "asr"].model, "cuts": world.features["wav2vec2"] / "test.jsonl.gz"}
    cfg = {"task": {"type": "asr"}}
    refused(
        capsys, "tokens", decode, cfg, tmp_path / "m.json", lang=world.lang["whisper"], out=tmp_path / "out", **paths
    )


@pytest.mark.parametrize("missing", ["train_cuts", "dev_cuts", "lang", "scratch"])
def test_base_from_scratch_names_what_it_lacks(world, tmp_path, capsys, missing):
    paths = {f"{split}_cuts": world.corpus / f"{split}.jsonl.gz" for split in ("train", "dev")}
    paths |= {"lang": world.lang["wav2vec2"], "scratch": tmp_path / "scratch", "out": tmp_path / "model"}
    del paths[missing]
    cfg = {"seed": 1, "family": "wav2vec2", "source": "scratch", "model": MODEL["wav2vec2"], "pretrain": RECIPE}
    message = f"source: scratch needs --{missing.replace('_', '-')}"
    refused(capsys, message, base, cfg, tmp_path / "base.json", **paths)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_an_empty_split_ends_a_pretraining(world, tmp_path, capsys, split):
    CutSet.from_cuts([]).to_file(tmp_path / "empty.jsonl.gz")
    paths = {f"{name}_cuts": world.corpus / f"{name}.jsonl.gz" for name in ("train", "dev")}
    paths |= {"lang": world.lang["whisper"], "scratch": tmp_path / "scratch", "out": tmp_path / "model"}
    paths[f"{split}_cuts"] = tmp_path / "empty.jsonl.gz"
    cfg = {"seed": 1, "family": "whisper", "source": "scratch", "model": MODEL["whisper"], "pretrain": RECIPE}
    refused(capsys, "empty.jsonl.gz: no utterance is left", base, cfg, tmp_path / "base.json", **paths)


def test_a_pretraining_with_an_utterance_without_language(world, tmp_path, capsys):
    more = [*world.cuts["train"], utterance(tmp_path, "n1", "ab", None)]
    CutSet.from_cuts(more).to_file(tmp_path / "odd.jsonl.gz")
    paths = {"train_cuts": tmp_path / "odd.jsonl.gz", "dev_cuts": world.corpus / "dev.jsonl.gz"}
    paths |= {"lang": world.lang["wav2vec2"], "scratch": tmp_path / "scratch", "out": tmp_path / "model"}
    cfg = {"seed": 1, "family": "wav2vec2", "source": "scratch", "model": MODEL["wav2vec2"], "pretrain": RECIPE}
    cfg["pretrain"] = RECIPE | {"language_weight": 0.5}
    refused(capsys, "n1", base, cfg, tmp_path / "base.json", **paths)


def test_ctc_alone_needs_no_language(world, tmp_path):
    more = [*world.cuts["train"], utterance(tmp_path, "n1", "ab", None)]
    CutSet.from_cuts(more).to_file(tmp_path / "odd.jsonl.gz")
    paths = {"train_cuts": tmp_path / "odd.jsonl.gz", "dev_cuts": world.corpus / "dev.jsonl.gz"}
    paths |= {"lang": world.lang["wav2vec2"], "scratch": tmp_path / "scratch", "out": tmp_path / "model"}
    cfg = {"seed": 1, "family": "wav2vec2", "source": "scratch", "model": MODEL["wav2vec2"], "pretrain": RECIPE}
    assert done(base, cfg, tmp_path / "base.json", **paths)["metrics"]["set_aside"] == {}


@pytest.mark.parametrize(
    ("seconds", "kept"),
    [
        (1.0, True),
        pytest.param(1.015, False),
        (1.03, False),
    ],
)
def test_pretraining_of_whisper_at_the_edge_of_its_window(world, tmp_path, seconds, kept):
    CutSet.from_cuts([*world.cuts["train"], utterance(tmp_path, "edge", "cd", "en", seconds)]).to_file(
        tmp_path / "odd.jsonl.gz"
    )
    paths = {"train_cuts": tmp_path / "odd.jsonl.gz", "dev_cuts": world.corpus / "dev.jsonl.gz"}
    paths |= {"lang": world.lang["whisper"], "scratch": tmp_path / "scratch", "out": tmp_path / "model"}
    cfg = {"seed": 1, "family": "whisper", "source": "scratch", "model": MODEL["whisper"], "pretrain": RECIPE}
    record = done(base, cfg, tmp_path / "base.json", **paths)
    assert record["metrics"]["set_aside"] == ({} if kept else {"longer than the model's window": 1})


CUT = '{"id": "u", "start": 0, "duration": %s, "channel": 0, "supervisions": [], "type": "MonoCut"}\n'


@pytest.mark.parametrize(
    ("content", "number", "reason"),
    [
        (b"not gzipped", 1, "Not a gzipped file"),
        (gzip.compress(b"no JSON\n"), 1, ""),
        (gzip.compress((CUT % 1.0).encode() * 2000)[:-40], "", ""),
        (gzip.compress((CUT % 1.0).encode() + b'{"a": 1}\n'), 2, ""),
        (gzip.compress((CUT % "NaN").encode()), 1, "the duration of u is nan"),
        (gzip.compress((CUT % -1.0).encode()), 1, "the duration of u is -1.0"),
    ],
    ids=["no gzip", "no JSON", "half", "no cut", "NaN", "negative"],
)
@pytest.mark.parametrize("stage", ["train", "decode"])
def test_a_file_that_holds_no_cuts(world, systems, tmp_path, capsys, stage, content, number, reason):
    path = tmp_path / "broken.jsonl.gz"
    path.write_bytes(content)
    message = f"{path}: cut number {number}"
    if stage == "train":
        paths = train_paths(world, "wav2vec2", tmp_path / "out", train_cuts=path)
        refused(capsys, message, train, train_cfg(), tmp_path / "m.json", **paths)
    else:
        paths = {"model": systems["wav2vec2", "asr"].model, "cuts": path, "out": tmp_path / "out"}
        cfg = {"task": {"type": "asr"}}
        refused(capsys, message, decode, cfg, tmp_path / "m.json", lang=world.lang["wav2vec2"], **paths)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("lost", ["gone", "broken"])
def test_stored_features_that_cannot_be_read(world, tmp_path, capsys, lost, workers):
    cuts = make_features(world, "wav2vec2", world.cuts["train"], tmp_path, "train")
    stored = tmp_path / "train.h5"
    if lost == "gone":
        stored.unlink()
    else:
        stored.write_bytes(stored.read_bytes()[:2000])
    paths = train_paths(world, "wav2vec2", tmp_path / "out", train_cuts=cuts)
    message = f"its features in {stored} cannot be read"
    paths["runtime"] = json.dumps({"workers": workers})
    refused(capsys, message, train, train_cfg(), tmp_path / "m.json", **paths)


def test_features_of_another_family(world, tmp_path, capsys):
    cuts = world.features["whisper"] / "train.jsonl.gz"
    paths = train_paths(world, "wav2vec2", tmp_path / "out", train_cuts=cuts)
    message = "(logmel), but the model takes size"
    refused(capsys, message, train, train_cfg(), tmp_path / "m.json", **paths)


def test_a_scratch_folder_that_cannot_be_one(world, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    paths = train_paths(world, "wav2vec2", tmp_path / "out", scratch=tmp_path / "file")
    message = "file/lock cannot be used as a lock: File exists; give a writable folder"
    refused(capsys, message, train, train_cfg(), tmp_path / "m.json", **paths)


@pytest.mark.parametrize("error", [OSError(errno.EROFS, "Read-only file system", "out/model"), KeyboardInterrupt()])
def test_what_ends_any_stage_in_a_line(error, capsys):
    def body():
        raise error

    code = common.run_stage(body, "INFO")
    (line,) = capsys.readouterr().err.splitlines()
    if isinstance(error, OSError):
        assert code == 2 and "no access: [Errno 30] Read-only file system: 'out/model'; change the permissions" in line
    else:
        assert code == 130 and line.endswith("interrupted")
