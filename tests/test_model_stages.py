"""Stages base, features, train and decode one after the other, on a tiny corpus of tones; and what they refuse."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from safetensors.torch import load_file

from lowrank_speech.models import folder as folder_module
from lowrank_speech.models.folder import body_state, load_model, to_task
from lowrank_speech.stages import base, decode, factorise, features, lang, train
from lowrank_speech.training.checkpoint import Checkpoints
from lowrank_speech.training.loop import Trainer
from lowrank_speech.training.step import Stepper
from tiny_models import WAV2VEC2, WHISPER

TEXTS = {"de": ["ab", "Bä!", "abä", "bb"], "en": ["cd", "dc", "C d", "dd"]}
PITCH = {c: 300 + 350 * i for i, c in enumerate("abcdäxz")}
FAMILIES = ("wav2vec2", "whisper")
KIND = {"wav2vec2": "conv", "whisper": "logmel"}
MODEL = {"wav2vec2": {**WAV2VEC2, "conv_kernel": [256, 8], "conv_stride": [40, 8]}, "whisper": WHISPER}
RECIPE = {"epochs": 2, "batch_seconds": 2.0, "lr": 0.003, "head_lr": 0.01, "dropout": 0.0, "ctc": {"backend": "torch"}}
CTC = {"backend": "torch", "version": torch.__version__}


def utterance(folder, name, text, language, seconds=None, speaker="s"):
    """A cut of its own file: every letter is a tone of 0.15 s."""
    tones = [PITCH.get(c, 0) for c in (text or "ab").lower()]
    time = np.arange(int(16_000 * (seconds / len(tones) if seconds else 0.15))) / 16_000
    rng = np.random.default_rng(list(name.encode()))
    wave = np.concatenate([0.3 * np.sin(2 * np.pi * pitch * time) for pitch in tones])
    wave += 0.01 * rng.standard_normal(len(wave))
    soundfile.write(folder / f"{name}.wav", wave.astype(np.float32), 16_000)
    recording = Recording.from_file(folder / f"{name}.wav")
    supervision = SupervisionSegment(name, name, 0.0, recording.duration, text=text, language=language, speaker=speaker)
    return MonoCut(name, 0.0, recording.duration, 0, [supervision], recording=recording)


def run(stage, cfg, manifest, **paths):
    """(exit code, manifest) of a stage's ``main``."""
    arguments = ["--cfg", json.dumps(cfg), "--manifest", str(manifest)]
    for name, path in paths.items():
        arguments += [f"--{name.replace('_', '-')}", str(path)]
    code = stage.main(arguments)
    return code, json.loads(manifest.read_text(encoding="utf-8")) if code == 0 else None


def done(stage, cfg, manifest, **paths):
    code, record = run(stage, cfg, manifest, **paths)
    assert code == 0
    assert record["stage"] == stage.__name__.rpartition(".")[2]
    return record


def refused(capsys, message, stage, cfg, manifest, **paths):
    """The stage ends with code 2, leaves no manifest, and says ``message`` in its last line."""
    capsys.readouterr()
    code, _ = run(stage, cfg, manifest, **paths)
    shown = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and not manifest.exists()
    assert "ERROR" in shown[-1] and message in shown[-1], shown[-1]
    assert not any("Traceback" in line for line in shown)


def make_base(world, family, folder, seed=1, **keys):
    cfg = {"seed": seed, "family": family, "source": "scratch", "model": MODEL[family], "pretrain": RECIPE, **keys}
    paths = {f"{split}_cuts": world.corpus / f"{split}.jsonl.gz" for split in ("train", "dev")}
    out = {"out": folder / "model", "scratch": folder / "scratch"}
    return done(base, cfg, folder / "base.json", lang=world.lang[family], **paths, **out)


def make_features(world, family, cuts, folder, split):
    """Features of ``cuts``; the path of the cuts that have them."""
    source = folder / f"raw-{split}.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(source)
    out = folder / f"{split}.jsonl.gz"
    done(features, {"kind": KIND[family]}, folder / f"{split}.json", cuts=source, base=world.base[family], out=out)
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Corpus, token sets, and for both families a base and its features."""
    root = tmp_path_factory.mktemp("world")
    found = SimpleNamespace(root=root, corpus=root / "corpus", lang={}, base={}, features={}, records={}, cuts={})
    (root / "wav").mkdir()
    found.corpus.mkdir()
    for split in ("train", "dev", "test"):
        found.cuts[split] = [
            utterance(root / "wav", f"{split}-{language}{i}", text, language, speaker=f"{split}{i % 2}")
            for language, texts in TEXTS.items()
            for i, text in enumerate(texts)
        ]
        CutSet.from_cuts(found.cuts[split]).to_file(found.corpus / f"{split}.jsonl.gz")
    for family, purpose in (("wav2vec2", "ctc"), ("whisper", "seq2seq")):
        folder = found.lang[family] = root / "lang" / purpose
        cfg = {"seed": 1, "lang": {"kind": "char", "for": purpose}}
        done(lang, cfg, folder / "lang.json", cuts=found.corpus / "train.jsonl.gz", out=folder)
        found.records[family] = make_base(found, family, root / family)
        found.base[family] = root / family / "model"
        found.features[family] = root / family / "features"
        for split, cuts in found.cuts.items():
            found.features[family].mkdir(exist_ok=True)
            make_features(found, family, cuts, found.features[family], split)
    return found


def train_paths(world, family, folder, task="asr", **changed):
    paths = {f"{split}_cuts": world.features[family] / f"{split}.jsonl.gz" for split in ("train", "dev")}
    paths |= {"model": world.base[family], "out": folder, "scratch": folder / "scratch"}
    return paths | ({"lang": world.lang[family]} if task == "asr" else {}) | changed


def train_cfg(task="asr", adapt="full", seed=1, **keys):
    recipe = RECIPE | keys.pop("training", {})
    return {"seed": seed, "task": {"type": task}, "adapt": adapt, "training": recipe, **keys}


def moved_in_body(before, after):
    """Names of the body's weights that differ; masked_spec_embed, which nothing uses, is left out."""
    old, new = (body_state(model)[0] for model in (before, after))
    assert new.keys() <= old.keys()
    return {n for n, v in new.items() if not torch.equal(v, old[n]) and n != "masked_spec_embed"}


def table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="module")
def systems(world):
    """A trained system of each family and task."""
    found = {}
    for family in FAMILIES:
        for task in ("asr", "lid"):
            folder = world.root / family / task
            record = done(train, train_cfg(task), folder / "train.json", **train_paths(world, family, folder, task))
            found[family, task] = SimpleNamespace(folder=folder, model=folder / "model", record=record)
    return found


def decode_with(world, systems, family, task, folder, cuts=None, **keys):
    paths = {"model": systems[family, task].model, "out": folder}
    paths["cuts"] = cuts or world.features[family] / "test.jsonl.gz"
    if task == "asr":
        paths["lang"] = world.lang[family]
    cfg = {"task": {"type": task}, "decode": {"batch_seconds": 2.0, **keys}}
    return done(decode, cfg, folder / "decode.json", **paths)


# --- the stages, one after the other


@pytest.mark.parametrize("family", FAMILIES)
def test_base_writes_a_model_and_what_it_cost(world, family):
    record, model = world.records[family], load_model(world.base[family])
    numbers = record["numbers"]
    assert (
        numbers["parameters"]
        == model.parameters_total()
        == numbers["parameters_trained"]
        + (model.config.max_source_positions * model.config.d_model if family == "whisper" else 0)
    )
    assert numbers["languages"] == ["de", "en"] and numbers["set_aside"] == {} and numbers["source"] == "scratch"
    assert (model.family, model.task) == (family, {"wav2vec2": "ctc", "whisper": "seq2seq"}[family])
    assert set(record["outputs"]) == {"model", "metrics.jsonl"} and record["seed"] == 1
    assert numbers["ctc"] == {"wav2vec2": CTC, "whisper": None}[family]
    assert (world.base[family] / "preprocessor_config.json").is_file()
    assert not list((world.base[family].parent / "scratch").iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_base_of_the_same_seed_is_the_same_bit_for_bit(world, tmp_path, family):
    torch.manual_seed(12345)  # what ran before in the process must not matter
    again = make_base(world, family, tmp_path / "again")
    assert again["outputs"] == world.records[family]["outputs"]
    assert make_base(world, family, tmp_path / "other", seed=2)["outputs"] != again["outputs"]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_what_the_model_computes_from_the_samples(world, family):
    stored = CutSet.from_file(world.features[family] / "test.jsonl.gz").with_features_path_prefix(
        world.features[family]
    )
    model, raw = load_model(world.base[family]), {cut.id: cut for cut in world.cuts["test"]}
    record = json.loads((world.features[family] / "test.json").read_text())
    assert set(record["outputs"]) == {"test.jsonl.gz", "test.h5"}
    numbers = record["numbers"]
    assert numbers["utterances"] == len(raw) == 8 and numbers["frontend_rtf"] > 0
    assert numbers["seconds"] == pytest.approx(sum(cut.duration for cut in raw.values()), abs=1e-3)
    frames = 0
    for cut in stored:
        source, found = raw[cut.id].supervisions[0], cut.supervisions[0]
        assert (found.text, found.language, found.speaker) == (source.text, source.language, source.speaker)
        array = torch.from_numpy(cut.load_features())
        frames += len(array)
        assert model.frames_of(cut) == model.frames_of(raw[cut.id])
        if family == "wav2vec2":
            wave = torch.from_numpy(raw[cut.id].load_audio()[0])
            wave = ((wave - wave.mean()) / wave.std(unbiased=False))[None]
            with torch.no_grad():
                expected = model.conv_features(wave, torch.tensor([wave.shape[1]]))[0]
            torch.testing.assert_close(array, expected, atol=1e-4, rtol=1e-3)
    assert numbers["frames"] == frames


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["asr", "lid"])
def test_train_writes_a_system_and_its_numbers(world, systems, family, task):
    system, before = systems[family, task], load_model(world.base[family])
    model, numbers = load_model(system.model), system.record["numbers"]
    assert set(system.record["outputs"]) == {"model", "metrics.jsonl", "set_aside.tsv"}
    assert numbers["parameters_total"] == numbers["parameters_dense"] == model.parameters_total()
    fixed = sum(p.numel() for p in model.front_end())
    if family == "whisper":
        fixed += model.body.encoder.embed_positions.weight.numel()
    assert numbers["parameters_trained"] == model.parameters_total() - fixed
    assert numbers["set_aside"] == {} and table(system.folder / "set_aside.tsv") == []
    assert (numbers["utterances_train"], numbers["utterances_dev"], numbers["epochs"]) == (8, 8, 2)
    assert numbers["new_head"] == (task == "lid") and numbers["seconds_train"] > 0
    assert numbers["labels"] == (["de", "en"] if task == "lid" else None)
    assert numbers["ctc"] == (CTC if (family, task) == ("wav2vec2", "asr") else None)
    assert numbers["ctc_impossible"] == (0 if numbers["ctc"] else None)
    rows = [json.loads(line) for line in (system.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2] and all(row["dev_loss"] > 0 for row in rows)
    moved = moved_in_body(before, model)
    assert moved and not any("feature_extractor" in n or "encoder.embed_positions" in n for n in moved)
    if task == "lid":
        assert model.meta.labels == ["de", "en"] and model.meta.priors == [0.5, 0.5]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["asr", "lid"])
def test_training_again_gives_the_same_bytes(world, systems, tmp_path, family, task):
    torch.manual_seed(54321)
    again = done(train, train_cfg(task), tmp_path / "train.json", **train_paths(world, family, tmp_path, task))
    assert again["outputs"] == systems[family, task].record["outputs"]


@pytest.mark.parametrize("case", ["lora", "dropout"])
def test_lora_and_dropout_follow_the_seed_alone(world, tmp_path, case):
    keys = {"adapt": "lora", "lora": {"rank": 2}} if case == "lora" else {"training": {"dropout": 0.2}}
    records = []
    for number in (1, 2):
        torch.manual_seed(number)
        folder = tmp_path / str(number)
        paths = train_paths(world, "wav2vec2", folder)
        records.append(done(train, train_cfg(**keys), folder / "train.json", **paths))
    assert records[0]["outputs"] == records[1]["outputs"]


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_recognises(world, systems, tmp_path, family):
    record = decode_with(world, systems, family, "asr", tmp_path / "a")
    ref = dict(line.split(" ", 1) for line in (tmp_path / "a" / "ref.txt").read_text().splitlines())
    assert ref["test-de1"] == "bä" and ref["test-en2"] == "c d" and list(ref) == sorted(ref) and len(ref) == 8
    hyp = [line.split(" ", 1)[0] for line in (tmp_path / "a" / "hyp.txt").read_text().splitlines()]
    assert hyp == list(ref)
    languages = table(tmp_path / "a" / "languages.tsv")
    assert {row["id"]: row["language"] for row in languages} == {name: name[5:7] for name in ref}
    assert {row["speaker"] for row in table(tmp_path / "a" / "speakers.tsv")} == {"test0", "test1"}
    numbers = record["numbers"]
    seconds = sum(c.duration for c in CutSet.from_file(world.features[family] / "test.jsonl.gz"))
    assert numbers["speech_seconds"] == pytest.approx(seconds, abs=1e-3)
    assert numbers["rtf"] == pytest.approx(numbers["seconds"] / seconds, rel=0.05) and numbers["rtf"] > 0
    front = json.loads((world.features[family] / "test.json").read_text())["numbers"]["frontend_rtf"]
    assert numbers["frontend_rtf"] == front
    assert (numbers["utterances"], numbers["unseen_characters"], numbers["set_aside"]) == (8, {}, {})
    again = decode_with(world, systems, family, "asr", tmp_path / "b")
    assert again["outputs"] == record["outputs"]


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_do_not_change_what_is_decoded(world, systems, tmp_path, family):
    found = [decode_with(world, systems, family, "asr", tmp_path / str(s), batch_seconds=s) for s in (0.1, 60.0)]
    assert found[0]["outputs"] == found[1]["outputs"]


@pytest.mark.parametrize("family", FAMILIES)
def test_decode_scores_languages(world, systems, tmp_path, family):
    record = decode_with(world, systems, family, "lid", tmp_path / "a")
    rows = table(tmp_path / "a" / "scores.tsv")
    # Posteriors over equal priors: p1 + p2 = 1, so exp(score) / 2 add up to 1.
    for row in rows:
        assert set(row) == {"id", "de", "en"}
        assert np.exp([float(row["de"]), float(row["en"])]).sum() / 2 == pytest.approx(1, abs=1e-5)
    labels = {row["id"]: row["language"] for row in table(tmp_path / "a" / "labels.tsv")}
    assert labels == {cut.id: cut.supervisions[0].language for cut in world.cuts["test"]}
    assert record["numbers"]["utterances"] == 8 and record["numbers"]["rtf"] > 0
    assert set(record["outputs"]) == {"scores.tsv", "labels.tsv", "speakers.tsv", "set_aside.tsv"}
    assert decode_with(world, systems, family, "lid", tmp_path / "b")["outputs"] == record["outputs"]
    raw = decode_with(world, systems, family, "lid", tmp_path / "c", priors=False)
    assert raw["outputs"]["scores.tsv"] != record["outputs"]["scores.tsv"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["asr", "lid"])
def test_lora_is_merged_and_trains_less(world, tmp_path, family, task):
    cfg = train_cfg(task, "lora", lora={"rank": 2})
    record = done(train, cfg, tmp_path / "train.json", **train_paths(world, family, tmp_path, task))
    numbers, model = record["numbers"], load_model(tmp_path / "model")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file() and "adapter" in record["outputs"]
    assert 0 < numbers["parameters_trained"] < numbers["parameters_total"] / 2
    assert numbers["parameters_total"] == model.parameters_total()
    moved = moved_in_body(load_model(world.base[family]), model)
    adapted = ("q_proj.weight", "v_proj.weight", "_dense.weight", "fc1.weight", "fc2.weight")
    assert moved and all(name.endswith(adapted) for name in moved)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapt", ["lora", "head"])
def test_a_base_held_in_bf16_is_saved_bit_for_bit_but_for_what_was_merged(world, tmp_path, family, adapt):
    recipe = {"precision": "bf16", "frozen_dtype": "bf16", "gradient_checkpointing": True, "dry_run": True}
    cfg = train_cfg("lid", adapt, training=recipe, **({"lora": {"rank": 2}} if adapt == "lora" else {}))
    record = done(train, cfg, tmp_path / "train.json", **train_paths(world, family, tmp_path, "lid"))
    saved, start = load_file(tmp_path / "model" / "model.safetensors"), load_model(world.base[family])
    assert {v.dtype for v in saved.values()} == {torch.float32}
    moved = moved_in_body(start, load_model(tmp_path / "model"))
    if adapt == "head":
        assert moved == set()
        return
    # What was merged is the base's own float32 weight and the adapter's product.
    body, adapter = body_state(start)[0], load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    after = body_state(load_model(tmp_path / "model"))[0]
    for name in moved:
        found = [k.removesuffix(".lora_A.weight") for k in adapter if k.endswith(f"{name[:-7]}.lora_A.weight")]
        A, B = (adapter[f"{found[0]}.lora_{letter}.weight"] for letter in "AB")
        torch.testing.assert_close(after[name], body[name] + 16 / 2 * B @ A, atol=1e-6, rtol=0)
    assert len(moved) == sum(".lora_A." in k for k in adapter) > 0
    assert not (tmp_path / "scratch").exists() or not any((tmp_path / "scratch").iterdir())
    assert record["numbers"]["bytes"]["activations"] > 0


def test_lora_on_the_product_of_factors_is_saved_with_its_larger_ranks(world, tmp_path):
    wish = {"seed": 1, "factorise": {"layers": "ffn", "rank": 6}}
    done(factorise, wish, tmp_path / "f.json", model=world.base["wav2vec2"], out=tmp_path / "low")
    cfg = train_cfg("asr", "lora", lora={"rank": 2, "where": "product"})
    paths = train_paths(world, "wav2vec2", tmp_path / "system", model=tmp_path / "low")
    record = done(train, cfg, tmp_path / "system" / "train.json", **paths)
    before, after = load_model(tmp_path / "low"), load_model(tmp_path / "system" / "model")
    assert set(before.plan.values()) == {6} and after.plan == dict.fromkeys(before.plan, 8)
    assert record["numbers"]["parameters_total"] == after.parameters_total() > before.parameters_total()
    decode_with(
        world, {("wav2vec2", "asr"): SimpleNamespace(model=tmp_path / "system" / "model")}, "wav2vec2", "asr", tmp_path
    )


@pytest.mark.parametrize("plan", [False, True], ids=["dense", "factorised"])
def test_a_trained_system_is_a_base_with_the_outputs_that_it_learnt(world, systems, tmp_path, plan):
    source = systems["wav2vec2", "asr"].model
    if plan:
        wish = {"seed": 1, "factorise": {"layers": "ffn", "rank": 6}}
        done(factorise, wish, tmp_path / "f.json", model=source, out=tmp_path / "low")
        source = tmp_path / "low"
    cfg = {"seed": 1, "family": "wav2vec2", "source": str(source)}
    done(base, cfg, tmp_path / "base.json", out=tmp_path / "base")
    before, after = load_model(source), load_model(tmp_path / "base")
    assert after.meta == before.meta and bool(after.plan) == plan
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    cfg, out = train_cfg("asr", "none"), tmp_path / "system"
    paths = train_paths(world, "wav2vec2", out, model=tmp_path / "base")
    record = done(train, cfg, out / "train.json", **paths)
    assert not record["numbers"]["new_head"] and record["numbers"]["parameters_trained"] == 0


def test_head_alone_leaves_the_body_bit_for_bit(world, tmp_path):
    cfg = train_cfg("lid", "none")
    record = done(train, cfg, tmp_path / "train.json", **train_paths(world, "wav2vec2", tmp_path, "lid"))
    assert moved_in_body(load_model(world.base["wav2vec2"]), load_model(tmp_path / "model")) == set()
    heads = [v for k, v in load_file(tmp_path / "model" / "model.safetensors").items() if not k.startswith("wav2vec2.")]
    assert record["numbers"]["parameters_trained"] == sum(v.numel() for v in heads) > 0


def test_nothing_to_train_keeps_the_model(world, tmp_path):
    record = done(train, train_cfg("asr", "none"), tmp_path / "train.json", **train_paths(world, "whisper", tmp_path))
    assert record["numbers"]["parameters_trained"] == 0
    before, after = (load_file(f / "model.safetensors") for f in (world.base["whisper"], tmp_path / "model"))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_segments_cut_lid_to_the_seconds_asked_for(world, systems, tmp_path):
    cfg = train_cfg("lid") | {"task": {"type": "lid", "segment": {"seconds": 0.2}}}
    record = done(train, cfg, tmp_path / "train.json", **train_paths(world, "wav2vec2", tmp_path, "lid"))
    whole = systems["wav2vec2", "lid"].record["numbers"]["seconds_speech"]
    assert record["numbers"]["seconds_speech"] == pytest.approx(8 * 0.2, abs=8 * 0.02) and whole > 2.2


# --- utterances that are set aside, listed and counted


def odd_cuts(tmp_path):
    return [
        utterance(tmp_path, "x-none", None, "en"),
        utterance(tmp_path, "x-blank", "  ", "en"),
        utterance(tmp_path, "x-signs", "?!...", "de"),
        utterance(tmp_path, "x-dense", "abcd" * 20, "en", seconds=0.4),
        utterance(tmp_path, "x-long", "abcd", "en", seconds=1.3),
    ]


def expected_aside(family):
    common = {"x-none": "no text", "x-blank": "no text", "x-signs": "normalises to nothing"}
    if family == "wav2vec2":
        return common | {"x-dense": "CTC target longer than its frames"}
    return common | {"x-long": "longer than the model's window"}


@pytest.mark.parametrize("family", FAMILIES)
def test_training_sets_aside_what_it_cannot_use(world, tmp_path, family):
    odd = [cut for cut in odd_cuts(tmp_path) if family == "wav2vec2" or cut.id != "x-dense"]
    cuts = make_features(world, family, [*world.cuts["train"], *odd], tmp_path, "train")
    out = tmp_path / "system"
    record = done(train, train_cfg(), out / "train.json", **train_paths(world, family, out, train_cuts=cuts))
    rows, expected = table(out / "set_aside.tsv"), expected_aside(family)
    assert {row["id"]: row["reason"] for row in rows} == expected
    assert sum(record["numbers"]["set_aside"].values()) == len(rows) == 4
    assert record["numbers"]["set_aside"]["no text"] == 2
    assert record["numbers"]["utterances_train"] == 8 + len(odd) - 4
    detail = {row["id"]: row["detail"] for row in rows}
    if family == "wav2vec2":
        assert detail["x-dense"].startswith("80 needed, ")
    else:
        assert "window 1.02 s" in detail["x-long"]


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_sets_aside_what_it_cannot_score(world, systems, tmp_path, family):
    odd = odd_cuts(tmp_path)
    cuts = make_features(world, family, [*world.cuts["test"], *odd], tmp_path, "test")
    record = decode_with(world, systems, family, "asr", tmp_path / "out", cuts=cuts)
    expected = {name: why for name, why in expected_aside(family).items() if name != "x-dense"}
    assert {row["id"]: row["reason"] for row in table(tmp_path / "out" / "set_aside.tsv")} == expected
    assert sum(record["numbers"]["set_aside"].values()) == len(expected)
    assert record["numbers"]["utterances"] == 8 + 5 - len(expected)
    ids = {line.split(" ", 1)[0] for line in (tmp_path / "out" / "ref.txt").read_text().splitlines()}
    assert not ids & set(expected) and len(ids) == record["numbers"]["utterances"]


def test_base_sets_aside_and_counts(world, tmp_path):
    CutSet.from_cuts([*world.cuts["train"], *odd_cuts(tmp_path)]).to_file(tmp_path / "odd.jsonl.gz")
    cfg = {"seed": 1, "family": "wav2vec2", "source": "scratch", "model": MODEL["wav2vec2"], "pretrain": RECIPE}
    record = done(
        base,
        cfg,
        tmp_path / "base.json",
        train_cuts=tmp_path / "odd.jsonl.gz",
        dev_cuts=world.corpus / "dev.jsonl.gz",
        lang=world.lang["wav2vec2"],
        out=tmp_path / "model",
        scratch=tmp_path / "scratch",
    )
    counts = {"no text": 2, "normalises to nothing": 1, "CTC target longer than its frames": 1}
    assert record["numbers"]["set_aside"] == counts


@pytest.mark.parametrize("change", [{"speed": [0.9, 1.1]}, {"noise": {}}, {"reverberation": {}}])
def test_stored_features_cannot_be_augmented(world, tmp_path, capsys, change):
    message = "train.jsonl.gz has stored features, which speed, noise and reverberation cannot change"
    cfg = train_cfg(training=change)
    refused(capsys, message, train, cfg, tmp_path / "t.json", **train_paths(world, "wav2vec2", tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_are_augmented_alike_by_any_number_of_workers(world, tmp_path, family):
    raw = {f"{split}_cuts": world.corpus / f"{split}.jsonl.gz" for split in ("train", "dev")}
    change = {"speed": [0.9, 1.0, 1.1], "noise": {"snr": [5, 10]}, "reverberation": {"rt60": [0.1, 0.3]}}
    found = {}
    for name, keys in (("plain", {}), ("alone", change), ("workers", change | {"workers": 2})):
        folder = tmp_path / name
        done(train, train_cfg(training=keys), folder / "train.json", **train_paths(world, family, folder, **raw))
        found[name] = load_file(folder / "model" / "model.safetensors")
        assert not any((folder / "scratch").iterdir())
    differs = {n for n, value in found["alone"].items() if not torch.equal(value, found["plain"][n])}
    assert differs and all(torch.equal(value, found["workers"][n]) for n, value in found["alone"].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_speeds_set_aside_what_would_no_longer_fit(world, tmp_path, family):
    """Whisper's window holds 1 s, 0.9 s at a speed of 0.9; CTC needs a frame (20 ms here) per label."""
    (tmp_path / "wav").mkdir()
    raw = {f"{split}_cuts": world.corpus / f"{split}.jsonl.gz" for split in ("train", "dev")}
    # 96 labels without repeats want 96 frames of 20 ms (1.935 s), which 1.99 s have, but not at a speed of 1.1.
    text, seconds = ("ab" * 48, 1.99) if family == "wav2vec2" else ("ab", 0.95)
    cuts = [*world.cuts["train"], utterance(tmp_path / "wav", "edge", text, "de", seconds=seconds)]
    raw["train_cuts"] = tmp_path / "raw.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(raw["train_cuts"])
    for speed, expected in (([], []), ([0.9, 1.1], ["edge"])):
        folder = tmp_path / f"speeds{len(speed)}"
        cfg = train_cfg(training={"speed": speed})
        done(train, cfg, folder / "train.json", **train_paths(world, family, folder, **raw))
        assert [row["id"] for row in table(folder / "set_aside.tsv")] == expected


def test_whisper_on_waveforms_hears_what_it_hears_from_stored_log_mels(world, systems, tmp_path):
    raw = world.corpus / "test.jsonl.gz"
    out = tmp_path / "waveform" / "test.jsonl.gz"
    done(features, {"kind": "waveform"}, tmp_path / "f.json", cuts=raw, base=world.base["whisper"], out=out)
    stored = decode_with(world, systems, "whisper", "asr", tmp_path / "stored")
    computed = decode_with(world, systems, "whisper", "asr", tmp_path / "computed", cuts=out)
    assert computed["numbers"]["utterances"] == stored["numbers"]["utterances"] > 0
    for name in ("hyp.txt", "ref.txt"):
        assert (tmp_path / "stored" / name).read_bytes() == (tmp_path / "computed" / name).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_characters_that_training_never_saw_are_counted(world, systems, tmp_path, family):
    new = [utterance(tmp_path, "n1", "xzx", "en"), utterance(tmp_path, "n2", "ax", "de")]
    cuts = make_features(world, family, [*world.cuts["test"], *new], tmp_path, "test")
    record = decode_with(world, systems, family, "asr", tmp_path / "out", cuts=cuts)
    assert record["numbers"]["unseen_characters"] == {"x": 2, "z": 1}  # utterances, not occurrences
    assert "n1 xzx" in (tmp_path / "out" / "ref.txt").read_text().splitlines()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_language_in_the_test_of_lid_is_set_aside(world, systems, tmp_path, family):
    new = [utterance(tmp_path, "n1", "ab", "fr"), utterance(tmp_path, "n2", "ab", None)]
    cuts = make_features(world, family, [*world.cuts["test"], *new], tmp_path, "test")
    record = decode_with(world, systems, family, "lid", tmp_path / "out", cuts=cuts)
    assert record["numbers"]["set_aside"] == {"unknown language": 2} and record["numbers"]["utterances"] == 8
    rows = {row["id"]: row["detail"] for row in table(tmp_path / "out" / "set_aside.tsv")}
    assert rows == {"n1": "'fr' is none of de, en", "n2": "None is none of de, en"}


# --- what ends a stage


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
    refused(capsys, "lost is no model folder", features, cfg, tmp_path / "m.json", cuts=raw, base=lost, out=made)
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
    message = f"train: the {'training' if split == 'train' else 'dev'} cuts: no utterance is left"
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
        refused(capsys, "the split is empty", features, {"kind": kind}, tmp_path / "m.json", **paths)


def test_a_split_of_which_nothing_is_left_says_why(world, tmp_path, capsys):
    cuts = make_features(world, "whisper", odd_cuts(tmp_path)[:3], tmp_path, "train")
    paths = train_paths(world, "whisper", tmp_path / "out", train_cuts=cuts)
    message = "no utterance is left; set aside: 2 x no text, 1 x normalises to nothing"
    refused(capsys, message, train, train_cfg(), tmp_path / "m.json", **paths)


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
    refused(capsys, "needs two languages or more", train, train_cfg("lid"), tmp_path / "m.json", **paths)
    cfg = train_cfg("lid") | {"task": {"type": "lid", "languages": ["de", "fr"]}}
    refused(capsys, "no training utterance in 'fr'", train, cfg, tmp_path / "m.json", **paths)


def test_a_training_utterance_without_language_in_lid(world, tmp_path):
    more = [*world.cuts["train"], utterance(tmp_path, "n1", "ab", None)]
    cuts = make_features(world, "wav2vec2", more, tmp_path, "train")
    out = tmp_path / "out"
    paths = train_paths(world, "wav2vec2", out, "lid", train_cuts=cuts)
    record = done(train, train_cfg("lid"), out / "train.json", **paths)
    assert record["numbers"]["set_aside"] == {"unknown language": 1}


def test_a_language_that_whisper_does_not_know_in_training(world, tmp_path, capsys):
    more = [*world.cuts["train"], utterance(tmp_path, "n1", "ab", "fr")]
    cuts = make_features(world, "whisper", more, tmp_path, "train")
    paths = train_paths(world, "whisper", tmp_path / "out", train_cuts=cuts)
    refused(capsys, "knows no language 'fr'", train, train_cfg(), tmp_path / "m.json", **paths)


def test_a_single_utterance_can_be_trained_on(world, tmp_path):
    cuts = make_features(world, "wav2vec2", world.cuts["train"][:1], tmp_path, "train")
    out = tmp_path / "out"
    paths = train_paths(world, "wav2vec2", out, train_cuts=cuts)
    assert done(train, train_cfg(), out / "train.json", **paths)["numbers"]["steps"] == 2


def test_another_task_keeps_every_weight_of_the_body(world):
    model = load_model(world.base["wav2vec2"])
    before = {name: weight.clone() for name, weight in model.body.state_dict().items()}
    other, _ = to_task(model, "classify", 2, ["de", "en"], seed=3)
    assert all(torch.equal(weight, before[name]) for name, weight in other.body.state_dict().items())


def test_a_language_that_whisper_does_not_know_in_decoding(world, systems, tmp_path, capsys):
    cuts = make_features(world, "whisper", [utterance(tmp_path, "n1", "ab", "fr")], tmp_path, "test")
    paths = {"model": systems["whisper", "asr"].model, "lang": world.lang["whisper"], "out": tmp_path / "out"}
    refused(capsys, "'fr'", decode, {"task": {"type": "asr"}}, tmp_path / "m.json", cuts=cuts, **paths)


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
    assert done(base, cfg, tmp_path / "base.json", **paths)["numbers"]["set_aside"] == {}


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
    assert record["numbers"]["set_aside"] == ({} if kept else {"longer than the model's window": 1})


# --- kill and resume


def kill(monkeypatch, stage, cfg, manifest, **paths):
    """Run the stage and stop it in its second epoch."""
    with monkeypatch.context() as patch:
        real = Trainer._evaluate

        def killed(self, dev):
            if self.epoch == 1:  # epochs behind it
                raise KeyboardInterrupt
            return real(self, dev)

        patch.setattr(Trainer, "_evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(stage, cfg, manifest, **paths)
    assert not manifest.exists() and Checkpoints(paths["scratch"]).files() and not (paths["out"] / "model").exists()


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
        with pytest.raises(KeyboardInterrupt):
            run(train, train_cfg(), tmp_path / "train.json", **paths)
    assert Checkpoints(paths["scratch"]).files()
    monkeypatch.setattr(Stepper, "step", Mock(side_effect=AssertionError("a step was taken again")))
    again = done(train, train_cfg(), tmp_path / "train.json", **paths)
    assert again["outputs"] == systems["wav2vec2", "asr"].record["outputs"]
    assert not list(paths["scratch"].iterdir())


@pytest.mark.parametrize(
    "changed",
    [
        "train_cuts",
        "dev_cuts",
        "model",
        "config of the model",
        "seed",
        "lang",
    ],
)
def test_a_state_of_other_inputs_ends_training(world, tmp_path, monkeypatch, capsys, changed):
    paths = train_paths(world, "wav2vec2", tmp_path / "out")
    manifest, cfg = tmp_path / "train.json", train_cfg()
    kill(monkeypatch, train, cfg, manifest, **paths)
    if changed == "seed":
        cfg = train_cfg(seed=2)
    elif changed == "model":
        make_base(world, "wav2vec2", tmp_path / "base", seed=2)
        paths["model"] = tmp_path / "base" / "model"
    elif changed == "config of the model":  # the same weights
        paths["model"] = shutil.copytree(paths["model"], tmp_path / "model")
        file = paths["model"] / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"layer_norm_eps": 1e-3}))
    elif changed == "lang":  # as many symbols, but other ones
        paths["lang"] = tmp_path / "lang"
        upper = {"seed": 1, "lang": {"kind": "char", "normalise": {"case": "upper"}}}
        done(lang, upper, paths["lang"] / "lang.json", cuts=world.corpus / "train.jsonl.gz", out=paths["lang"])
    else:
        (tmp_path / "new").mkdir()
        paths[changed] = make_features(world, "wav2vec2", world.cuts["test"], tmp_path / "new", "other")
    refused(capsys, "belongs to a run with other settings or inputs", train, cfg, manifest, **paths)


def test_a_state_goes_on_with_an_equal_lang_that_took_another_time(world, tmp_path, monkeypatch):
    paths = train_paths(world, "wav2vec2", tmp_path / "out")
    kill(monkeypatch, train, train_cfg(), tmp_path / "train.json", **paths)
    paths["lang"] = shutil.copytree(paths["lang"], tmp_path / "lang")
    manifest = paths["lang"] / "lang.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"seconds": 99.0}))
    states = len(Checkpoints(paths["scratch"]).files())
    assert states and done(train, train_cfg(), tmp_path / "train.json", **paths)


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_state_of_other_cuts_ends_a_pretraining(world, tmp_path, monkeypatch, capsys, split):
    paths = {f"{name}_cuts": world.corpus / f"{name}.jsonl.gz" for name in ("train", "dev")}
    paths |= {"lang": world.lang["wav2vec2"], "scratch": tmp_path / "scratch", "out": tmp_path / "out" / "model"}
    cfg = {"seed": 1, "family": "wav2vec2", "source": "scratch", "model": MODEL["wav2vec2"], "pretrain": RECIPE}
    kill(monkeypatch, base, cfg, tmp_path / "base.json", **paths)
    paths[f"{split}_cuts"] = world.corpus / "test.jsonl.gz"
    message = "belongs to a run with other settings or inputs"
    refused(capsys, message, base, cfg, tmp_path / "base.json", **paths)


# --- several processes


def torchrun_command(world, cfg, folder, processes=2, **changed):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    command += ["lowrank_speech.stages.train", "--cfg", json.dumps(cfg), "--manifest", str(folder / "train.json")]
    for name, path in train_paths(world, "wav2vec2", folder, **changed).items():
        command += [f"--{name.replace('_', '-')}", str(path)]
    return command


def torchrun(*arguments, **keys):
    """The stage train by two processes; the finished process."""
    command = torchrun_command(*arguments, **keys)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_two_processes_train_what_one_trains_with_twice_the_batches(world, tmp_path):
    # Batches of one to three utterances, in groups of which the last is not full: 2 processes x 2 batches.
    recipe = {"batch_seconds": 0.7, "keep": "last", "weight_decay": 0.0, "language_weight": 0.5}
    one = train_cfg(training=recipe | {"accumulate": 4})
    two = train_cfg(training=recipe | {"accumulate": 2, "processes": 2})
    alone = done(train, one, tmp_path / "one" / "train.json", **train_paths(world, "wav2vec2", tmp_path / "one"))
    found = torchrun(world, two, tmp_path / "two")
    assert found.returncode == 0, found.stderr
    assert found.stderr.count("utterances, ") == 1  # the second process is silent
    record = json.loads((tmp_path / "two" / "train.json").read_text(encoding="utf-8"))
    for key in ("steps", "epochs", "utterances_train", "dev_metric", "parameters_trained"):
        assert record["numbers"][key] == alone["numbers"][key], key
    left, right = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    start = load_file(world.base["wav2vec2"] / "model.safetensors")
    assert any(not torch.allclose(start[n], p, atol=1e-3) for n, p in left.items())
    for name, p in left.items():
        torch.testing.assert_close(right[name], p, atol=2e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    rows = [[json.loads(r) for r in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("one", "two")]
    for a, b in zip(*rows, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}


@pytest.mark.slow
def test_two_processes_that_are_stopped_go_on_and_end_as_they_would_have_ended(world, tmp_path):
    # Draws of each process: dropout and masks. A state after every update.
    recipe = {"batch_seconds": 0.7, "dropout": 0.2, "spec_augment": {}, "average": 2, "keep": "last", "epochs": 4}
    cfg = train_cfg(training=recipe | {"processes": 2, "workers": 1, "save_minutes": 1e-6})
    whole = torchrun(world, cfg, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "stopped"
    folder.mkdir()
    states = Checkpoints(train_paths(world, "wav2vec2", folder)["scratch"])
    with (folder / "log").open("w") as log:
        running = subprocess.Popen(torchrun_command(world, cfg, folder), stdout=log, stderr=log)
        while not states.files() and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) != 0
    text = (folder / "log").read_text()
    assert text.count("stopped by SIGTERM") == 1 and states.files() and not (folder / "train.json").exists(), text
    again = torchrun(world, cfg, folder)
    assert again.returncode == 0 and again.stderr.count("going on from") == 1, again.stderr
    left, right = (json.loads((tmp_path / n / "train.json").read_text())["outputs"] for n in ("whole", "stopped"))
    assert left == right
    assert not list(states.folder.iterdir())


@pytest.mark.slow
def test_processes_end_with_a_torchrun_that_is_killed(world, tmp_path):
    cfg = train_cfg(training={"batch_seconds": 0.7, "epochs": 5000, "processes": 2, "workers": 1})
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(torchrun_command(world, cfg, tmp_path), stdout=log, stderr=log)
        states = Checkpoints(train_paths(world, "wav2vec2", tmp_path)["scratch"])
        while not states.files() and running.poll() is None:
            time.sleep(0.01)
        running.kill()
        running.wait()
    deadline = time.monotonic() + 60
    while (left := naming(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, (tmp_path / "log").read_text()


@pytest.mark.slow
def test_the_first_of_several_processes_alone_goes_through_the_cuts(world, tmp_path):
    empty = tmp_path / "empty.jsonl.gz"
    CutSet.from_cuts([]).to_file(empty)
    found = torchrun(world, train_cfg(training={"processes": 2}), tmp_path, train_cuts=empty)
    assert found.returncode != 0 and found.stderr.count("no utterance is left") == 1, found.stderr


def naming(folder):
    """The processes in whose command line or open files a folder is, without this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            named = [path.joinpath("cmdline").read_text(), *(str(fd.readlink()) for fd in path.glob("fd/*"))]
        except OSError:  # gone meanwhile
            continue
        if path.name != str(os.getpid()) and any(str(folder) in name for name in named):
            found.append(path.name)
    return found


def test_another_number_of_processes_than_the_configs_is_refused(world, tmp_path, capsys):
    cfg = train_cfg(training={"processes": 2})
    message = "training.processes is 2, but 1 is running: set it to 1, or start `python -m torch.distributed.run"
    refused(capsys, message, train, cfg, tmp_path / "train.json", **train_paths(world, "wav2vec2", tmp_path))
