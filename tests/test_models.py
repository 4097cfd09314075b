"""Whisper's inputs and folders, broken folders and sources; test_families has the other architectures."""

import json

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from lowrank_speech.errors import UserError
from lowrank_speech.features.logmel import log_mel
from lowrank_speech.models.build import quiet_config, wrap
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.gabor import gabor_filters
from lowrank_speech.models.sources import resolve
from lowrank_speech.models.speech import Meta
from lowrank_speech.models.tasks import to_task
from tiny_models import member

WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 20,
    "max_source_positions": 50,
    "max_target_positions": 24,
    "vocab_size": 40,
    "pad_token_id": 30,
    "bos_token_id": 30,
    "eos_token_id": 30,
    "decoder_start_token_id": 31,
}


def whisper():
    torch.manual_seed(0)
    hf = WhisperForConditionalGeneration(quiet_config(WhisperConfig(**WHISPER)))
    return wrap(hf.eval(), Meta("whisper", "seq2seq"))


def waves(*seconds):
    generator = torch.Generator().manual_seed(1)
    made = [torch.randn(int(16_000 * s), generator=generator) for s in seconds]
    return torch.nn.utils.rnn.pad_sequence(made, batch_first=True), torch.tensor([len(w) for w in made])


# Not 30 s exactly: where no zeros follow, transformers reflects the end, and the last frame differs.
@pytest.mark.parametrize("seconds", [0.013, 0.5, 1.2345, 29.98])
@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("peak", [0.3, 3e-3, 3e-4, 0.0])  # of quiet speech the padding is bounded from below
def test_log_mel_equals_whispers_extractor(seconds, bands, peak):
    wave = waves(seconds)[0][0]
    wave *= peak / wave.abs().max()
    expected = WhisperFeatureExtractor(feature_size=bands)(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
    found = log_mel(wave, bands)
    model = whisper()
    model.hf.config.max_source_positions = 1500
    padded = model.pad_mel(found[None], torch.tensor([len(found)]))
    torch.testing.assert_close(padded, expected.input_features, atol=2e-4, rtol=0)


@torch.no_grad()
def test_padding_of_mel_ignores_the_rest_of_the_batch():
    model = whisper()
    features = torch.randn(2, 90, 20)
    lengths = torch.tensor([60, 90])
    both = model.pad_mel(features, lengths)
    alone = model.pad_mel(features[:1, :60], lengths[:1])
    assert torch.equal(both[:1], alone)
    with pytest.raises(UserError, match=r"longer than the Whisper window of 1\.00 s"):
        model.pad_mel(torch.randn(1, 103, 20), torch.tensor([103]))


def test_folder_of_whisper_is_bit_exact_and_plain_transformers_reads_it(tmp_path):
    model = whisper()
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    state, found = model.hf.state_dict(), again.hf.state_dict()
    assert state.keys() == found.keys() and all(torch.equal(state[k], found[k]) for k in state)
    plain = type(model.hf).from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), state.values(), strict=True))
    assert again.parameters_total() == model.parameters_total() == again.dense_parameters()


def test_a_broken_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        load_model(tmp_path)
    save_model(member("wav2vec2"), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"vocab_size": 13}))
    with pytest.raises(UserError, match="does not fit"):
        load_model(tmp_path / "model")


@torch.no_grad()
def test_whisper_classifier_takes_the_encoder_alone():
    base = whisper()
    model, new = to_task(base, "classify", 2, ["a", "b"], seed=1)
    features, lengths = torch.randn(2, 80, 20), torch.tensor([80, 40])
    assert new and not hasattr(model.hf, "decoder")
    assert torch.equal(model.states(features, lengths)[0], base.states(features, lengths)[0])
    torch.testing.assert_close(model.class_logits(features, lengths)[1:], model.class_logits(features[1:], lengths[1:]))


def test_a_source_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match="neither a folder nor a hub name"):
        resolve("no such thing", None)
    with pytest.raises(UserError, match=r"no config\.json"):
        resolve(str(tmp_path), None)


def test_an_absent_hub_model_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf download nobody/nothing"):
        resolve("nobody/nothing", None)


def test_gabor_filters_have_their_peaks_in_order():
    filters = gabor_filters(24, 256)
    spectrum = np.abs(np.fft.rfft(filters.numpy(), 4096)) ** 2
    peaks = spectrum.reshape(24, 2, -1).sum(1).argmax(-1)
    assert (np.diff(peaks) > 0).all()
    torch.testing.assert_close(filters.norm(dim=1), torch.ones(48))
