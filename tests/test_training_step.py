"""One training step: accumulation, precision, frozen weights, checkpointing, compilation, state."""

import dataclasses
import math
import shutil
import sys
from functools import partial

import pytest
import torch
from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.lora import frozen_digest, merge
from lowrank_speech.lowrank.structure import low_rank_layers
from lowrank_speech.models.dropout import set_dropout
from lowrank_speech.training.config import FactorSgd, SpecAugment, TrainConfig
from lowrank_speech.training.memory.bytes import SavedTensors, byte_counts
from lowrank_speech.training.memory.layers import as_before, checkpoint_layers, compile_layers
from lowrank_speech.training.memory.precision import FrozenWeights, autocast, check
from tiny_models import MEMBERS, member, speech
from tiny_training import (
    drawn_cuts,
    drawn_trainer,
    full,
    lora,
    low_rank,
    low_rank_lora,
    measured,
    objective_of,
    setup_of,
    trained,
    weights,
)

CPU = torch.device("cpu")
PREPARED = {"full": full, "low-rank": low_rank, "lora": lora, "low-rank lora": low_rank_lora}


def batches_of(trainer, *sizes):
    """Batches of the first cuts, of these sizes."""
    cuts = list(drawn_cuts())
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [trainer.loader.collate(cuts[end - n : end]) for n, end in zip(sizes, ends, strict=True)]


def gradients(trainer, batches, monkeypatch):
    """The gradients of one update, as the optimiser gets them, and what the update reports."""
    found = {}

    def step(self, *_, **__):
        found.update({id(p): p.grad.clone() for p in trainer.stepper.parameters if p.grad is not None})

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        done = trainer.stepper.step(batches, 10)
    named = [*trainer.model.named_parameters(), *trainer.objective.named_parameters()]
    return {name: found[id(p)] for name, p in named if id(p) in found}, done


def assert_close(left, right, **tolerance):
    assert left.keys() == right.keys() and left
    for name in left:
        torch.testing.assert_close(left[name], right[name], msg=lambda m, name=name: f"{name}: {m}", **tolerance)


# --- accumulation


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("ctc", {}),
        ("ctc", {"language_weight": 0.5}),
        ("classify", {"label_smoothing": 0.1}),
        ("seq2seq", {"label_smoothing": 0.1}),
        ("seq2seq", {"ctc_weight": 0.5, "language_weight": 2.0}),
    ],
)
def test_small_batches_give_the_gradient_of_the_large_one(task, keys, tmp_path, monkeypatch):
    trainer = drawn_trainer(task, tmp_path, TrainConfig(accumulate=3, clip=1e9, **keys))
    small, one = gradients(trainer, batches_of(trainer, 5, 1, 2), monkeypatch)
    large, other = gradients(trainer, batches_of(trainer, 8), monkeypatch)
    assert_close(small, large, atol=1e-6, rtol=1e-4)
    assert (one.units, one.impossible) == (other.units, other.impossible)
    assert one.task_sum == pytest.approx(other.task_sum, rel=1e-5)
    alone, _ = gradients(trainer, batches_of(trainer, 5), monkeypatch)
    # The comparison above would see it if a batch were missing.
    assert max((alone[n] - large[n]).abs().max() for n in large) > 1e-3


def test_a_batch_of_empty_targets_counts_as_much_as_in_a_large_one(tmp_path, monkeypatch):
    trainer = drawn_trainer("ctc", tmp_path, TrainConfig(accumulate=2, clip=1e9))
    for cut in (cuts := list(drawn_cuts()))[2:4]:
        cut.custom["targets"]["ctc"] = []
    small, one = gradients(trainer, [trainer.loader.collate(cuts[:2]), trainer.loader.collate(cuts[2:4])], monkeypatch)
    large, other = gradients(trainer, [trainer.loader.collate(cuts[:4])], monkeypatch)
    assert_close(small, large, atol=1e-6, rtol=1e-4)
    assert one.task_sum == pytest.approx(other.task_sum, rel=1e-5) and one.units == other.units


@pytest.mark.parametrize("name", MEMBERS)
def test_languages_can_be_learnt_beside_recognition_on_every_member(name):
    model, lang = member(name), setup_of("ctc")[1]
    objective = objective_of("ctc", TrainConfig(language_weight=0.5), lang).build(model)
    features, lengths = speech(model, 1.0, 0.7)
    found = objective(model, features, lengths, list(drawn_cuts())[:2])
    assert len(found.terms) == 2 and torch.isfinite(found.total)


def test_units_are_those_of_the_losses(tmp_path):
    for task, keys in (("ctc", {}), ("seq2seq", {"ctc_weight": 1.0, "language_weight": 1.0}), ("classify", {})):
        trainer = drawn_trainer(task, tmp_path, TrainConfig(**keys))
        for batch in batches_of(trainer, 3, 4):
            found = trainer.stepper.losses(batch)
            assert [n for _, _, n in found.terms] == trainer.objective.units(trainer.model, batch)
            assert len(found.terms) == len(trainer.objective.losses)
            torch.testing.assert_close(sum(w * mean for w, mean, _ in found.terms), found.total)


def test_an_epoch_has_an_update_for_each_group_of_batches(tmp_path):
    cuts = drawn_cuts()
    trainer = drawn_trainer("classify", tmp_path, TrainConfig(epochs=2, batch_seconds=0.1, accumulate=3))
    numbers = measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")
    assert numbers["steps"] == 2 * math.ceil(len(cuts) / 3)  # a cut is a batch


# --- steps that are skipped


@pytest.mark.parametrize("patience", [0, 3])
def test_a_gradient_that_is_not_finite_changes_nothing(patience, tmp_path):
    trainer = drawn_trainer("ctc", tmp_path, TrainConfig(accumulate=2, bad_patience=patience), low_rank)
    head = trainer.model.head.linear.weight
    handle = head.register_hook(lambda g: g * math.nan)
    before = weights(trainer)
    for _ in range(patience):
        assert trainer.stepper.step(batches_of(trainer, 3, 3), 100) is None
    with pytest.raises(UserError, match=f"the gradient's norm was not finite in {patience + 1} steps in a row"):
        trainer.stepper.step(batches_of(trainer, 3, 3), 100)
    assert all(torch.equal(before[name], p) for name, p in weights(trainer).items())
    assert all(p.grad is None for p in trainer.stepper.parameters) and not trainer.stepper.optimiser.state
    handle.remove()
    trainer.stepper.bad_steps = 0
    assert trainer.stepper.step(batches_of(trainer, 3, 3), 100).units > 0


# --- masks


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("task", ["ctc", "classify"])
def test_masks_are_laid_on_what_the_front_end_makes_of_waveforms(task, precision, tmp_path):
    masks = SpecAugment(time_share=0.5, feature_width=4)
    trainer = drawn_trainer(task, tmp_path, TrainConfig(spec_augment=masks, precision=precision))
    stepper, batch = trainer.stepper, batches_of(trainer, 4)[0]
    trainer.model.train()
    with torch.no_grad(), autocast(precision, CPU):
        features = trainer.model.conv_features(batch["features"], batch["lengths"])
    frames = trainer.model.conv_lengths(batch["lengths"])
    for row, length in zip(features, frames.tolist(), strict=True):
        row[length:] = 0  # as stored features are padded
    stored = {"cuts": batch["cuts"], "features": features, "lengths": frames}

    def loss(given, seed):
        stepper.generator.manual_seed(seed)
        return stepper.losses(given).total

    for seed in range(3):
        torch.testing.assert_close(loss(batch, seed), loss(stored, seed), rtol=1e-5, atol=1e-6)
    trainer.model.eval()  # where nothing is masked
    plain = loss(batch, 0)
    torch.testing.assert_close(plain, loss(stored, 0), rtol=1e-5, atol=1e-6)
    trainer.model.train()
    assert all(abs(loss(batch, seed) - plain) > 1e-4 for seed in range(3))
    assert loss(batch, 0) != loss(batch, 1)
    loss(batch, 0).backward()
    assert all(p.grad is None for p in trainer.model.front_end())


def test_a_front_end_that_trains_learns_through_the_masks(tmp_path):
    trainer = drawn_trainer("ctc", tmp_path, TrainConfig(spec_augment=SpecAugment()))
    for p in trainer.model.front_end():
        p.requires_grad_(True)
    trainer.stepper.losses(batches_of(trainer, 4)[0]).total.backward()
    assert all(p.grad.abs().max() > 0 for p in trainer.model.front_end())


# --- gradient checkpointing


@pytest.mark.parametrize("name", MEMBERS)
def test_checkpointing_changes_no_loss_and_no_gradient_of_any_member(name):
    model = member(name)
    lora(model)
    inputs = speech(model, 1.0, 0.7)
    compare_checkpointing(model, lambda: model.ctc_logits(*inputs)[0].square().mean())


@pytest.mark.parametrize("prepared", PREPARED)
@pytest.mark.parametrize("task", ["ctc", "seq2seq"])
def test_checkpointing_changes_no_loss_and_no_gradient_of_any_adaptation(task, prepared, tmp_path):
    trainer = drawn_trainer(task, tmp_path, TrainConfig(), PREPARED[prepared])
    batch = batches_of(trainer, 4)[0]
    compare_checkpointing(trainer.model, lambda: trainer.stepper.losses(batch).total)


def compare_checkpointing(model, loss):
    set_dropout(model, 0.2)  # what is computed again must drop out the same
    model.train()

    def measured():
        torch.manual_seed(8)
        with SavedTensors(model.parameters()) as kept:
            total = loss()
        total.backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return total.item(), found, kept.bytes

    plain = measured()
    checkpoint_layers(model)
    saving = measured()
    as_before(model)
    again = measured()
    assert plain[0] == saving[0] and plain[2] == again[2]
    assert_close(plain[1], saving[1], atol=1e-7, rtol=1e-5)
    assert saving[2] < plain[2] / 2


# --- frozen weights


@pytest.mark.parametrize("task", ["ctc", "seq2seq"])
def test_what_is_frozen_costs_no_gradient_no_state_and_below_what_trains_no_activations(task, tmp_path):
    def heads_alone(model):
        for p in model.parameters():
            p.requires_grad_(False)
        layer = model.body.encoder.layers[-1]
        (layer.feed_forward.output_dense if task == "ctc" else layer.fc2).requires_grad_(True)

    def saved(prepare):
        trainer = drawn_trainer(task, tmp_path, TrainConfig(), prepare)
        batch = batches_of(trainer, 4)[0]
        trainer.model.train()
        with SavedTensors(trainer.model.parameters()) as kept:
            total = trainer.stepper.losses(batch).total
        trainer.stepper.step([batch], 10)
        frozen = [p for p in trainer.model.parameters() if not p.requires_grad]
        assert frozen and all(p.grad is None and p not in trainer.stepper.optimiser.state for p in frozen)
        del total
        return kept.bytes

    top, everything = saved(heads_alone), saved(full)
    assert top < (everything / 3 if task == "ctc" else everything)


def test_a_frozen_front_end_saves_nothing():
    model, _, _ = setup_of("ctc")
    full(model)
    with SavedTensors(model.parameters()) as kept:
        model.conv_features(torch.randn(2, 8000), torch.tensor([8000, 6000]))
    assert kept.bytes == 0
    for p in model.front_end():
        p.requires_grad_(True)
    with SavedTensors(model.parameters()) as kept:
        model.conv_features(torch.randn(2, 8000), torch.tensor([8000, 6000]))
    assert kept.bytes > 2 * 8000 * 4


@pytest.mark.parametrize("name", MEMBERS)
def test_frozen_weights_in_bf16_compute_what_autocast_computes_and_come_back(name, tmp_path):
    model = member(name)
    lora(model)
    inputs = speech(model, 1.0, 0.7)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def output():
        with autocast("bf16", CPU):
            return model.ctc_logits(*inputs)[0].float()

    plain = output()
    frozen = FrozenWeights(model, torch.bfloat16, tmp_path / "frozen.safetensors")
    frozen.hold()
    held = output()
    matrices = [n for n, p in model.named_parameters() if not p.requires_grad and p.dim() > 1]
    assert {n for n, p in model.named_parameters() if p.dtype == torch.bfloat16} == set(matrices)
    # Rounding: positional convolutions and position biases, which autocast leaves in float32, alone differ.
    torch.testing.assert_close(held, plain, atol=0.05 * plain.abs().max().item(), rtol=0.05)
    held.square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for n, p in model.named_parameters() if "masked" not in n)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    frozen.restore()
    assert all(torch.equal(before[n], p) and p.dtype == before[n].dtype for n, p in model.named_parameters())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", ["ctc", "seq2seq", "classify"])
@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"init": "pissa"}])
def test_lora_on_a_base_in_bf16_learns_and_merges_into_its_own_weights(task, settings, tmp_path):
    config = TrainConfig(
        epochs=25, batch_seconds=60, lr=0.02, head_lr=0.01, keep="last", precision="bf16", frozen_dtype="bf16"
    )
    trainer = drawn_trainer(task, tmp_path, config, lambda model: lora(model, **settings))
    held = [p for p in trainer.model.parameters() if p.dtype == torch.bfloat16]
    assert held and not any(p.requires_grad for p in held)
    reference = drawn_trainer(task, tmp_path / "other", TrainConfig(), lambda model: lora(model, **settings))
    cuts = drawn_cuts()
    trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    assert trainer.state.history[-1]["loss"] < trainer.state.history[0]["loss"]
    assert frozen_digest(trainer.model) == frozen_digest(reference.model)
    adapted = {n.split(".base_layer")[0] for n, _ in trainer.model.named_parameters() if ".base_layer." in n}
    before = {n.replace(".base_layer", ""): p for n, p in weights(trainer).items() if ".base_layer." in n}
    merge(trainer.model.peft)
    after = dict(trainer.model.named_parameters())
    assert all(p.dtype == torch.float32 for p in after.values())
    moved = {n.rpartition(".")[0] for n in before if not torch.equal(before[n], after[n])}
    assert moved == adapted


def test_a_killed_training_on_a_base_in_bf16_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch):
    config = TrainConfig(epochs=3, batch_seconds=0.7, keep="last", precision="bf16", frozen_dtype="bf16", accumulate=2)
    cuts = drawn_cuts()
    whole = drawn_trainer("ctc", tmp_path / "whole", config, low_rank_lora)
    whole.run(cuts, cuts, tmp_path / "whole.jsonl")
    killed = drawn_trainer("ctc", tmp_path / "killed", config, low_rank_lora)

    real = killed._evaluate

    def evaluate(dev):
        if killed.state.epoch == 2:
            raise KeyboardInterrupt
        return real(dev)

    monkeypatch.setattr(killed, "_evaluate", evaluate)
    with pytest.raises(KeyboardInterrupt):
        killed.run(cuts, cuts, tmp_path / "killed.jsonl")
    resumed = drawn_trainer("ctc", tmp_path / "killed", config, low_rank_lora)
    resumed.run(cuts, cuts, tmp_path / "killed.jsonl")
    assert resumed.state.history == whole.state.history
    assert all(torch.equal(p, weights(resumed)[n]) for n, p in weights(whole).items())
    assert not (tmp_path / "killed" / "frozen.safetensors").exists()


# --- precision


def test_the_constraint_works_on_float32_weights_in_bf16(tmp_path):
    config = TrainConfig(epochs=6, batch_seconds=60, lr=0.005, keep="last", precision="bf16")
    trainer = drawn_trainer("ctc", tmp_path, config, low_rank)
    trainer.constraint.every, trainer.constraint.probability = 1, 1.0
    cuts = drawn_cuts()
    numbers = measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert all(v.dtype == torch.float32 for s in trainer.stepper.optimiser.state.values() for v in s.values())
    assert numbers["deviation"] < 1e-3  # bfloat16 itself would round by 4e-3


def test_fp16_needs_cuda(tmp_path):
    with pytest.raises(
        UserError, match=r"training\.precision: fp16 needs CUDA.*but the device is cpu; set bf16 or fp32"
    ):
        drawn_trainer("ctc", tmp_path, TrainConfig(precision="fp16"), device="cpu")
    check("fp16", torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, which fp16 needs")
@pytest.mark.parametrize("prepared", ["low-rank", "low-rank lora"])
def test_fp16_on_cuda_learns_and_scales_its_loss(prepared, tmp_path):
    frozen = "fp16" if "lora" in prepared else "fp32"
    config = TrainConfig(epochs=20, batch_seconds=60, lr=0.01, keep="last", precision="fp16", frozen_dtype=frozen)
    trainer = drawn_trainer("ctc", tmp_path, config, PREPARED[prepared])
    cuts = drawn_cuts()
    numbers = measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")
    assert trainer.state.history[-1]["loss"] < 0.8 * trainer.state.history[0]["loss"]
    assert trainer.stepper.scaler.get_scale() > 1 and numbers["bytes"]["activations"] > 0
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"frozen_dtype is bf16 and precision is fp32.*set precision: bf16"):
        TrainConfig(frozen_dtype="bf16")
    with pytest.raises(ValueError, match="accumulate is 0; it must be at least 1"):
        TrainConfig(accumulate=0)


# --- compilation and the 8-bit optimiser


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler, which compile needs")
@pytest.mark.parametrize("buckets", [None, 2])
def test_compiled_layers_give_the_same_losses(buckets, tmp_path):
    def losses(**keys):
        trainer = drawn_trainer("ctc", tmp_path, TrainConfig(gradient_checkpointing=True, **keys), low_rank)
        trainer.model.train()
        made = [trainer.stepper.step([b], 10).task_sum for b in batches_of(trainer, 3, 2)]
        compiled = [m for m in trainer.model.modules() if m._compiled_call_impl is not None]
        as_before(trainer.model)
        return made, len(compiled)

    plain, none = losses()
    found, layers = losses(compile=True, compile_buckets=buckets)
    assert found == pytest.approx(plain, rel=1e-4) and (none, layers) == (0, 2)


def test_compiling_without_a_compiler_is_an_error_of_the_user(monkeypatch):
    model, _, _ = setup_of("ctc")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"training\.compile: .*no-such-compiler was not found"):
        compile_layers(model)


def test_a_compilation_that_fails_is_an_error_of_the_user(tmp_path, monkeypatch):
    trainer = drawn_trainer("ctc", tmp_path, TrainConfig())
    trainer.stepper.config = dataclasses.replace(trainer.config, compile=True)

    def forward(*_):
        raise torch._dynamo.exc.TorchDynamoException("Python.h: No such file\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(trainer.objective, "forward", forward)
    with pytest.raises(UserError, match=r"torch\.compile fails here \(Python\.h: No such file\); set compile: false"):
        trainer.stepper.step(batches_of(trainer, 2), 10)


def test_the_8_bit_optimiser_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="adamw8bit needs the package bitsandbytes"):
        drawn_trainer("ctc", tmp_path, TrainConfig(optimiser="adamw8bit"))


def test_sgd_moves_the_factors_by_their_gradients_and_adamw_the_rest(tmp_path, monkeypatch):
    config = TrainConfig(warmup=0.0, hold=1.0, clip=1e9, factor_sgd=FactorSgd(lr=0.5, momentum=0.0))
    trainer = drawn_trainer("ctc", tmp_path, config, low_rank)
    trainer.stepper.constraint = None
    before, found, whole = weights(trainer), {}, nn.utils.clip_grad_norm_

    def keep_gradients(parameters, most):
        found.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
        return whole(parameters, most)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", keep_gradients)
    trainer.stepper.step(batches_of(trainer, 4), 10)
    after = weights(trainer)
    factors = {n for n in before if n.endswith(("first.weight", "second.weight"))}
    assert len(factors) == 2 * len(low_rank_layers(trainer.model.body)) > 0
    for name in factors:
        torch.testing.assert_close(after[name], before[name] - 0.5 * found[name])
    other = next(n for n in found if n.endswith("q_proj.weight"))
    assert 0 < (after[other] - before[other]).abs().max() < 2 * config.lr  # AdamW: steps of about lr
    assert {n for n in before if not torch.equal(before[n], after[n])} > factors


def test_bytes_of_two_optimisers_are_counted_and_their_state_is_left_alone(tmp_path):
    trainer = drawn_trainer("ctc", tmp_path, TrainConfig(factor_sgd=FactorSgd(momentum=0.9)), low_rank)
    trainer.stepper.step(batches_of(trainer, 2), 10)
    factors = sum(
        w.nbytes for m in low_rank_layers(trainer.model.body).values() for w in (m.first.weight, m.second.weight)
    )
    unused = "hf.masked_spec_embed"  # never has a gradient
    whole = sum(p.nbytes for name, p in trained(trainer).items() if name != unused)
    found = byte_counts((trainer.model, trainer.objective), trainer.stepper.optimiser)
    assert found["gradients"] == whole
    counters = 4 * sum("step" in values for values in trainer.stepper.optimiser.state.values())
    assert found["optimiser"] == 2 * (whole - factors) + factors + counters
    trainer.stepper.optimiser.state_dict()


def test_settings_out_of_their_range_are_named():
    for keys, message in [
        ({"max_steps": 0}, "max_steps is 0; it must be at least 1"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"clip": 0.0}, "clip is 0.0; it must be above 0"),
        ({"lr": math.nan}, "lr is nan; it must be finite"),
        ({"final": -5.0}, "final is -5.0; it must be at least 0"),
        ({"warmup": 1.5, "hold": -0.5}, "warmup is 1.5; it must be at most 1"),
        ({"warmup": 0.6, "hold": 0.5}, "their sum must be at most 1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; it must be at least 0"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be below 1"),
        ({"label_smoothing": 1.5}, "label_smoothing is 1.5"),
    ]:
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            TrainConfig(**keys)
    with pytest.raises(ValueError, match="time_width is -1; it must be at least 0"):
        SpecAugment(time_width=-1)


def test_memory_that_runs_out_in_the_update_is_explained(tmp_path, monkeypatch):
    trainer = drawn_trainer("ctc", tmp_path, TrainConfig())

    def step(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(trainer.stepper.optimiser, "step", step)
    with pytest.raises(UserError, match=r"out of memory on a batch of \d utterances, .*: lower training.batch_seconds"):
        trainer.stepper.step(batches_of(trainer, 2), 10)


def test_sgd_for_factors_without_factors_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"factor_sgd: the model has no trainable factors"):
        drawn_trainer("ctc", tmp_path, TrainConfig(factor_sgd=FactorSgd()))


# --- state


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "sgd for factors"])
def test_the_state_of_a_step_makes_the_next_one_the_same(tmp_path, monkeypatch, kind):
    changes = {"adamw": {}, "adamw8bit": {"optimiser": kind}, "sgd for factors": {"factor_sgd": FactorSgd()}}[kind]
    if kind == "adamw8bit":
        optim = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").optim
        # Of its own accord it holds what has fewer than 4,096 values in 32 bits, as all of these models have.
        monkeypatch.setattr(optim, "AdamW8bit", partial(optim.AdamW8bit, min_8bit_size=1))
    config = TrainConfig(accumulate=2, dropout=0.1, spec_augment=SpecAugment(), **changes)
    prepare = low_rank if kind == "sgd for factors" else None
    first = drawn_trainer("seq2seq", tmp_path, config, prepare)
    batches = batches_of(first, 3, 3)
    first.model.train()
    first.stepper.step(batches, 10)
    state, values = first.stepper.state_dict(), weights(first)
    torch.save(state, tmp_path / "state.pt")
    torch.manual_seed(4)
    first.stepper.step(batches, 10)
    second = drawn_trainer("seq2seq", tmp_path, config, prepare)
    second.model.train()
    with torch.no_grad():
        for name, p in second.model.named_parameters():
            p.copy_(values[name])
    second.stepper.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    held = {getattr(v, "dtype", None) for state in second.stepper.optimiser.state.values() for v in state.values()}
    assert (torch.uint8 in held) == (kind == "adamw8bit")
    torch.manual_seed(4)
    second.stepper.step(batches, 10)
    assert second.step == 2
    assert all(torch.equal(p, weights(second)[name]) for name, p in weights(first).items())
