"""The stages calibrate and factorise on small models of both families."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from safetensors.torch import load_file
from transformers import (
    GenerationConfig,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from lowrank_speech.lowrank.factorise import factorise
from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.lowrank.moments import MomentsFile
from lowrank_speech.lowrank.structure import densify, low_rank_layers
from lowrank_speech.models.build import quiet_config, wrap
from lowrank_speech.models.counting import count
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.speech import Meta
from lowrank_speech.models.tasks import to_task
from lowrank_speech.stages import calibrate
from lowrank_speech.stages import factorise as stage

SECONDS = (0.9, 0.5, 0.7, 0.3)


def wav2vec2():
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16, 16),
        conv_kernel=(10, 8),
        conv_stride=(10, 8),
        num_feat_extract_layers=2,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
        vocab_size=12,
        pad_token_id=0,
    )
    return wrap(Wav2Vec2ForCTC(quiet_config(config)).eval(), Meta("wav2vec2", "ctc"))


def whisper():
    torch.manual_seed(0)
    special = {"pad_token_id": 30, "bos_token_id": 30, "eos_token_id": 30, "decoder_start_token_id": 31}
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=20,
        max_source_positions=50,
        max_target_positions=24,
        vocab_size=40,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **special,
    )
    hf = WhisperForConditionalGeneration(quiet_config(config)).eval()
    hf.generation_config = GenerationConfig(
        **special,
        is_multilingual=True,
        lang_to_id={"<|en|>": 32, "<|de|>": 33},
        task_to_id={"transcribe": 34},
        no_timestamps_token_id=35,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        max_length=24,
    )
    return wrap(hf, Meta("whisper", "seq2seq", lang_sha256="0" * 64))  # as of a base from scratch


MODELS = {"wav2vec2": wav2vec2, "whisper": whisper}


def outputs(model):
    """Logits of ``model`` on fixed inputs."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        if model.family == "wav2vec2":
            wave = torch.randn(2, 8000, generator=generator)
            return model.ctc_logits(wave, torch.tensor([8000, 6000]))[0]
        mel = torch.randn(2, 90, 20, generator=generator)
        tokens = torch.tensor([[31, 32, 34, 35, 7], [31, 33, 34, 35, 9]])
        return model.seq2seq_logits(mel, torch.tensor([90, 70]), tokens)[0]


@pytest.fixture(params=MODELS)
def folder(request, tmp_path):
    """A model folder with a file that came with the base."""
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "preprocessor_config.json").write_text('{"do_normalize": true}')
    save_model(MODELS[request.param](), tmp_path / "base", copy_from=extra)
    return tmp_path / "base"


@pytest.fixture
def cuts(tmp_path):
    """Four utterances of noise with a bit of melody."""
    made = []
    rng = np.random.default_rng(1)
    for i, seconds in enumerate(SECONDS):
        time = np.arange(int(16_000 * seconds)) / 16_000
        wave = 0.1 * np.sin(2 * np.pi * 200 * (i + 1) * time) + 0.05 * rng.standard_normal(len(time))
        soundfile.write(tmp_path / f"u{i}.wav", wave.astype(np.float32), 16_000)
        recording = Recording.from_file(tmp_path / f"u{i}.wav")
        supervision = SupervisionSegment(f"u{i}", recording.id, 0.0, recording.duration, text="x", language="en")
        made.append(MonoCut(f"u{i}", 0.0, recording.duration, 0, [supervision], recording=recording))
    CutSet.from_cuts(made).to_file(tmp_path / "cuts.jsonl.gz")
    return tmp_path / "cuts.jsonl.gz"


def run(program, cfg, out, **paths):
    arguments = ["--cfg", json.dumps(cfg), "--out", str(out), "--manifest", str(out.parent / f"{out.stem}.json")]
    for name, path in paths.items():
        arguments += [f"--{name}", str(path)]
    code = program.main(arguments)
    return code, json.loads((out.parent / f"{out.stem}.json").read_text()) if code == 0 else None


def test_full_rank_reproduces_the_dense_outputs(folder):
    model = load_model(folder)
    expected = outputs(model)
    names = [n for n, m in model.body.named_modules() if isinstance(m, torch.nn.Linear) and ".layers." in n]
    plan = {n: min(model.body.get_submodule(n).weight.shape) for n in names}
    assert len(plan) > 10
    factorise(model.body, plan)
    assert all(isinstance(model.body.get_submodule(n), LowRankLinear) for n in plan)
    torch.testing.assert_close(outputs(model), expected, atol=2e-5, rtol=1e-4)
    densify(model.body)
    torch.testing.assert_close(outputs(model), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("wish", [{"rank": 8}, {"reduction": 0.1}, {"energy": 0.7}, {"keep": 0.5, "allocate": True}])
def test_stage_writes_a_folder_that_loads_bit_for_bit(folder, cuts, tmp_path, wish):
    cfg = {"seed": 1, "factorise": {"layers": "all", **wish}, "trial": {"utterances": 2}}
    speech = {"cuts": cuts} if "allocate" in wish else {}
    code, manifest = run(stage, cfg, tmp_path / "low", model=folder, **speech)
    assert code == 0
    numbers, dense, low = manifest["metrics"], load_model(folder), load_model(tmp_path / "low")
    plan = {row["name"]: row["rank"] for row in numbers["layers"]}
    assert low.plan == plan == {name: m.rank for name, m in low_rank_layers(low.body).items()}
    assert numbers["parameters_before"] == dense.parameters_total() == low.dense_parameters()
    assert numbers["parameters_after"] == low.parameters_total()
    assert count(model=str(tmp_path / "low"))["total_after"] == low.parameters_total()
    assert numbers["reduction"] > 0.05
    assert (tmp_path / "low" / "preprocessor_config.json").read_text() == '{"do_normalize": true}'
    if "reduction" in wish:
        assert 0 <= numbers["reduction"] - 0.1 < 0.01

    factorise(dense.body, plan)
    assert torch.equal(outputs(dense), outputs(low))
    save_model(low, tmp_path / "again", copy_from=tmp_path / "low")
    again = load_model(tmp_path / "again")
    for (name, a), (other, b) in zip(low.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other and torch.equal(a, b)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "low" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    for name in plan:
        first = low.body.get_submodule(name).first.weight
        torch.testing.assert_close(first @ first.T, torch.eye(len(first)), atol=1e-5, rtol=0)


def test_factors_follow_the_body_into_another_task(folder, tmp_path):
    run(stage, {"seed": 1, "factorise": {"layers": "ffn", "rank": 8}}, tmp_path / "low", model=folder)
    low = load_model(tmp_path / "low")
    classifier, _ = to_task(low, "classify", 3, ["a", "b", "c"])
    assert low_rank_layers(classifier.body) and set(classifier.plan) == set(low_rank_layers(classifier.body))


@pytest.mark.parametrize("init", ["svd", "random"])
def test_equal_runs_write_equal_bytes(folder, tmp_path, init):
    hashes = []
    for name in "ab":
        cfg = {"seed": 3, "factorise": {"layers": "ffn", "rank": 4, "init": init}}
        _, manifest = run(stage, cfg, tmp_path / name / "model", model=folder)
        hashes.append(list(manifest["outputs"].values()))
    assert hashes[0] == hashes[1]


def test_calibrate_then_activation_aware(folder, cuts, tmp_path):
    cfg = {"seed": 1, "layers": "all", "utterances": 3}
    code, manifest = run(calibrate, cfg, tmp_path / "moments.safetensors", model=folder, cuts=cuts)
    assert code == 0
    assert len(manifest["metrics"]["utterances"]) == 3 and not manifest["metrics"]["set_aside"]
    moments = MomentsFile(tmp_path / "moments.safetensors")
    wish = {"layers": "all", "rank": 6}
    errors = {}
    for init in ("svd", "activation"):
        cfg = {"seed": 1, "factorise": {**wish, "init": init}}
        code, found = run(stage, cfg, tmp_path / init, model=folder, moments=tmp_path / "moments.safetensors")
        assert code == 0
        errors[init] = {row["name"]: row["output_error"] for row in found["metrics"]["layers"]}
    assert set(errors["svd"]) == set(moments)
    for name, error in errors["svd"].items():
        assert errors["activation"][name] <= error * (1 + 1e-6)
    assert sum(errors["activation"].values()) < 0.8 * sum(errors["svd"].values())


def test_calibration_sees_the_utterances_and_no_padding(folder, cuts, tmp_path):
    cfg = {"seed": 1, "layers": "all", "utterances": 4}
    _, manifest = run(calibrate, cfg, tmp_path / "moments.safetensors", model=folder, cuts=cuts)
    model, used = load_model(folder), CutSet.from_file(cuts)
    expected = sum(model.frames_of(cut) for cut in used)
    frames = manifest["metrics"]["frames"]
    encoder = {n for name, n in frames.items() if "decoder" not in name or "encoder_attn.k" in name}
    assert encoder == {expected}
    decoder = {
        n for name, n in frames.items() if "decoder" in name and "encoder_attn.k" not in name and "_attn.v" not in name
    }
    assert all(4 <= n / 4 < 24 for n in decoder)


def test_the_draw_follows_the_seed_and_not_the_order_in_the_file(folder, cuts, tmp_path):
    def draw(seed, path):
        cfg = {"seed": seed, "utterances": 2}
        _, manifest = run(calibrate, cfg, tmp_path / "m.safetensors", model=folder, cuts=path)
        return manifest["metrics"]["utterances"]

    CutSet.from_cuts(reversed(list(CutSet.from_file(cuts)))).to_file(tmp_path / "turned.jsonl.gz")
    first = draw(1, cuts)
    assert first == draw(1, tmp_path / "turned.jsonl.gz")
    assert any(draw(seed, cuts) != first for seed in (2, 3, 4))


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "exactly one of rank, fraction, keep, energy, reduction; given: none"),
        ({"rank": 4, "keep": 0.5}, "given: rank, keep"),
        ({"rank": 999}, "rank 999 is above the full rank 32 of the layer"),
        ({"rank": 31}, "layers would stay dense; set a lower rank"),
        ({"rank": 4, "layers": ["*fc9"]}, "'*fc9' matches no linear layer"),
        ({"rank": 4, "layers": "fnn"}, "'fnn'; expected ffn, attention, all"),
        ({"reduction": 0.99}, "out of reach"),
        ({"rank": 4, "init": "activation"}, "needs --moments"),
        ({"rank": 4, "innit": "svd"}, "unknown key 'innit'"),
        ({"energy": 0.5, "allocate": True}, "cannot be combined with allocate"),
    ],
)
def test_errors_are_one_line(folder, tmp_path, capsys, wish, message):
    code, _ = run(stage, {"seed": 1, "factorise": wish}, tmp_path / "low", model=folder)
    assert code == 2 and not (tmp_path / "low").exists()
    shown = capsys.readouterr().err.strip().splitlines()
    assert message in shown[-1] and "Traceback" not in "".join(shown)


def test_what_is_factorised_already_and_what_is_no_moments_file(folder, cuts, tmp_path, capsys):
    cfg = {"seed": 1, "factorise": {"rank": 4}}
    run(stage, cfg, tmp_path / "low", model=folder)
    assert run(stage, cfg, tmp_path / "twice", model=tmp_path / "low")[0] == 2
    assert "is already factorised" in capsys.readouterr().err
    assert run(calibrate, {"seed": 1}, tmp_path / "m.safetensors", model=tmp_path / "low", cuts=cuts)[0] == 2
    assert "is already factorised" in capsys.readouterr().err
    shutil.copy(cuts, tmp_path / "bad.safetensors")
    assert run(stage, cfg, tmp_path / "x", model=folder, moments=tmp_path / "bad.safetensors")[0] == 2
    assert "not a safetensors file" in capsys.readouterr().err


def test_too_short_and_too_long_utterances_are_listed(folder, tmp_path, cuts):
    made = list(CutSet.from_file(cuts))
    made[1] = made[1].truncate(duration=0.0004, preserve_id=True)
    made[2] = made[2].pad(duration=1.5, preserve_id=True)  # the Whisper here sees one second
    CutSet.from_cuts(made).to_file(tmp_path / "some.jsonl.gz")
    _, manifest = run(calibrate, {"seed": 1}, tmp_path / "m.safetensors", model=folder, cuts=tmp_path / "some.jsonl.gz")
    numbers = manifest["metrics"]
    if load_model(folder).family == "wav2vec2":
        assert numbers["set_aside"] == [["u1", "shorter than one frame", "0.000 s"]]
    else:
        assert [row[:2] for row in numbers["set_aside"]] == [["u2", "longer than the model's window"]]
    assert len(numbers["utterances"]) == 3
    with_one_second = {"seed": 1, "segment": {"seconds": 0.9}}
    _, manifest = run(
        calibrate, with_one_second, tmp_path / "m.safetensors", model=folder, cuts=tmp_path / "some.jsonl.gz"
    )
    assert "u2" in manifest["metrics"]["utterances"]


def test_weights_are_stored_as_factors(folder, tmp_path):
    run(stage, {"seed": 1, "factorise": {"layers": "ffn", "rank": 4}}, tmp_path / "low", model=folder)
    state = load_file(tmp_path / "low" / "model.safetensors")
    plan = json.loads((tmp_path / "low" / "config.json").read_text())["lowrank_speech"]["plan"]
    prefix = load_model(folder).body_prefix
    for layer, rank in plan.items():
        name = f"{prefix}{layer}"
        assert state[f"{name}.first.weight"].shape[0] == rank == state[f"{name}.second.weight"].shape[1]
        assert f"{name}.weight" not in state and f"{name}.first.bias" not in state and f"{name}.second.bias" in state
