"""The commands and code of docs/export.md on tiny systems: folders, cards, and use in a clean environment."""

import json
import os
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from conftest import REPOSITORY
from lowrank_speech import cli
from lowrank_speech.errors import UserError
from lowrank_speech.exporting.about import about
from lowrank_speech.exporting.export import export
from lowrank_speech.features.inputs import inputs_of
from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.tasks import to_task
from lowrank_speech.stages import factorise
from stage_world import done
from test_vocabulary import published as published_ctc
from test_whisper_window import CONFIG, imported, published
from whisper_models import TIMES, TOKENS

PAGE = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8")
COMMANDS = [line for line in PAGE.splitlines() if line.startswith("lowrank-speech export exp")]
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "ctranslate2": ("ctranslate2",)}
SYSTEMS = {"wav2vec2": "exp/mine/train/wav2vec2/asr/lowrank", "whisper": "exp/mine/train/whisper/asr/lowrank"}


def noise(seconds, seed=3):
    return 0.3 * torch.randn(int(16_000 * seconds), generator=torch.Generator().manual_seed(seed))


def system(root, family, hub):
    """A factorised system of the experiment, and the manifests beside it."""
    base = root / "hub" / family
    if family == "whisper":
        imported(hub, base)
    else:
        from lowrank_speech.stages import base as stage

        done(stage, {"seed": 1, "family": family, "source": str(hub)}, root / "b.json", out=base)
    folder = root / SYSTEMS[family]
    folder.mkdir(parents=True)
    layers = ["all", "embedding"] if family == "whisper" else "all"
    cfg = {"seed": 1, "factorise": {"layers": layers, "rank": 6, "exact_rows": 3}}
    done(factorise, cfg, folder / "f.json", model=base, out=folder / "model")
    metrics = {"utterances_train": 1200, "utterances_dev": 80, "seconds_speech": 5400.0}
    train = {"stage": "train", "cfg": {"adapt": "full", "training": {"epochs": 8, "lr": 0.0003}}, "metrics": metrics}
    (folder / "train.json").write_text(json.dumps(train))
    source = root / "exp/mine/base" / family
    source.mkdir(parents=True)
    (source / "base.json").write_text(json.dumps({"cfg": {"source": str(hub), "revision": "abc"}}))
    (hub / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    score = root / f"exp/mine/score/{family}/asr/lowrank/greedy/test"
    score.mkdir(parents=True)
    (score / "score.json").write_text(json.dumps({"metrics": {"wer": 0.125, "interval": {"wer": [0.1, 0.15]}}}))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A folder with the experiment exp/mine, in which the page's commands run."""
    root = tmp_path_factory.mktemp("export")
    system(root, "wav2vec2", published_ctc(root / "w"))
    hub = published(
        root / "v",
        special_tokens=TOKENS,
        times=TIMES,
        max_source_positions=1500,
        init_std=0.6,
        max_target_positions=448,
    )
    WhisperFeatureExtractor(feature_size=CONFIG["num_mel_bins"]).save_pretrained(hub)
    system(root, "whisper", hub)
    soundfile.write(root / "audio.wav", noise(1.3).numpy(), 16_000)
    return root


@pytest.fixture(scope="module")
def exported(tree):
    """DST of a command of the page -> its folder and what the command printed."""
    found = {}

    def get(name):
        if name not in found:
            (words,) = (shlex.split(line) for line in COMMANDS if shlex.split(line)[3] == name)
            for package in NEEDS.get(words[words.index("--format") + 1], ()):
                pytest.importorskip(package, reason=f"the extra for {words[-1]} is not installed")
            found[name] = SimpleNamespace(folder=tree / name, result=call(tree, *words[1:], "--json"))
        return found[name]

    return get


def call(where, *words):
    """The JSON that the command prints; it must end well."""
    import contextlib
    import io

    out = io.StringIO()
    before = os.getcwd()
    os.chdir(where)
    try:
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as left:
            cli.main(list(words))
    finally:
        os.chdir(before)
    assert not left.value.code
    return json.loads(out.getvalue())


def model_of(tree, family):
    folder = tree / SYSTEMS[family] / "model"
    return load_model(folder), folder


CLEAN = """
import io, json, os, sys
from contextlib import redirect_stdout
printed = []
for folder in sys.argv[1:]:
    os.chdir(folder)
    code = open("README.md", encoding="utf-8").read().partition("```python\\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line and "import" not in line]) < 20
    out = io.StringIO()
    with redirect_stdout(out):
        exec(code, {})
    printed.append(out.getvalue().strip())
assert "lowrank_speech" not in sys.modules
print(json.dumps(printed))
"""


def clean(tree, *folders):
    """What the code on the cards prints, in a process that does not know this package."""
    for folder in folders:
        (folder / "audio.wav").write_bytes((tree / "audio.wav").read_bytes())
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", CLEAN, *map(str, folders)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    for folder in folders:
        (folder / "audio.wav").unlink()
    assert found.returncode == 0, found.stderr[-3000:]
    return json.loads(found.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_cards_of_ctc_exports_work_in_a_clean_environment(tree, exported):
    folders = [exported(name).folder for name in ("ctc-dense", "ctc-onnx", "ctc-int8")]
    dense, onnx, int8 = clean(tree, *folders)
    model, folder = model_of(tree, "wav2vec2")
    wave = inputs_of(folder).of(noise(1.3))
    logits, _ = model.ctc_logits(wave[None], torch.tensor([len(wave)]))
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert dense == onnx == tokenizer.decode(logits[0].argmax(-1)).strip() and len(dense) > 10
    assert int8


@pytest.mark.slow
def test_the_cards_of_whisper_exports_work_in_a_clean_environment(tree, exported):
    pytest.importorskip("faster_whisper", reason="faster-whisper is not installed")
    names = ("whisper-dense", "whisper-onnx", "whisper-ct2")
    assert all(isinstance(text, str) for text in clean(tree, *(exported(name).folder for name in names)))


@pytest.mark.slow
def test_onnx_equals_the_model_for_every_batch_and_length(tree, exported):
    import onnxruntime

    graph = onnxruntime.InferenceSession(exported("ctc-onnx").folder / "model.onnx")
    assert {i.name for i in graph.get_inputs()} == {"samples", "lengths"}
    model, folder = model_of(tree, "wav2vec2")
    for seconds in ((0.3,), (2.5, 0.4), (0.5, 1.1, 0.7)):
        waves = [noise(s, seed) for seed, s in enumerate(seconds)]
        lengths = np.array([len(wave) for wave in waves])
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).numpy()
        log_probs, frames = graph.run(None, {"samples": padded, "lengths": lengths})
        for row, wave in enumerate(waves):
            read = inputs_of(folder).of(wave)
            logits, n = model.ctc_logits(read[None], torch.tensor([len(read)]))
            found = torch.from_numpy(log_probs[row, : frames[row]])
            assert frames[row] == n
            torch.testing.assert_close(found, logits[0].log_softmax(-1), atol=1e-4, rtol=0)
    assert exported("ctc-onnx").result["largest_difference"] < 1e-5


@pytest.mark.slow
def test_whisper_in_onnx_decodes_step_by_step_as_the_model(tree, exported):
    import onnxruntime

    folder = exported("whisper-onnx").folder
    model, source = model_of(tree, "whisper")
    assert "embed_tokens" in "".join(model.plan) or model.meta.exact
    encoder, decoder = (onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder"))
    mels = [inputs_of(source).of(noise(s, 7)) for s in (0.6, 1.4)]
    lengths = torch.tensor([len(mel) for mel in mels])
    padded = model.pad_mel(torch.nn.utils.rnn.pad_sequence(mels, batch_first=True), lengths)
    cross = encoder.run(None, {"features": np.ascontiguousarray(padded.numpy())})
    given = dict(zip([o.name for o in encoder.get_outputs()], cross, strict=True))
    names = [i.name for i in decoder.get_inputs() if i.name.startswith(("key", "value"))]
    heads, size = model.config.decoder_attention_heads, model.config.d_model // model.config.decoder_attention_heads
    cache = dict.fromkeys(names, np.zeros((2, heads, 0, size), np.float32))
    written = step = np.array([[model.config.decoder_start_token_id, 300]] * 2)
    for _ in range(8):
        log_probs, *new = decoder.run(None, {"tokens": step, **cache, **given})
        cache, step = dict(zip(names, new, strict=True)), log_probs[:, -1:].argmax(-1)
        with torch.no_grad():
            states, _ = model.states(torch.nn.utils.rnn.pad_sequence(mels, batch_first=True), lengths)
            expected = model.decoder_logits(states, torch.from_numpy(written)).log_softmax(-1)[:, -1]
        torch.testing.assert_close(torch.from_numpy(log_probs[:, -1]), expected, atol=1e-4, rtol=0)
        written = np.concatenate([written, step], 1)


@pytest.mark.slow
def test_the_eight_bit_export_is_smaller_and_close(exported):
    full, small = exported("ctc-onnx"), exported("ctc-int8")
    assert small.result["format"] == "onnx-int8" and 0 < small.result["divergence"] < 0.05
    assert small.result["largest_difference"] > full.result["largest_difference"]
    import onnx

    types = {node.op_type for node in onnx.load(small.folder / "model.onnx").graph.node}
    assert "MatMulInteger" in types and "MatMulInteger" not in {
        node.op_type for node in onnx.load(full.folder / "model.onnx").graph.node
    }


@pytest.mark.slow
def test_ctranslate2_has_what_faster_whisper_reads(exported):
    files = {path.name for path in exported("whisper-ct2").folder.iterdir()}
    assert {"model.bin", "config.json", "tokenizer.json", "preprocessor_config.json", "README.md"} <= files
    assert exported("whisper-ct2").result["largest_difference"] < 1e-2


def test_dense_and_hf_are_compared_and_described(tree, exported):
    model, _ = model_of(tree, "wav2vec2")
    dense, low = exported("ctc-dense").result, exported("ctc").result
    assert low["largest_difference"] == 0 and low["parameters"] == model.parameters_total()
    assert dense["parameters"] == dense["parameters_dense"] == low["parameters_dense"] == model.dense_parameters()
    assert 0 < dense["largest_difference"] < 1e-4 and dense["same_best"] == 1 and dense["tokenizer"] == 12
    text = (exported("ctc").folder / "README.md").read_text()
    for said in (
        "# mine:wav2vec2/asr/lowrank",
        f"| parameters | {model.parameters_total():,} |",
        f"| reduction | {1 - model.parameters_total() / model.dense_parameters():.1%} |",
        "| test | greedy | word error rate | 12.50% (10.00% to 15.00%) |",
        "license: apache-2.0",
        "(revision abc)",
        "all weights trained",
        "12 linear layers replaced by two factors each, of rank 6",
        "1,200 utterances for training (1.50 h of speech)",
        "import lowrank_speech.hf",
    ):
        assert said in text, said
    assert "import lowrank_speech.hf" not in (exported("ctc-dense").folder / "README.md").read_text()


def test_the_pages_code_for_transformers_runs(tree, exported, monkeypatch, capsys):
    exported("ctc")
    monkeypatch.chdir(tree)
    names = {}
    exec(BLOCKS[0], names)
    assert len(capsys.readouterr().out.strip()) > 10
    assert names["model"].num_parameters() == model_of(tree, "wav2vec2")[0].parameters_total()


@pytest.mark.slow
def test_the_pages_code_for_faster_whisper_runs(tree, exported, monkeypatch):
    pytest.importorskip("faster_whisper", reason="faster-whisper is not installed")
    exported("whisper-ct2")
    monkeypatch.chdir(tree)
    (code,) = (block for block in BLOCKS if "faster_whisper" in block)
    exec(code, {})


@pytest.mark.parametrize(("family", "form"), [("wav2vec2", "dense"), ("wav2vec2", "hf"), ("whisper", "dense")])
def test_the_cards_of_classifiers_run(family, form, tree, tmp_path, monkeypatch, capsys):
    source = tree / SYSTEMS[family] / "model"
    model, _ = to_task(load_model(source), "classify", 2, ["de", "en"])
    save_model(model, tmp_path / "model", copy_from=source)
    export(load_model(tmp_path / "model"), tmp_path / "model", form, tmp_path / "out", about(tmp_path / "model", "lid"))
    (tmp_path / "out" / "audio.wav").write_bytes((tree / "audio.wav").read_bytes())
    (code,) = re.findall("```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "out")
    capsys.readouterr()
    exec(code, {})
    printed = capsys.readouterr().out
    assert "de" in printed and "en" in printed
    assert ("lowrank_speech" in code) == (family == "whisper" or form == "hf")


def test_an_export_that_differs_leaves_no_folder(tree, tmp_path, monkeypatch):
    model, folder = model_of(tree, "wav2vec2")
    correct = LowRankLinear.dense

    def wrong(layer):
        result = correct(layer)
        result.weight.data.mul_(1.5)
        return result

    monkeypatch.setattr(LowRankLinear, "dense", wrong)
    with pytest.raises(UserError, match=r"differs from the model by .* wrong and was not kept"):
        export(model, folder, "dense", tmp_path / "out", about(folder, "x"))
    assert not list(tmp_path.iterdir())


def test_missing_and_old_packages_are_named(tree, tmp_path, monkeypatch):
    import importlib.metadata

    model, folder = model_of(tree, "wav2vec2")
    for version, message in (
        ("1.2.0", "needs onnxruntime of at least version 1.20, but 1.2.0 is installed: pip install --upgrade 'lowrank"),
        (None, r"needs the package onnxruntime .* pip install 'lowrank-speech\[onnx\]'"),
    ):

        def found(name, version=version):
            if name != "onnxruntime":
                return "9.9"
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", found)
        with pytest.raises(UserError, match=message):
            export(model, folder, "onnx", tmp_path / "out", about(folder, "x"))
    assert not list(tmp_path.iterdir())


def refused(capsys, *words):
    with pytest.raises(SystemExit) as left:
        cli.main(["export", *map(str, words)])
    shown = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == 2 and "Traceback" not in "".join(shown)
    return shown[-1]


def test_bad_input_is_one_line(tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tree)
    ctc, taken, new = SYSTEMS["wav2vec2"], tmp_path / "taken", tmp_path / "new"
    taken.mkdir()
    (taken / "mine.txt").touch()
    (tmp_path / "file").touch()
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.json").write_text((tree / ctc / "model" / "config.json").read_text())
    lid, _ = to_task(load_model(tree / SYSTEMS["whisper"] / "model"), "classify", 2, ["de", "en"])
    save_model(lid, tmp_path / "lid")
    for words, message in (
        ((ctc, taken, "--format", "hf"), "exists: remove it, name another folder, or give --overwrite"),
        ((ctc, taken, "--format", "hf", "--overwrite"), "without README.md, so no export"),
        ((ctc, tmp_path / "file", "--format", "hf", "--overwrite"), "is a file; name a folder"),
        ((ctc, "/proc/new", "--format", "hf"), "/proc/new cannot be written"),
        ((half, new, "--format", "hf"), "model.safetensors is missing"),
        ((tmp_path / "nothing", new, "--format", "hf"), "does not exist"),
        (("exp/mine:wav2vec2/asr/none", new, "--format", "hf"), "has no trained system"),
        ((ctc, new, "--format", "ctranslate2"), "is a wav2vec2 model, but CTranslate2 only runs a Whisper"),
        ((tmp_path / "lid", new, "--format", "ctranslate2"), "a Whisper that recognises languages, but CTranslate2"),
        ((ctc, new, "--format", "dense", "--int8"), "--int8 is only for --format onnx, not dense"),
        ((ctc, new, "--format", "onnx", "--opset", "9"), "--opset is 9; expected 18"),
        ((ctc, new, "--format", "hf", "--opset", "18"), "--opset is only for --format onnx"),
        ((ctc, new, "--format", "onxx"), "onxx"),
    ):
        assert message in refused(capsys, *words), words
    assert not new.exists()


def test_an_export_is_overwritten_when_asked(tree, exported, tmp_path):
    words = [str(tree / SYSTEMS["wav2vec2"]), str(tmp_path / "out"), "--format", "hf", "--json"]
    first = call(tmp_path, "export", *words)
    assert call(tmp_path, "export", *words, "--overwrite") == first
