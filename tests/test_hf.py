"""Factorised folders in plain transformers: exact after ``import lowrank_speech.hf``, refused without."""

import copy
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import lowrank_speech.hf
from lowrank_speech.errors import UserError
from lowrank_speech.features.inputs import inputs_of
from lowrank_speech.models.files import GUARDED, METHOD
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.tasks import to_task
from lowrank_speech.stages import base, export, factorise
from stage_world import done
from test_factorise_stage import MODELS
from test_vocabulary import published as published_ctc
from test_whisper_window import imported, published
from tiny_models import member, speech

SOURCE = Path(lowrank_speech.hf.__file__).parents[1]
CASES = [(name, "ctc") for name in ("wav2vec2", "hubert-group", "wavlm", "w2v-bert")] + [("wav2vec2", "classify")]
CASES += [("whisper", "tied"), ("whisper", "untied"), ("whisper", "few tokens"), ("whisper", "classify")]


def whisper(folder, kind):
    if kind == "few tokens":
        save_model(MODELS["whisper"](), folder)
        return folder
    if kind == "classify":
        save_model(to_task(MODELS["whisper"](), "classify", 2, ["de", "en"])[0], folder)
        return folder
    return imported(published(folder / "hub", tie_word_embeddings=kind == "tied"), folder / "base")


@pytest.fixture(scope="module")
def low(tmp_path_factory):
    """(member, task) -> a factorised folder."""
    made = {}

    def make(name, task):
        if (name, task) not in made:
            folder = tmp_path_factory.mktemp("low")
            if name == "whisper":
                dense = whisper(folder / "dense", task)
            else:
                dense = folder / "dense"
                save_model(member(name, task), dense)
            layers = ["all", "embedding"] if task in ("tied", "few tokens") else "all"
            cfg = {"seed": 1, "factorise": {"layers": layers, "rank": 5, "exact_rows": 3}}
            done(factorise, cfg, folder / "f.json", model=dense, out=folder / "low")
            made[name, task] = folder / "low"
        return made[name, task]

    return make


def classes(model):
    """Transformers' classes for the model: its own, and those that find it."""
    found = [getattr(transformers, model.architecture)]
    if model.task == "ctc":
        return [*found, transformers.AutoModelForCTC]
    if model.task == "classify":
        return [*found, transformers.AutoModelForAudioClassification]
    return [*found, transformers.AutoModelForSpeechSeq2Seq]


def state_on_disk(model):
    return {model.disk_name(name): tensor for name, tensor in model.state_dict().items()}


def same_outputs(model, found, expected):
    """``found`` computes what transformers' class ``expected`` computes, bit for bit."""
    if model.family == "whisper":
        mel = torch.randn(2, model.config.num_mel_bins, model.window, generator=torch.Generator().manual_seed(3))
        ids = {} if model.task == "classify" else {"decoder_input_ids": torch.tensor([[5, 3, 1, 7], [4, 6, 2, 0]])}
        keys = {"input_features": mel} | ids
    else:
        features, _ = speech(model, 0.5)
        keys = {"input_values" if features.dim() == 2 else "input_features": features}
    with torch.no_grad():
        assert torch.equal(found(**keys).logits, expected(**keys).logits)


@pytest.mark.parametrize(("name", "task"), CASES, ids=str)
def test_transformers_loads_the_factors_exactly(name, task, low, tmp_path):
    folder = low(name, task)
    model = load_model(folder)
    wanted, reference = state_on_disk(model), unwrapped(model)
    for cls in classes(model):
        found, info = cls.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()) and found.dtype == torch.float32
        assert found.state_dict().keys() == wanted.keys()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in found.state_dict().items())
        assert sum(p.numel() for p in found.parameters()) == model.parameters_total()
        same_outputs(model, found, reference)

    # What transformers saves is the same model, for its own classes and for load_model.
    found.save_pretrained(tmp_path / "saved")
    again, info = type(found).from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())
    for other in (again.state_dict(), state_on_disk(load_model(tmp_path / "saved"))):
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in other.items())
    same_outputs(model, again, reference)


def unwrapped(model):
    """Transformers' own class with the modules of ``model``."""
    if model.decodes:
        return model.hf
    with torch.device("meta"):
        hf = getattr(transformers, model.architecture)(model.config)
    if hf.base_model is hf:  # Whisper's encoder
        hf.encoder = model.hf.encoder
    else:
        setattr(hf, hf.base_model_prefix, model.hf)
    for own, theirs in model.head.NAMES.items():
        setattr(hf, theirs, getattr(model.head, own))
    return hf.eval()


def test_a_model_without_the_head_has_the_factors_too(low):
    model = load_model(low("wav2vec2", "ctc"))
    found = transformers.Wav2Vec2Model.from_pretrained(low("wav2vec2", "ctc"))
    body = model.body.state_dict()
    assert found.state_dict().keys() == body.keys()
    assert all(torch.equal(tensor, body[name]) for name, tensor in found.state_dict().items())


def test_a_loaded_model_is_an_ordinary_model(low, tmp_path):
    """It can be cast, copied and trained, and it generates."""
    folder = low("whisper", "tied")
    found = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    assert not found.is_quantized and found.model.encoder.layers[0].fc1.first.weight.requires_grad
    dense = transformers.WhisperForConditionalGeneration.from_pretrained(folder.parent / "dense" / "base")
    for model in (found, dense):
        assert all(p.requires_grad for p in model.parameters())
    mel = torch.randn(1, found.config.num_mel_bins, 2 * found.config.max_source_positions)
    with torch.no_grad():
        written = copy.deepcopy(found).half().float().generate(mel, max_new_tokens=4, language="de")
    assert written.shape[0] == 1
    tokens = torch.tensor([[3, 4, 5]])
    found(input_features=mel, labels=tokens).loss.backward()
    assert found.model.decoder.embed_tokens.second.weight.grad.abs().sum() > 0
    half = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.model.decoder.embed_tokens.place.dtype == torch.int64


def run(code, *paths, package=True):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    if package:
        environment["PYTHONPATH"] = str(SOURCE)
    command = [sys.executable, "-c", code, *map(str, paths)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


REFUSED = """
import sys, transformers
assert "lowrank_speech" not in sys.modules
for names, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    for name in names.split(","):
        for keys in ({}, {"ignore_mismatched_sizes": True}, {"device_map": "cpu"}):
            if "saved" in folder and "ignore_mismatched_sizes" in keys:
                continue  # what transformers itself saved has no other guard than the sizes
            try:
                getattr(transformers, name).from_pretrained(folder, **keys)
            except (ValueError, RuntimeError) as error:
                text = str(error)
            else:
                raise SystemExit(f"{name} loaded {folder}")
            assert "import lowrank_speech.hf" in text or "ignore_mismatched_sizes" in text, text
for folder in sys.argv[2::2]:
    try:
        transformers.pipeline("automatic-speech-recognition", model=folder)
    except (ValueError, RuntimeError) as error:
        assert "import lowrank_speech.hf" in str(error) or "ignore_mismatched_sizes" in str(error), error
        print("refused")
"""


@pytest.mark.slow
def test_without_the_import_every_class_refuses_the_folder(low, tmp_path):
    arguments = []
    for name, task in (("wav2vec2", "ctc"), ("whisper", "tied")):
        folder = low(name, task)
        model = load_model(folder)
        loaded = classes(model)[0].from_pretrained(folder)
        loaded.save_pretrained(tmp_path / f"saved-{name}")
        names = ",".join(cls.__name__ for cls in classes(model))
        arguments += [names, folder, names, tmp_path / f"saved-{name}"]
    arguments += ["AutoModelForAudioClassification,Wav2Vec2ForSequenceClassification", low("wav2vec2", "classify")]
    arguments += ["WhisperForAudioClassification,WhisperModel,AutoModel", low("whisper", "few tokens")]
    done = run(REFUSED, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["refused"] * 6


def test_dense_folders_are_as_before(tmp_path):
    model = member("wav2vec2")
    save_model(model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert not GUARDED.keys() & config.keys()
    assert transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "model").lm_head.out_features == 12


def test_an_export_to_dense_drops_the_guard(low, tmp_path):
    folder = low("wav2vec2", "ctc")
    said = json.loads((folder / "config.json").read_text())
    assert said["quantization_config"] == {"quant_method": METHOD} and "import lowrank_speech.hf" in json.dumps(said)
    done(export, {"format": "dense"}, tmp_path / "e.json", model=folder, out=tmp_path / "dense")
    assert not GUARDED.keys() & json.loads((tmp_path / "dense" / "config.json").read_text()).keys()


def test_folders_from_before_still_load(low, tmp_path):
    """Without the new keys, with plans in the names of transformers' class."""
    folder = low("wav2vec2", "ctc")
    config = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k not in GUARDED}
    plan = config["lowrank_speech"]["plan"]
    config["lowrank_speech"]["plan"] = {f"wav2vec2.{name}": rank for name, rank in plan.items()}
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors"), old / "model.safetensors", metadata={"format": "pt"})
    model = load_model(old)
    wanted = load_model(folder).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    assert model.plan == plan
    # Saved again, transformers reads it.
    save_model(model, tmp_path / "new")
    assert transformers.AutoModelForCTC.from_pretrained(tmp_path / "new").num_parameters() == model.parameters_total()


def test_a_folder_without_its_plan_is_refused(low, tmp_path):
    folder = low("wav2vec2", "ctc")
    config = json.loads((folder / "config.json").read_text())
    del config["lowrank_speech"]["plan"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="no plan under lowrank_speech; make the folder again"):
        transformers.AutoModelForCTC.from_pretrained(tmp_path)


def test_the_pipeline_transcribes_with_the_factors(tmp_path):
    hub = published_ctc(tmp_path / "hub")
    done(base, {"seed": 1, "family": "wav2vec2", "source": str(hub)}, tmp_path / "b.json", out=tmp_path / "base")
    cfg = {"seed": 1, "factorise": {"layers": "all", "rank": 5}}
    done(factorise, cfg, tmp_path / "f.json", model=tmp_path / "base", out=tmp_path / "low")
    recognise = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path / "low"))
    model, wave = load_model(tmp_path / "low"), torch.randn(8_000, generator=torch.Generator().manual_seed(2)) / 3
    assert sum(p.numel() for p in recognise.model.parameters()) == model.parameters_total()
    read = inputs_of(tmp_path / "low").of(wave)
    logits, _ = model.ctc_logits(read[None], torch.tensor([len(read)]))
    ids = [i for i, _ in itertools.groupby(logits[0].argmax(-1).tolist()) if i != recognise.tokenizer.pad_token_id]
    assert len(ids) > 10
    assert recognise(np.array(wave))["text"] == recognise.tokenizer.decode(ids, group_tokens=False).strip()
