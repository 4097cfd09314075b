"""Static lengths for torch.compile: their values, unchanged results, and few graphs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets

from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.memory.layers import as_before, bucket_bounds, compile_layers, length_buckets
from tiny_models import member, speech
from tiny_training import drawn_cuts, drawn_trainer, low_rank

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.mark.parametrize("number", [2, 3, 7, 50, 333])
def test_bounds_of_buckets_are_those_that_lhotse_estimates(number):
    for durations in (np.random.default_rng(number).lognormal(1.0, 0.5, number), np.full(number, 2.0)):
        cuts, buckets = [SimpleNamespace(duration=float(s)) for s in durations], min(10, max(2, number // 20))
        assert bucket_bounds(durations, buckets) == estimate_duration_buckets(cuts, buckets)


def test_buckets_share_the_speech_and_hold_the_longest():
    seconds = np.array([1.0] * 8 + [2.0] * 4 + [4.0] * 2)  # 8 s of each length
    assert length_buckets(seconds, 3, 50) == (51, 101, 201)
    assert length_buckets(seconds, 1, 50) == (201,)
    assert length_buckets(np.array([3.0]), 8, 50) == (151,)
    assert length_buckets(np.array([2.0, 2.0, 2.01]), 8, 50) == (101, 102)


@pytest.mark.parametrize("name", ["wav2vec2", "wav2vec2-adapter", "wav2vec2-group", "hubert", "wavlm", "w2v-bert"])
def test_padding_to_a_bucket_changes_no_state(name):
    model = member(name, layerdrop=0.0, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    model = model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch, lengths = speech(model, 0.31, 0.5, 0.2)
    expected, frames = model.states(batch, lengths)
    model.buckets = (3, 150, 400)
    found, same = model.states(batch, lengths)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert torch.equal(frames, same) and model.frame_rate in (50, 200)


def run(tmp_path, monkeypatch, task="ctc", **keys):
    """The history of a short training, the lengths that were compiled, and the lengths of its batches."""
    compiled, met = [], set()

    def backend(graph, example):
        # In one of a free size, that is a SymInt.
        compiled.extend(t.shape[1] for t in example if isinstance(t, torch.Tensor) and t.dim() == 3)
        return graph.forward

    monkeypatch.setattr(
        "lowrank_speech.training.loop.compile_layers", lambda model, static: compile_layers(model, static, backend)
    )
    torch._dynamo.reset()
    config = TrainConfig(epochs=2, batch_seconds=1.0, dropout=0.0, **keys)
    trainer = drawn_trainer(task, tmp_path / str(len(keys)), config, low_rank)
    layer = trainer.model.body.encoder.layers[0]
    layer.register_forward_pre_hook(lambda m, args: met.add((m.training, args[0].shape[1])))
    trainer.run(drawn_cuts(), drawn_cuts(), tmp_path / "metrics.jsonl")
    assert trainer.model.buckets == () and layer._compiled_call_impl is None
    return trainer.state.history, compiled, met


@pytest.mark.parametrize("keys", [{}, {"gradient_checkpointing": True}, {"precision": "bf16"}])
def test_a_training_meets_its_buckets_alone_and_learns_the_same(keys, tmp_path, monkeypatch):
    history, none, lengths = run(tmp_path, monkeypatch, **keys)
    same, compiled, padded = run(tmp_path, monkeypatch, compile=True, compile_buckets=2, **keys)
    for one, other in zip(history, same, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02 if keys.get("precision") else 1e-3)
    assert not none and len({n for training, n in lengths if training}) > 2
    assert len({n for training, n in padded if training}) <= 2
    assert compiled and all(type(n) is int for n in compiled)
    assert set(compiled) == {n for training, n in padded if training}
    assert len(compiled) <= 8  # again for a batch of one utterance, and for another mode


def test_whispers_encoder_has_one_length_already(tmp_path, monkeypatch):
    history, _, _ = run(tmp_path, monkeypatch, "seq2seq")
    same, compiled, padded = run(tmp_path, monkeypatch, "seq2seq", compile=True, compile_buckets=8)
    assert [row["loss"] for row in same] == pytest.approx([row["loss"] for row in history], rel=1e-3)
    assert len(padded) == 2 and sum(n in {m for _, m in padded} for n in compiled if type(n) is int) > 0


def test_what_a_bucket_is_for_must_be_compiled():
    with pytest.raises(ValueError, match="compile_buckets needs compile: true; set it"):
        TrainConfig(compile_buckets=4)
    with pytest.raises(ValueError, match="compile_buckets is 0; it must be at least 1"):
        TrainConfig(compile=True, compile_buckets=0)


def test_as_before_takes_the_buckets_away():
    model = member("wav2vec2")
    model.buckets = (5,)
    as_before(model)
    assert model.buckets == ()
