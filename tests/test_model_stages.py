"""The stages base, features, train and decode in sequence, on a tiny corpus of tones."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lhotse import CutSet
from safetensors.torch import load_file

from lowrank_speech.artefact import read_cost
from lowrank_speech.models.folder import load_model
from lowrank_speech.models.tasks import body_state
from lowrank_speech.stages import base, factorise, train
from stage_world import (
    CTC,
    FAMILIES,
    RECIPE,
    decode_with,
    done,
    hypotheses,
    make_base,
    moved_in_body,
    table,
    top,
    train_cfg,
    train_paths,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_base_writes_a_model_and_what_it_cost(world, family):
    record, model = world.records[family], load_model(world.base[family])
    numbers = record["metrics"]
    assert (
        numbers["parameters"]
        == model.parameters_total()
        == numbers["parameters_trained"]
        + (model.config.max_source_positions * model.config.d_model if family == "whisper" else 0)
    )
    assert numbers["languages"] == ["de", "en"] and numbers["set_aside"] == {} and numbers["source"] == "scratch"
    assert (model.family, model.task) == (family, {"wav2vec2": "ctc", "whisper": "seq2seq"}[family])
    assert top(record) == {"model", "metrics.jsonl"} and record["seed"] == 1
    assert numbers["ctc"] == {"wav2vec2": CTC, "whisper": None}[family]
    assert (world.base[family] / "preprocessor_config.json").is_file()
    assert not list((world.base[family].parent / "scratch").iterdir())


def test_manifests_say_what_ran(world, systems):
    """Settings with every default, device, code, and beside them what may differ from run to run."""
    for record in (*world.records.values(), *(system.record for system in systems.values())):
        recipe = record["cfg"].get("training") or record["cfg"]["pretrain"]
        assert "warmup" not in RECIPE and recipe["warmup"] == 0.1 and recipe["epochs"] == RECIPE["epochs"]
        assert re.fullmatch("[0-9a-f]{64}", record["code"]) and record["device"] in ("cpu", "cuda")
        assert {"lowrank-speech", "torch", "transformers"} <= set(record["cost"]["versions"]) and record["cost"]["host"]
        assert "versions" not in record and "seconds" not in record  # equal runs write equal manifests


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
    numbers = record["metrics"]
    assert numbers["utterances"] == len(raw) == 8
    assert read_cost(world.features[family] / "test.json")["frontend_rtf"] > 0
    assert numbers["speech_seconds"] == pytest.approx(sum(cut.duration for cut in raw.values()), abs=1e-3)
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
    model, numbers = load_model(system.model), system.record["metrics"]
    assert top(system.record) == {"model", "metrics.jsonl", "set_aside.tsv"}
    assert numbers["parameters_total"] == numbers["parameters_dense"] == model.parameters_total()
    fixed = sum(p.numel() for p in model.front_end())
    if family == "whisper":
        fixed += model.body.encoder.embed_positions.weight.numel()
    assert numbers["parameters_trained"] == model.parameters_total() - fixed
    assert numbers["set_aside"] == {} and table(system.folder / "set_aside.tsv") == []
    assert (numbers["utterances_train"], numbers["utterances_dev"], numbers["epochs"]) == (8, 8, 2)
    assert numbers["new_head"] == (task == "lid") and system.record["cost"]["seconds_train"] > 0
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
    raw = dict(line.split(" ", 1) for line in (tmp_path / "a" / "ref_raw.txt").read_text().splitlines())
    assert (raw["test-de1"], raw["test-en2"]) == ("Bä!", "C d") and list(raw) == list(ref)
    assert len((tmp_path / "a" / "hyp_raw.txt").read_text().splitlines()) == 8
    assert {"hyp_raw.txt", "ref_raw.txt"} <= set(record["outputs"])
    languages = table(tmp_path / "a" / "languages.tsv")
    assert {row["id"]: row["language"] for row in languages} == {name: name[5:7] for name in ref}
    assert {row["speaker"] for row in table(tmp_path / "a" / "speakers.tsv")} == {"test0", "test1"}
    numbers = record["metrics"]
    # The recordings' own seconds, not those of the features' frames.
    seconds = sum(cut.duration for cut in world.cuts["test"])
    assert abs(seconds - sum(c.duration for c in CutSet.from_file(world.features[family] / "test.jsonl.gz"))) > 0.01
    assert numbers["speech_seconds"] == pytest.approx(seconds, abs=1e-3)
    cost = record["cost"]
    assert cost["rtf"] == pytest.approx(cost["seconds_decode"] / seconds, rel=0.05) and cost["rtf"] > 0
    assert cost["frontend_rtf"] == read_cost(world.features[family] / "test.json")["frontend_rtf"]
    assert (numbers["utterances"], numbers["unseen_characters"], numbers["set_aside"]) == (8, {}, {})
    again = decode_with(world, systems, family, "asr", tmp_path / "b")
    assert again["outputs"] == record["outputs"]


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_do_not_change_what_is_decoded(world, systems, tmp_path, family):
    found = [decode_with(world, systems, family, "asr", tmp_path / str(s), batch_seconds=s) for s in (0.1, 60.0)]
    scored = [hypotheses(tmp_path / str(s)) for s in (0.1, 60.0)]
    for one, other in zip(*scored, strict=True):
        # Sums are rounded differently in batches of other shapes.
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-3) and one == other
    for record in found:
        del record["outputs"]["hypotheses.jsonl"]
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
    assert record["metrics"]["utterances"] == 8 and record["cost"]["rtf"] > 0
    seconds = {row["id"]: float(row["seconds"]) for row in table(tmp_path / "a" / "seconds.tsv")}
    assert seconds == pytest.approx({cut.id: cut.duration for cut in world.cuts["test"]}, abs=1e-3)
    assert table(tmp_path / "a" / "sources.tsv") == []  # these cuts have none
    names = ("scores", "labels", "seconds", "sources", "speakers", "set_aside")
    assert set(record["outputs"]) == {f"{name}.tsv" for name in names}
    assert decode_with(world, systems, family, "lid", tmp_path / "b")["outputs"] == record["outputs"]
    raw = decode_with(world, systems, family, "lid", tmp_path / "c", priors=False)
    assert raw["outputs"]["scores.tsv"] != record["outputs"]["scores.tsv"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["asr", "lid"])
def test_lora_is_merged_and_trains_less(world, tmp_path, family, task):
    cfg = train_cfg(task, "lora", lora={"rank": 2})
    record = done(train, cfg, tmp_path / "train.json", **train_paths(world, family, tmp_path, task))
    numbers, model = record["metrics"], load_model(tmp_path / "model")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file() and "adapter" in top(record)
    assert 0 < numbers["parameters_trained"] < numbers["parameters_total"] / 2
    assert numbers["parameters_total"] == model.parameters_total()
    moved = moved_in_body(load_model(world.base[family]), model)
    adapted = ("q_proj.weight", "v_proj.weight", "_dense.weight", "fc1.weight", "fc2.weight")
    assert moved and all(name.endswith(adapted) for name in moved)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapt", ["lora", "head"])
def test_a_base_held_in_bf16_is_saved_bit_for_bit_but_for_what_was_merged(world, tmp_path, family, adapt):
    recipe = {"precision": "bf16", "frozen_dtype": "bf16", "gradient_checkpointing": True}
    cfg = train_cfg("lid", adapt, training=recipe, **({"lora": {"rank": 2}} if adapt == "lora" else {}))
    paths = train_paths(world, family, tmp_path, "lid", runtime='{"dry_run": true}')
    record = done(train, cfg, tmp_path / "train.json", **paths)
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
    assert record["cost"]["bytes"]["activations"] > 0


def test_lora_on_the_product_of_factors_is_saved_with_its_larger_ranks(world, tmp_path):
    wish = {"seed": 1, "factorise": {"layers": "ffn", "rank": 6}}
    done(factorise, wish, tmp_path / "f.json", model=world.base["wav2vec2"], out=tmp_path / "low")
    cfg = train_cfg("asr", "lora", lora={"rank": 2, "where": "product"})
    paths = train_paths(world, "wav2vec2", tmp_path / "system", model=tmp_path / "low")
    record = done(train, cfg, tmp_path / "system" / "train.json", **paths)
    before, after = load_model(tmp_path / "low"), load_model(tmp_path / "system" / "model")
    assert set(before.plan.values()) == {6} and after.plan == dict.fromkeys(before.plan, 8)
    assert record["metrics"]["parameters_total"] == after.parameters_total() > before.parameters_total()
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
    assert not record["metrics"]["new_head"] and record["metrics"]["parameters_trained"] == 0


def test_head_alone_leaves_the_body_bit_for_bit(world, tmp_path):
    cfg = train_cfg("lid", "none")
    record = done(train, cfg, tmp_path / "train.json", **train_paths(world, "wav2vec2", tmp_path, "lid"))
    assert moved_in_body(load_model(world.base["wav2vec2"]), load_model(tmp_path / "model")) == set()
    heads = [v for k, v in load_file(tmp_path / "model" / "model.safetensors").items() if not k.startswith("wav2vec2.")]
    assert record["metrics"]["parameters_trained"] == sum(v.numel() for v in heads) > 0


def test_nothing_to_train_keeps_the_model(world, tmp_path):
    record = done(train, train_cfg("asr", "none"), tmp_path / "train.json", **train_paths(world, "whisper", tmp_path))
    assert record["metrics"]["parameters_trained"] == 0
    before, after = (load_file(f / "model.safetensors") for f in (world.base["whisper"], tmp_path / "model"))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_segments_cut_lid_to_the_seconds_asked_for(world, systems, tmp_path):
    cfg = train_cfg("lid") | {"task": {"type": "lid", "segment": {"seconds": 0.2}}}
    record = done(train, cfg, tmp_path / "train.json", **train_paths(world, "wav2vec2", tmp_path, "lid"))
    whole = systems["wav2vec2", "lid"].record["metrics"]["seconds_speech"]
    assert record["metrics"]["seconds_speech"] == pytest.approx(8 * 0.2, abs=8 * 0.02) and whole > 2.2
