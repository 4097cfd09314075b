"""A Whisper with separate output projection and embeddings (tie_word_embeddings: false) always keeps both."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import WhisperForConditionalGeneration

from lowrank_speech.errors import UserError
from lowrank_speech.models.build import build, quiet_config, unwrap
from lowrank_speech.models.counting import count
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.stages import export, factorise
from stage_world import done
from test_whisper_window import imported, published

OUTPUT = "proj_out.weight"


def logits(model):
    mel = torch.randn(1, 60, model.config.num_mel_bins, generator=torch.Generator().manual_seed(1))
    return model.seq2seq_logits(mel, torch.tensor([60]), torch.tensor([[257, 258, 70, 71]]))[0]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = published(tmp_path_factory.mktemp("untied") / "hub", tie_word_embeddings=False)
    state = load_file(folder / "model.safetensors")
    assert not torch.equal(state[OUTPUT], state["model.decoder.embed_tokens.weight"])
    return folder


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_folders_sizes_and_outputs(tied, hub, tmp_path):
    source = published(tmp_path / "tied") if tied else hub
    hf = WhisperForConditionalGeneration.from_pretrained(source).eval()
    folder = imported(source, tmp_path / "base")
    model = load_model(folder)
    assert torch.equal(logits(model), logits_of(hf, model))
    assert (OUTPUT in load_file(folder / "model.safetensors")) == (not tied)
    total = sum(p.numel() for p in hf.parameters())
    counted = count(model=str(folder))
    assert total == model.parameters_total() == model.dense_parameters() == counted["total_before"]
    assert sum(counted["groups"].values()) == total and (OUTPUT in counted["groups"]) == (not tied)
    assert total == count(model=str(source))["total_before"]
    plain, info = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits_of(plain.eval(), model), logits(model))
    back = unwrap(model)
    assert (back.proj_out.weight is back.model.decoder.embed_tokens.weight) == tied

    cfg = {"seed": 1, "factorise": {"layers": "all", "rank": 5}}
    report = done(factorise, cfg, tmp_path / "f.json", model=folder, out=tmp_path / "low")["metrics"]
    low = load_model(tmp_path / "low")
    assert report["parameters_after"] == low.parameters_total() == count(model=str(tmp_path / "low"))["total_after"]
    assert report["parameters_before"] == low.dense_parameters() == total
    assert torch.equal(low.hf.proj_out.weight, hf.proj_out.weight)
    done(export, {"format": "dense"}, tmp_path / "e.json", model=tmp_path / "low", out=tmp_path / "dense")
    read, info = WhisperForConditionalGeneration.from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(logits_of(read.eval(), model), logits(low), atol=1e-4, rtol=1e-4)


def logits_of(hf, model):
    mel = torch.randn(1, 60, model.config.num_mel_bins, generator=torch.Generator().manual_seed(1))
    padded = model.pad_mel(mel, torch.tensor([60]))
    return hf(padded, decoder_input_ids=torch.tensor([[257, 258, 70, 71]])).logits


def test_a_gradient_reaches_the_projection_and_not_only_the_embeddings(hub):
    model = build("seq2seq", quiet_config(WhisperForConditionalGeneration.from_pretrained(hub).config))
    names = {name for name, _ in model.named_parameters()}
    assert f"hf.{OUTPUT}" in names
    logits(model).sum().backward()
    assert model.hf.proj_out.weight.grad.abs().max() > 0


def test_a_folder_that_lost_its_projection_is_refused(hub, tmp_path):
    """As folders were written before: the logits would be garbage."""
    model = load_model(imported(hub, tmp_path / "base"))
    model.config.tie_word_embeddings = True
    save_model(model, tmp_path / "old")
    file = tmp_path / "old" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"does not fit its config.json: proj_out.weight is missing; make the folder"):
        load_model(tmp_path / "old")
