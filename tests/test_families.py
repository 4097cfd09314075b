"""Every supported architecture on tiny models: batches, factors, adapters, folders and imports."""

import json
import logging
from fnmatch import fnmatchcase
from types import SimpleNamespace

import pytest
import torch
import transformers

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.factorise import factorise
from lowrank_speech.lowrank.lora import add_lora, merge
from lowrank_speech.lowrank.lora_settings import LoraSettings
from lowrank_speech.lowrank.moments import Moments
from lowrank_speech.lowrank.select import linears, select
from lowrank_speech.lowrank.structure import low_rank_layers
from lowrank_speech.models.dropout import set_dropout
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.layers import dense_layers
from lowrank_speech.models.registry import FAMILIES, family_class
from lowrank_speech.models.sources import Source, import_model, resolve
from lowrank_speech.models.tasks import body_state, to_task
from tiny_models import MEMBERS, member, plain, speech

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
CONVOLUTIONAL = [name for name, (kind, _) in MEMBERS.items() if kind != "wav2vec2-bert"]
CLASSIFIERS = [name for name in MEMBERS if not name.endswith("adapter")]  # transformers has none with add_adapter
TASKS = ("ctc", "classify", "body")
SHAPES = ("wav2vec2", "mms", "hubert", "wavlm", "data2vec-audio", "w2v-bert")  # different in their parts' names


def factorised(model, layers="all", rank=None):
    """Factors for ``layers`` in place, by default at full rank."""
    chosen = dense_layers(model, layers)
    plan = {name: rank or min(layer.weight.shape) for name, layer in chosen.items()}
    factorise(model.body, plan)
    model.plan = plan
    return model


@pytest.mark.parametrize("name", MEMBERS)
@torch.no_grad()
def test_a_batch_gives_what_single_utterances_give_and_what_plain_transformers_gives(name):
    model, hf = member(name), plain(name)
    batch, lengths = speech(model, 0.31, 0.5, 0.2)
    logits, frames = model.ctc_logits(batch, lengths)
    for row, n, length, inputs in zip(logits, frames.tolist(), lengths, batch, strict=True):
        alone, m = model.ctc_logits(inputs[None, :length], length[None])
        assert m.item() == n == alone.shape[1]
        torch.testing.assert_close(row[:n], alone[0], **CLOSE)
        torch.testing.assert_close(alone, hf(inputs[None, :length]).logits, **CLOSE)
        stored = {"has_features": True, "num_frames": int(length)}
        recorded = {"has_features": False, "num_samples": int(length)}
        assert model.frames_of(SimpleNamespace(**stored if model.family == "w2v-bert" else recorded)) == n


@pytest.mark.parametrize("name", CONVOLUTIONAL)
@torch.no_grad()
def test_cached_front_end_equals_the_waveform_path(name):
    model = member(name)
    batch, lengths = speech(model, 0.4)
    direct, frames = model.ctc_logits(batch, lengths)
    conv = model.conv_features(batch, lengths)
    cached, same = model.ctc_logits(conv, model.conv_lengths(lengths))
    assert torch.equal(direct, cached) and torch.equal(frames, same) and model.front_end()
    assert model.frames_of(SimpleNamespace(has_features=True, num_frames=conv.shape[1])) == frames


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_class_logits_equal_plain_transformers_without_padding(name):
    model, hf = member(name, "classify", num_labels=3), plain(name, "classify", num_labels=3)
    batch, lengths = speech(model, 0.4, 0.25)
    found = model.class_logits(batch, lengths)
    for row, inputs, n in zip(found, batch, lengths, strict=True):
        torch.testing.assert_close(row, hf(inputs[None, :n]).logits[0], **CLOSE)


@pytest.mark.parametrize("name", MEMBERS)
def test_training_without_dropout_computes_what_evaluation_does(name):
    """LayerDrop, transformers' SpecAugment and batch statistics are off."""
    model = member(name, layerdrop=0.9, mask_time_prob=0.9, mask_feature_prob=0.9, mask_time_length=2)
    batch, lengths = speech(model, 0.31, 0.5)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    expected = model.ctc_logits(batch, lengths)[0]
    model.train()
    set_dropout(model, 0.0)
    torch.testing.assert_close(model.ctc_logits(batch, lengths)[0], expected, **CLOSE)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_group_matches_in_every_class(name, task):
    model = member(name, task)
    names = set(linears(model.body))
    found = {group: list(dense_layers(model, group)) for group in model.LAYERS}
    blocks = 2 * (2 if model.family == "w2v-bert" else 1)
    assert len(found["ffn"]) == 2 * blocks and len(found["attention"]) == 2 * 4
    assert sorted(found["all"]) == sorted(found["ffn"] + found["attention"]) and set(found["all"]) <= names
    left = {n.rpartition(".")[2] for n in names if ".layers." in n} - {n.rpartition(".")[2] for n in found["all"]}
    assert left == {"mms": {"linear_1", "linear_2"}, "wavlm": {"gru_rel_pos_linear"}}.get(name, set())
    adapted = select(model.body, model.LORA)
    assert len(adapted) == len(found["ffn"]) + 2 * 2
    assert FAMILIES[model.family].front_end == bool(model.front_end())


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_full_rank_factors_give_the_dense_outputs_and_load_bit_for_bit(name, tmp_path):
    dense, low = member(name), factorised(member(name))
    batch, lengths = speech(dense, 0.31, 0.5)
    torch.testing.assert_close(low.ctc_logits(batch, lengths)[0], dense.ctc_logits(batch, lengths)[0], **CLOSE)
    assert low.dense_parameters() == dense.parameters_total() != low.parameters_total()

    small = factorised(member(name), rank=5)
    save_model(small, tmp_path / "model")
    again = load_model(tmp_path / "model")
    state, found = small.state_dict(), again.state_dict()
    assert state.keys() == found.keys() and all(torch.equal(state[k], found[k]) for k in state)
    assert again.plan == small.plan and set(low_rank_layers(again.body)) == set(small.plan)
    assert torch.equal(again.ctc_logits(batch, lengths)[0], small.ctc_logits(batch, lengths)[0])

    classifier, new = to_task(again, "classify", 2, ["a", "b"], seed=1)
    assert new and set(low_rank_layers(classifier.body)) == set(classifier.plan) == set(small.plan)
    assert torch.equal(classifier.states(batch, lengths)[0], small.states(batch, lengths)[0])


@pytest.mark.parametrize("low", [False, True], ids=["dense", "lowrank"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_adapter_trains_and_merging_keeps_the_outputs(name, low):
    model = factorised(member(name), rank=6) if low else member(name)
    batch, lengths = speech(model, 0.31)
    before = model.ctc_logits(batch, lengths)[0].detach()
    targets = (*model.LORA, *model.layer_patterns("attention"))
    peft_model, report = add_lora(model.body, LoraSettings(rank=2, targets=targets))
    assert report["layers"] == len(select(member(name).body, targets)) * (2 if low else 1)
    torch.testing.assert_close(model.ctc_logits(batch, lengths)[0], before, **CLOSE)  # B = 0
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted = model.ctc_logits(batch, lengths)[0]
    adapted.square().sum().backward()
    dead = [n for n, p in model.named_parameters() if "lora_" in n and not p.grad.abs().max() > 0]
    # A constant added to all keys changes no attention weight, but the adapter of the keys is no constant.
    assert dead == []
    assert (adapted - before).abs().max() > 1e-3
    merge(peft_model)
    torch.testing.assert_close(model.ctc_logits(batch, lengths)[0], adapted, **CLOSE)


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_calibration_sees_the_inputs_of_every_layer(name):
    model = member(name)
    moments = Moments(dense_layers(model, "all"))
    batch, lengths = speech(model, 0.31)
    with moments.hooked():
        frames = model.states(batch, lengths)[1].item()
    assert set(moments.count.values()) == {frames}


@pytest.mark.parametrize("name", MEMBERS)
@torch.no_grad()
def test_a_folder_is_bit_exact_and_plain_transformers_reads_it(name, tmp_path):
    model = member(name)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    state, found = model.state_dict(), again.state_dict()
    assert state.keys() == found.keys() and all(torch.equal(state[k], found[k]) for k in state)
    read, info = type(plain(name)).from_pretrained(tmp_path / "model", dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch, lengths = speech(model, 0.31)
    torch.testing.assert_close(read(batch).logits, model.ctc_logits(batch, lengths)[0], **CLOSE)
    assert again.parameters_total() == model.parameters_total() == again.dense_parameters()


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_another_task_keeps_the_body_and_draws_the_head_from_the_seed(name):
    base = member(name)
    one, new = to_task(base, "classify", 3, ["a", "b", "c"], seed=1)
    two, _ = to_task(base, "classify", 3, ["a", "b", "c"], seed=1)
    other, _ = to_task(base, "classify", 3, ["a", "b", "c"], seed=2)
    assert new and torch.equal(one.head.classifier.weight, two.head.classifier.weight)
    assert not torch.equal(one.head.classifier.weight, other.head.classifier.weight)
    batch, lengths = speech(base, 0.3)
    assert torch.equal(one.states(batch, lengths)[0], base.states(batch, lengths)[0])
    assert all(torch.equal(v, body_state(base)[0][k]) for k, v in body_state(one)[0].items())
    kept, new = to_task(base, "ctc", 12, lang_sha256=None)
    assert kept is base and not new
    fresh, new = to_task(base, "ctc", 12, lang_sha256="other", seed=0)
    assert new and not torch.equal(fresh.head.linear.weight, base.head.linear.weight)
    with pytest.raises(UserError, match="cannot be turned into seq2seq"):
        to_task(base, "seq2seq", None)


@pytest.mark.parametrize("name", ["wav2vec2-adapter", "w2v-bert-adapter"])
def test_classification_on_a_convolutional_adapter_is_refused(name):
    with pytest.raises(UserError, match="has a convolutional adapter"):
        to_task(member(name), "classify", 2, ["a", "b"])


@pytest.mark.parametrize(
    ("name", "task"),
    [(n, t) for n in MEMBERS for t in ("ctc", "classify", "body") if t != "classify" or n in CLASSIFIERS],
)
@torch.no_grad()
def test_import_of_a_published_layout(name, task, tmp_path):
    hf = plain(name, task, quiet=False)
    hf.save_pretrained(tmp_path / "hub")
    expected = member(name, "ctc" if task == "ctc" else "body")
    model = import_model(resolve(str(tmp_path / "hub"), None), expected.family)
    # The labels of a published classifier are not ours: the encoder alone is taken.
    assert model.task == ("ctc" if task == "ctc" else "body")
    batch, lengths = speech(model, 0.31)
    state = hf.base_model.state_dict() if task != "body" else hf.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in body_state(model)[0].items())
    found = hf.base_model(batch).last_hidden_state if task != "body" else hf(batch).last_hidden_state
    torch.testing.assert_close(model.states(batch, lengths)[0], found, **CLOSE)
    wrong = "whisper" if model.family == "wav2vec2" else "wav2vec2"
    with pytest.raises(UserError, match=f"says family: {wrong}; set family: {model.family}"):
        import_model(Source(tmp_path / "hub", None), wrong)


def test_import_of_a_pretraining_checkpoint_takes_the_encoder(tmp_path):
    config = transformers.Wav2Vec2Config(**MEMBERS["wav2vec2"][1], num_codevectors_per_group=4, codevector_dim=8)
    hf = transformers.Wav2Vec2ForPreTraining(config)
    hf.save_pretrained(tmp_path)
    model = import_model(Source(tmp_path, None), "wav2vec2")
    assert model.task == "body"
    assert all(torch.equal(v, hf.wav2vec2.state_dict()[k]) for k, v in model.hf.state_dict().items())


@pytest.mark.parametrize("name", ["wav2vec2", "hubert", "wavlm"])
@torch.no_grad()
def test_import_of_an_old_checkpoint(name, tmp_path):
    """As those of 2021 lie on the hub: a pickle, with the former names of the weight norm, and no masked_spec_embed."""
    hf = plain(name, "body", quiet=False)
    hf.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {k: v for k, v in hf.state_dict().items() if k != "masked_spec_embed"}
    for new, former in old.items():
        state = {k.replace(new, former): v for k, v in state.items()}
    assert any(k.endswith("pos_conv_embed.conv.weight_g") for k in state)
    torch.save(state, tmp_path / "pytorch_model.bin")
    model = import_model(Source(tmp_path, None), "wav2vec2")
    batch, lengths = speech(model, 0.31)
    torch.testing.assert_close(model.states(batch, lengths)[0], hf(batch).last_hidden_state, **CLOSE)
    torch.manual_seed(5)  # what ran before must not matter
    again = import_model(Source(tmp_path, None), "wav2vec2").hf.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in model.hf.state_dict().items())


def test_import_says_what_becomes_of_language_adapters(tmp_path, caplog):
    plain("mms", quiet=False).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = import_model(Source(tmp_path, None), "wav2vec2")
    assert "language adapters" in caplog.text
    names = [n for n, _ in model.named_parameters() if fnmatchcase(n, "*.layers.1.adapter_layer.linear_1.weight")]
    assert len(names) == 1


def test_what_cannot_be_imported(tmp_path):
    plain("w2v-bert", quiet=False, position_embeddings_type="rotary").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="position_embeddings_type 'rotary' is not supported"):
        import_model(Source(tmp_path, None), "w2v-bert")
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"model_type": "unispeech"}))
    with pytest.raises(UserError, match="is 'unispeech'; expected one of: data2vec-audio, hubert, wav2vec2, wav2v"):
        import_model(Source(tmp_path, None), "wav2vec2")


def test_every_class_exists():
    for family, row in FAMILIES.items():
        cls = family_class(family)
        assert family == cls.FAMILY
        for model_type in row.model_types:
            config = transformers.AutoConfig.for_model(model_type)
            assert all(hasattr(transformers, cls.published(config, task)) for task in cls.TASKS)
