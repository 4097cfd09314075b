"""The stages in sequence on published folder layouts of architectures other than wav2vec 2.0 and Whisper."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lhotse import CutSet
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor

from lowrank_speech.errors import UserError
from lowrank_speech.features.fbank import stacked_fbank
from lowrank_speech.features.inputs import inputs_of
from lowrank_speech.features.store import load_cuts
from lowrank_speech.lowrank.structure import low_rank_layers
from lowrank_speech.models.build import unwrap
from lowrank_speech.models.folder import load_model
from lowrank_speech.stages import base, calibrate, decode, export, factorise, features, lang, train
from stage_world import TEXTS, done, moved_in_body, refused, table, utterance
from tiny_models import BANDS, plain

SPLITS = ("train", "dev", "test")
# name of the architecture, family, features; every kind of features of both
CHAINS = {
    "wavlm": ("wavlm", "wav2vec2", "conv"),
    "data2vec-audio": ("data2vec-audio", "wav2vec2", "waveform"),
    "w2v-bert": ("w2v-bert", "w2v-bert", "fbank"),
    "w2v-bert-on-the-fly": ("w2v-bert", "w2v-bert", "waveform"),
}
RECIPE = {"epochs": 1, "batch_seconds": 60.0, "lr": 0.001, "head_lr": 0.01, "dropout": 0.0}


def published(name, folder):
    """A checkpoint as it lies on the hub."""
    plain(name, "body", quiet=False).save_pretrained(folder)
    if name == "w2v-bert":
        SeamlessM4TFeatureExtractor(feature_size=BANDS, num_mel_bins=BANDS, padding_value=1).save_pretrained(folder)
    else:
        Wav2Vec2FeatureExtractor(do_normalize=name != "wavlm").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for split in SPLITS:
        CutSet.from_cuts(
            utterance(root, f"{split}-{language}{i}", text, language)
            for language, texts in TEXTS.items()
            for i, text in enumerate(texts)
        ).to_file(root / f"{split}.jsonl.gz")
    cfg, folder = {"seed": 1, "lang": {"kind": "char"}}, root / "lang"
    done(lang, cfg, folder / "lang.json", cuts=root / "train.jsonl.gz", out=folder)
    return root


@pytest.fixture(scope="module", params=CHAINS)
def chain(request, corpus, tmp_path_factory):
    """Base, features, calibration and a factorised model."""
    name, family, kind = CHAINS[request.param]
    root = tmp_path_factory.mktemp(request.param)
    hub = published(name, root / "hub")
    (hub / "adapter.eng.safetensors").write_bytes(b"no weights of the model")
    record = done(base, {"seed": 1, "family": family, "source": str(hub)}, root / "base.json", out=root / "base")
    for split in SPLITS:
        paths = {"cuts": corpus / f"{split}.jsonl.gz", "base": root / "base", "out": root / f"{split}.jsonl.gz"}
        done(features, {"kind": kind}, root / f"{split}.json", **paths)
    paths = {"model": root / "base", "cuts": root / "train.jsonl.gz", "out": root / "moments.safetensors"}
    done(calibrate, {"seed": 1, "layers": "all"}, root / "calibrate.json", **paths)
    cfg = {"seed": 1, "factorise": {"layers": "all", "rank": 8, "init": "activation"}}
    paths = {"model": root / "base", "moments": root / "moments.safetensors", "out": root / "low"}
    report = done(factorise, cfg, root / "factorise.json", **paths)
    return SimpleNamespace(root=root, name=name, family=family, kind=kind, base=record, report=report, corpus=corpus)


def trained(chain, folder, task="asr", **keys):
    paths = {"model": chain.root / "low", "out": folder, "scratch": folder / "scratch"}
    paths |= {f"{split}_cuts": chain.root / f"{split}.jsonl.gz" for split in ("train", "dev")}
    paths |= {"lang": chain.corpus / "lang"} if task == "asr" else {}
    cfg = {"seed": 1, "task": {"type": task}, "adapt": "full", "training": RECIPE} | keys
    return done(train, cfg, folder / "train.json", **paths)["metrics"]


def decoded(chain, folder, task="asr", **changed):
    paths = {"model": folder / "model", "cuts": chain.root / "test.jsonl.gz", "out": folder / "decoded"} | changed
    paths |= {"lang": chain.corpus / "lang"} if task == "asr" else {}
    return done(decode, {"task": {"type": task}}, folder / "decode.json", **paths)


def test_base_keeps_what_came_with_the_model_but_no_other_weights(chain):
    files = {path.name for path in (chain.root / "base").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json"}
    numbers = chain.base["metrics"]
    assert set(chain.base["sources"]) == files and numbers["task"] == "body"
    assert numbers["parameters"] == sum(p.numel() for p in plain(chain.name, "body").parameters())


def test_every_layer_is_factorised(chain):
    numbers, low = chain.report["metrics"], load_model(chain.root / "low")
    assert numbers["parameters_after"] == low.parameters_total() < numbers["parameters_before"]
    assert low.dense_parameters() == numbers["parameters_before"]
    names = set(low_rank_layers(low.body))
    assert len(names) == 2 * (8 if chain.family == "w2v-bert" else 6) and names == set(low.plan)
    assert all(0 < row["output_error"] < 1 for row in numbers["layers"])


@pytest.mark.parametrize("adapt", ["full", "lora"])
def test_recognition(chain, tmp_path, adapt):
    numbers = trained(chain, tmp_path, adapt=adapt, **({"lora": {"rank": 2}} if adapt == "lora" else {}))
    model = load_model(tmp_path / "model")
    assert numbers["steps"] == 1 and numbers["new_head"] and numbers["set_aside"] == {}
    moved = moved_in_body(load_model(chain.root / "low"), model)
    low = set(low_rank_layers(model.body))
    parts = {name.rpartition(".")[0].removesuffix(".first").removesuffix(".second") for name in moved}
    assert len(parts & low) == (len(low) if adapt == "full" else len(low) - 4)  # LoRA: no key, no output projection
    assert not any(name.startswith("feature_extractor.") for name in moved)
    assert adapt == "full" or parts <= low
    decoded(chain, tmp_path)
    assert len((tmp_path / "decoded" / "hyp.txt").read_text().splitlines()) == 8
    assert (tmp_path / "model" / "preprocessor_config.json").is_file()


def test_language_recognition_and_export(chain, tmp_path):
    assert trained(chain, tmp_path, "lid")["labels"] == ["de", "en"]
    decoded(chain, tmp_path, "lid")
    assert len(table(tmp_path / "decoded" / "scores.tsv")) == 8
    paths = {"model": tmp_path / "model", "out": tmp_path / "dense"}
    numbers = done(export, {"format": "dense"}, tmp_path / "export.json", **paths)["metrics"]
    assert numbers["outputs"] == 3 and numbers["largest_difference"] < 1e-4
    dense = load_model(tmp_path / "dense")
    assert not low_rank_layers(dense.body)
    expected = unwrap(dense)
    read = type(expected).from_pretrained(tmp_path / "dense", dtype=torch.float32)
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in read.state_dict().items())


# --- filterbanks


@pytest.mark.parametrize("seconds", [0.035, 0.0449, 0.045, 0.5, 1.2345])
def test_filterbanks_equal_the_published_extractor(seconds):
    wave = 0.1 * torch.randn(int(16_000 * seconds), generator=torch.Generator().manual_seed(2))
    expected = SeamlessM4TFeatureExtractor()(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    valid = expected.attention_mask[0].bool()
    found = stacked_fbank(wave)
    torch.testing.assert_close(found, expected.input_features[0, valid], atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match=r"0\.035 s is too short"):
        stacked_fbank(wave[:559])


def test_stored_filterbanks_are_those_that_are_computed_on_the_fly(corpus, tmp_path):
    published("w2v-bert", tmp_path / "hub")
    done(
        base,
        {"seed": 1, "family": "w2v-bert", "source": str(tmp_path / "hub")},
        tmp_path / "b.json",
        out=tmp_path / "b",
    )
    model, inputs = load_model(tmp_path / "b"), inputs_of(tmp_path / "b")
    paths = {"cuts": corpus / "test.jsonl.gz", "base": tmp_path / "b", "out": tmp_path / "f.jsonl.gz"}
    numbers = done(features, {"kind": "fbank"}, tmp_path / "f.json", **paths)["metrics"]
    assert numbers["frame_shift"] == 0.02
    for stored, raw in zip(load_cuts(tmp_path / "f.jsonl.gz"), load_cuts(corpus / "test.jsonl.gz"), strict=True):
        np.testing.assert_array_equal(stored.load_features(), inputs(raw).numpy())
        assert model.frames_of(stored) == model.frames_of(raw) == len(inputs(raw)) == stored.num_frames


def test_what_ends_a_stage(corpus, tmp_path, capsys):
    published("w2v-bert", tmp_path / "hub")
    cfg, out = {"seed": 1, "family": "w2v-bert", "source": str(tmp_path / "hub")}, tmp_path / "b"
    done(base, cfg, tmp_path / "b.json", out=out)
    paths = {"cuts": corpus / "test.jsonl.gz", "base": out, "out": tmp_path / "f.jsonl.gz"}
    refused(capsys, "use fbank", features, {"kind": "conv"}, tmp_path / "m.json", **paths)
    CutSet.from_cuts([utterance(tmp_path, "tiny", "a", "de", seconds=0.03)]).to_file(tmp_path / "short.jsonl.gz")
    paths["cuts"] = tmp_path / "short.jsonl.gz"
    refused(capsys, "utterance tiny: 0.030 s is too short", features, {"kind": "fbank"}, tmp_path / "m.json", **paths)
    scratch = {"train_cuts": paths["cuts"], "dev_cuts": paths["cuts"], "lang": corpus / "lang", "scratch": tmp_path}
    cfg |= {"source": "scratch", "pretrain": RECIPE}
    refused(capsys, "scratch supports only wav2vec2 and", base, cfg, tmp_path / "m.json", out=tmp_path / "x", **scratch)
    file = out / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"stride": 4}))
    with pytest.raises(UserError, match="stride 4 don't fit the model, which takes 2 stacked frames of 8"):
        inputs_of(out)
