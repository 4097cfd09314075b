"""The stages on full-size published models: real configurations, random weights, the hub's cache, no network."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from lowrank_speech.models.folder import load_model
from lowrank_speech.models.presets import PRESETS

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567"
XLS_R = "facebook/wav2vec2-xls-r-300m"
DENSE, LOW = 315_438_720, 239_941_248
FRONT_END = 4_210_176  # the seven convolutions with their norms; frozen in every fine-tuning
MEMORY = 10e9
TEXTS = {"u0": "aba", "u1": "ab ba", "u2": "bacca"}


def snapshot(cache, name):
    """The folder of ``name`` at COMMIT in a hub cache, as huggingface_hub lays it out."""
    repository = cache / f"models--{name.replace('/', '--')}"
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return folder


def pretrained_xls_r():
    from transformers import Wav2Vec2Config, Wav2Vec2ForPreTraining

    torch.manual_seed(0)
    config = Wav2Vec2Config(**PRESETS["xls-r-300m"].config)
    assert config.conv_dim == [512] * 7 or config.conv_dim == (512,) * 7
    assert config.feat_extract_norm == "layer" and config.conv_bias and config.do_stable_layer_norm
    return Wav2Vec2ForPreTraining(config)


@pytest.fixture
def stage(tmp_path):
    """Runs a stage as Snakemake does, in its own process and offline; returns its manifest."""
    # Nothing of the caller's cache may help.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "HUGGINGFACE_"))}
    env |= {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}

    def run(name, cfg, manifest, **paths):
        command = [sys.executable, "-m", f"lowrank_speech.stages.{name}", "--cfg", json.dumps(cfg)]
        for option, path in {**paths, "manifest": manifest}.items():
            command += [f"--{option.replace('_', '-')}", str(path)]
        start = time.monotonic()
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        peak = json.loads(manifest.with_suffix(".cost.json").read_text())["peak_bytes"]
        print(f"{name} -> {manifest.name}: {time.monotonic() - start:.1f} s, {peak / 1e9:.2f} GB")
        assert peak < MEMORY
        return json.loads(manifest.read_text())["metrics"]

    yield run
    # pytest keeps the folders of three sessions: up to 5 GB each here.
    shutil.rmtree(tmp_path)


def noise_cuts(folder):
    rng, made = np.random.default_rng(1), []
    for i, (name, text) in enumerate(TEXTS.items()):
        wave = 0.1 * rng.standard_normal(16_000 + 4_000 * i)
        soundfile.write(folder / f"{name}.wav", wave.astype(np.float32), 16_000)
        recording = Recording.from_file(folder / f"{name}.wav")
        supervision = SupervisionSegment(name, recording.id, 0.0, recording.duration, text=text, language="en")
        made.append(MonoCut(name, 0.0, recording.duration, 0, [supervision], recording=recording))
    CutSet.from_cuts(made).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def test_xls_r_300m_through_the_stages(tmp_path, stage):
    folder = snapshot(tmp_path / "hub", XLS_R)
    pretrained_xls_r().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true, "return_attention_mask": true}')
    base, low = tmp_path / "base", tmp_path / "low"

    cfg = {"seed": 1, "family": "wav2vec2", "source": XLS_R}
    numbers = stage("base", cfg, tmp_path / "base.json", out=base)
    assert (numbers["source"], numbers["revision"]) == (XLS_R, COMMIT)
    assert numbers["parameters"] == DENSE and numbers["task"] == "body"
    shutil.rmtree(tmp_path / "hub")

    cfg = {"seed": 1, "factorise": {"layers": "ffn", "rank": 512}}
    numbers = stage("factorise", cfg, tmp_path / "factorise.json", model=base, out=low)
    assert len(numbers["layers"]) == 48
    assert numbers["parameters_before"] == DENSE and round(DENSE / 1e6, 1) == 315.4
    assert numbers["parameters_after"] == LOW and round(LOW / 1e6, 1) == 239.9

    cuts, lang = noise_cuts(tmp_path), tmp_path / "lang"
    numbers = stage("lang", {"seed": 1, "lang": {"kind": "char"}}, lang / "lang.json", cuts=cuts, out=lang)
    head = 1025 * numbers["size"]
    waveforms = tmp_path / "features" / "cuts.jsonl.gz"
    stage("features", {"kind": "waveform"}, tmp_path / "features" / "cuts.json", cuts=cuts, base=base, out=waveforms)

    recipe = {"epochs": 1, "max_steps": 1, "batch_seconds": 10.0}
    task, out, scratch = {"type": "asr"}, tmp_path / "system", tmp_path / "scratch"
    data = {"train_cuts": waveforms, "dev_cuts": waveforms, "lang": lang}
    for adapt in ({"adapt": "full"}, {"adapt": "lora", "lora": {"rank": 8, "alpha": 16.0}}):
        for model, size in ((base, DENSE), (low, LOW)):
            shutil.rmtree(out, ignore_errors=True)
            cfg = {"seed": 1, "task": task, **adapt, "training": recipe}
            manifest = tmp_path / f"{adapt['adapt']}_{model.name}.json"
            numbers = stage(
                "train", cfg, manifest, model=model, **data, out=out, scratch=scratch, runtime='{"device": "cpu"}'
            )
            assert numbers["parameters_total"] == size + head and numbers["parameters_dense"] == DENSE + head
            assert numbers["utterances_train"] == len(TEXTS) and not numbers["set_aside"] and numbers["new_head"]
            trained = numbers["parameters_trained"]
            if adapt["adapt"] == "full":
                assert trained == size + head - FRONT_END
            else:
                assert head < trained < 0.05 * size and (out / "adapter" / "adapter_config.json").is_file()
            assert (out / "metrics.jsonl").read_text().strip()
            assert (out / "model" / "model.safetensors").stat().st_size > 4 * size
            shutil.rmtree(scratch, ignore_errors=True)

    # The last of the four: LoRA on the low-rank model, merged into the factors.
    assert len(load_model(out / "model").plan) == 48
    decoded = tmp_path / "decoded"
    paths = {"model": out / "model", "cuts": waveforms, "lang": lang, "out": decoded}
    numbers = stage("decode", {"task": task}, tmp_path / "decode.json", runtime='{"device": "cpu"}', **paths)
    assert numbers["utterances"] == len(TEXTS)
    assert [line.split()[0] for line in (decoded / "hyp.txt").read_text().splitlines()] == sorted(TEXTS)
    assert (decoded / "ref.txt").read_text() == "".join(f"{k} {v}\n" for k, v in TEXTS.items())


def test_xls_r_300m_in_the_published_file_format(tmp_path, stage):
    """The hub has pytorch_model.bin, where weight normalisation has the names of older versions of torch."""
    folder, model = snapshot(tmp_path / "hub", XLS_R), pretrained_xls_r()
    model.config.architectures = ["Wav2Vec2ForPreTraining"]
    model.config.save_pretrained(folder)
    new, old = "conv.parametrizations.weight.original{}", "conv.weight_{}"
    state = {k.replace(new.format(0), old.format("g")): v for k, v in model.state_dict().items()}
    state = {k.replace(new.format(1), old.format("v")): v for k, v in state.items()}
    assert sum(k.endswith(("weight_g", "weight_v")) for k in state) == 2
    torch.save(state, folder / "pytorch_model.bin")
    cfg = {"seed": 1, "family": "wav2vec2", "source": XLS_R, "revision": COMMIT}
    numbers = stage("base", cfg, tmp_path / "base.json", out=tmp_path / "base")
    assert numbers["parameters"] == DENSE and numbers["revision"] == COMMIT
    assert sorted(json.loads((tmp_path / "base.json").read_text())["sources"]) == ["config.json", "pytorch_model.bin"]
    loaded, expected = load_model(tmp_path / "base").body.state_dict(), model.wav2vec2.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in loaded)


def save_tokenizer(folder):
    """A tokenizer of the size of multilingual Whisper's: 50,257 pieces of text, and the special tokens after them."""
    from transformers import WhisperTokenizer
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    tasks = ("translate", "transcribe", "startoflm", "startofprev", "nocaptions", "notimestamps")
    special = ["<|endoftext|>", "<|startoftranscript|>"] + [f"<|{name}|>" for name in (*list(LANGUAGES)[:99], *tasks)]
    tokenizer = WhisperTokenizer(vocab={f"piece{i}": i for i in range(50_257)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    assert tokenizer.convert_tokens_to_ids("<|notimestamps|>") == 50_363
    tokenizer.save_pretrained(folder)


def test_whisper_small_through_base_and_factorise(tmp_path, stage):
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    whisper = WhisperForConditionalGeneration(WhisperConfig(**PRESETS["whisper-small"].config))
    size = sum(p.numel() for p in whisper.parameters())
    assert size == 241_734_912
    folder = snapshot(tmp_path / "hub", "openai/whisper-small")
    whisper.save_pretrained(folder)
    save_tokenizer(folder)
    cfg = {"seed": 1, "family": "whisper", "source": "openai/whisper-small"}
    numbers = stage("base", cfg, tmp_path / "base.json", out=tmp_path / "base")
    assert numbers["revision"] == COMMIT and numbers["parameters"] == size and numbers["task"] == "seq2seq"
    cfg = {"seed": 1, "factorise": {"layers": "ffn", "rank": 384}}
    numbers = stage("factorise", cfg, tmp_path / "factorise.json", model=tmp_path / "base", out=tmp_path / "low")
    # 24 blocks with two layers of 768 x 3072 each
    assert numbers["parameters_before"] == size
    assert numbers["parameters_after"] == size - 48 * (768 * 3072 - 384 * (768 + 3072))
