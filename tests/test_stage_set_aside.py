"""Utterances that the model stages set aside, list and count."""

import json

import pytest
import torch
from lhotse import CutSet
from safetensors.torch import load_file

from lowrank_speech.stages import base, features, train
from stage_world import (
    FAMILIES,
    MODEL,
    RECIPE,
    decode_with,
    done,
    make_features,
    odd_cuts,
    refused,
    table,
    train_cfg,
    train_paths,
    utterance,
)


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
    assert sum(record["metrics"]["set_aside"].values()) == len(rows) == 4
    assert record["metrics"]["set_aside"]["no text"] == 2
    assert record["metrics"]["utterances_train"] == 8 + len(odd) - 4
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
    assert sum(record["metrics"]["set_aside"].values()) == len(expected)
    assert record["metrics"]["utterances"] == 8 + 5 - len(expected)
    ids = {line.split(" ", 1)[0] for line in (tmp_path / "out" / "ref.txt").read_text().splitlines()}
    assert not ids & set(expected) and len(ids) == record["metrics"]["utterances"]


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
    assert record["metrics"]["set_aside"] == counts


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
    for name, keys, workers in (("plain", {}, 0), ("alone", change, 0), ("workers", change, 2)):
        folder = tmp_path / name
        paths = train_paths(world, family, folder, **raw, runtime=json.dumps({"workers": workers}))
        done(train, train_cfg(training=keys), folder / "train.json", **paths)
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
    assert computed["metrics"]["utterances"] == stored["metrics"]["utterances"] > 0
    for name in ("hyp.txt", "ref.txt"):
        assert (tmp_path / "stored" / name).read_bytes() == (tmp_path / "computed" / name).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_characters_that_training_never_saw_are_counted(world, systems, tmp_path, family):
    new = [utterance(tmp_path, "n1", "xzx", "en"), utterance(tmp_path, "n2", "ax", "de")]
    cuts = make_features(world, family, [*world.cuts["test"], *new], tmp_path, "test")
    record = decode_with(world, systems, family, "asr", tmp_path / "out", cuts=cuts)
    assert record["metrics"]["unseen_characters"] == {"x": 2, "z": 1}  # utterances, not occurrences
    assert "n1 xzx" in (tmp_path / "out" / "ref.txt").read_text().splitlines()


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_language_in_the_test_of_lid_is_set_aside(world, systems, tmp_path, family):
    new = [utterance(tmp_path, "n1", "ab", "fr"), utterance(tmp_path, "n2", "ab", None)]
    cuts = make_features(world, family, [*world.cuts["test"], *new], tmp_path, "test")
    record = decode_with(world, systems, family, "lid", tmp_path / "out", cuts=cuts)
    assert record["metrics"]["set_aside"] == {"unknown language": 2} and record["metrics"]["utterances"] == 8
    rows = {row["id"]: row["detail"] for row in table(tmp_path / "out" / "set_aside.tsv")}
    assert rows == {"n1": "'fr', expected one of: de, en", "n2": "None, expected one of: de, en"}


@pytest.mark.parametrize("stage", ["train", "decode"])
def test_what_has_not_one_supervision_or_nothing_that_can_be_written(world, systems, tmp_path, stage):
    silent, twice = (utterance(tmp_path, f"x-{n}", "ab", "de") for n in ("silent", "twice"))
    other = utterance(tmp_path, "x-other", "xzx", "de")  # letters that no token stands for
    silent.supervisions, twice.supervisions = [], [*twice.supervisions, *other.supervisions]
    path = tmp_path / "odd.jsonl.gz"
    CutSet.from_cuts([*world.cuts["train"], silent, twice, other]).to_file(path)
    expected, ids = {"not one supervision": 2}, {"x-silent", "x-twice"}
    if stage == "train":  # in a test, what cannot be written counts as errors
        expected, ids = expected | {"no character of the token set": 1}, ids | {"x-other"}
        paths = train_paths(world, "wav2vec2", tmp_path / "out", train_cuts=path)
        found = done(train, train_cfg(), tmp_path / "m.json", **paths)["metrics"]
    else:
        found = decode_with(world, systems, "wav2vec2", "asr", tmp_path / "out", path)["metrics"]
    assert found["set_aside"] == expected
    assert {row["id"] for row in table(tmp_path / "out" / "set_aside.tsv")} == ids
