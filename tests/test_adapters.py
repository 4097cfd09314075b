"""A system's adapter/, loaded with plain peft on the transformers class, gives the system's outputs, with its head."""

import json
import re

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from lowrank_speech.lang.load import Lang
from lowrank_speech.lowrank.structure import low_rank_layers
from lowrank_speech.models.folder import load_model
from lowrank_speech.models.text import decoder_tokens
from lowrank_speech.stages import factorise, train
from stage_world import done, train_cfg, train_paths

CASES = [("wav2vec2", "asr"), ("wav2vec2", "lid"), ("whisper", "asr"), ("whisper", "lid")]
HEADS = {("wav2vec2", "asr"): ["lm_head"], ("wav2vec2", "lid"): ["classifier", "projector"]}
HEADS |= {("whisper", "asr"): None, ("whisper", "lid"): ["classifier", "projector"]}


def trained(world, family, task, folder, lora=None, **paths):
    cfg = train_cfg(task, "lora", lora={"rank": 2} | (lora or {}), training={"head_lr": 0.05, "lr": 0.01})
    done(train, cfg, folder / "train.json", **train_paths(world, family, folder, task, **paths))
    return load_model(folder / "model")


def loaded(base, folder):
    """The base with the adapter: what the README's lines make."""
    (code,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names = {"BASE": str(base), "ADAPTER": str(folder)}
    exec(code, names)
    assert isinstance(names["model"], PeftModel)
    return names["model"]


VARIANTS = [(*case, {}) for case in CASES]
VARIANTS += [("wav2vec2", "asr", lora) for lora in ({"init": "pissa"}, {"dora": True}, {"rslora": True})]
VARIANTS += [(*case, {"low": True}) for case in CASES] + [("wav2vec2", "asr", {"low": True, "where": "product"})]


@pytest.mark.parametrize(("family", "task", "lora"), VARIANTS, ids=str)
def test_plain_peft_gives_the_systems_outputs(family, task, lora, world, tmp_path):
    lora, base = dict(lora), world.base[family]
    if lora.pop("low", None):
        wish = {"seed": 1, "factorise": {"layers": "all", "rank": 6}}
        done(factorise, wish, tmp_path / "f.json", model=base, out=tmp_path / "low")
        base = tmp_path / "low"
    model = trained(world, family, task, tmp_path, lora, model=base)
    plain = loaded(base, tmp_path / "adapter")
    assert bool(low_rank_layers(plain)) == bool(model.plan) == (base != world.base[family])
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == HEADS[family, task] and str(tmp_path) not in json.dumps(config)
    generator = torch.Generator().manual_seed(1)
    if family == "wav2vec2":
        wave = torch.randn(1, 6_000, generator=generator)
        found, length = plain(wave).logits, torch.tensor([6_000])
        expected = model.ctc_logits(wave, length)[0] if task == "asr" else model.class_logits(wave, length)
    else:
        mel, length = torch.randn(1, 70, 12, generator=generator), torch.tensor([70])
        padded = model.pad_mel(mel, length)
        if task == "asr":
            tokens = decoder_tokens(model, tmp_path, Lang.load(world.lang["whisper"]))
            prompt = torch.tensor([tokens.prompt("de")])
            found, expected = (
                plain(padded, decoder_input_ids=prompt).logits,
                model.seq2seq_logits(mel, length, prompt)[0],
            )
        else:  # transformers' own class pools over the padding too; the README says so
            assert "over the whole window, padding included" in (tmp_path / "adapter" / "README.md").read_text()
            states, frames = model.states(mel, length)
            whole = torch.full_like(frames, states.shape[1])
            found, expected = plain(padded).logits, model.head_logits(states, whole)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # The adapter did learn something, and so did the head.
    without = getattr(transformers, model.architecture).from_pretrained(tmp_path / "model")
    state = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert max(v.abs().max() for k, v in state.items() if "lora_B" in k) > 1e-3
    for head in HEADS[family, task] or ():
        assert torch.equal(state[f"base_model.model.{head}.weight"], without.get_submodule(head).weight)


def test_equal_trainings_write_equal_adapters(world, tmp_path):
    for name in "ab":
        trained(world, "wav2vec2", "asr", tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        assert (tmp_path / "a" / "adapter" / file).read_bytes() == (tmp_path / "b" / "adapter" / file).read_bytes()


def test_an_adapter_on_products_is_refused_without_its_layer(world, tmp_path):
    wish = {"seed": 1, "factorise": {"layers": "ffn", "rank": 6}}
    done(factorise, wish, tmp_path / "f.json", model=world.base["wav2vec2"], out=tmp_path / "low")
    model = trained(world, "wav2vec2", "asr", tmp_path, {"where": "product"}, model=tmp_path / "low")
    base = transformers.Wav2Vec2ForCTC.from_pretrained(
        tmp_path / "low", vocab_size=model.config.vocab_size, ignore_mismatched_sizes=True
    )
    with pytest.raises(ValueError, match="LowRankLinear"):
        PeftModel.from_pretrained(base, tmp_path / "adapter")
