"""The training loop and its parts on tiny models: schedule, losses, trained parameters, resume, masks."""

import json
import logging
import math
import re
import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from lowrank_speech.errors import UserError
from lowrank_speech.features.augment import Augmentation
from lowrank_speech.features.batches import Loader, batch_indices
from lowrank_speech.features.kept import keep, numbered
from lowrank_speech.lowrank.lora import frozen_digest
from lowrank_speech.lowrank.lora_settings import LoraSettings
from lowrank_speech.models.dropout import set_dropout
from lowrank_speech.training import loop, progress
from lowrank_speech.training.adapt import freeze_for, lora_on
from lowrank_speech.training.config import CtcConfig, Noise, Runtime, SpecAugment, TrainConfig
from lowrank_speech.training.data import plan
from lowrank_speech.training.data.targets import targets_of
from lowrank_speech.training.loop import Trainer
from lowrank_speech.training.losses.loss import Errors
from lowrank_speech.training.losses.objective import Losses
from lowrank_speech.training.losses.seq2seq import IGNORE
from lowrank_speech.training.process.checkpoint import Checkpoints
from lowrank_speech.training.run import Run
from lowrank_speech.training.step import schedule
from tiny_training import (
    TEXTS,
    drawn_cuts,
    drawn_trainer,
    interrupt,
    lang_of,
    low_rank,
    make_cuts,
    measured,
    objective_of,
    setup_of,
    trainer_of,
)


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    """Six utterances; every character is a tone of its own."""
    return make_cuts(tmp_path_factory.mktemp("speech"))


def state_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.state_dict().items()}


def assert_same(left, right):
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


# --- schedule and settings


def test_schedule_warms_up_holds_and_decays():
    config = TrainConfig(warmup=0.2, hold=0.3, final=0.1)
    found = [schedule(step, 10, config) for step in range(10)]
    assert found == pytest.approx([0.5, 1, 1, 1, 1, 0.82, 0.64, 0.46, 0.28, 0.1])


def test_schedule_without_decay_stays_at_the_peak_to_the_end():
    config = TrainConfig(warmup=0.5, hold=0.5)
    assert [schedule(step, 4, config) for step in range(4)] == pytest.approx([0.5, 1, 1, 1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"epochs": 0}, "epochs"), ({"warmup": 0.7, "hold": 0.5}, "warmup"), ({"head_lr": 0.0}, "head_lr")],
)
def test_impossible_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**wrong)


def test_the_learning_rate_in_the_history_is_that_of_the_schedule(cuts, tmp_path):
    config = TrainConfig(epochs=3, batch_seconds=60, lr=0.002, head_lr=0.01, warmup=0.5, hold=0.0, final=0.1)
    trainer = trainer_of("ctc", tmp_path, config)
    trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    steps = trainer.state.history[-1]["step"]
    for row in trainer.state.history:
        factor = schedule(row["step"] - 1, steps, config)
        assert row["lr"] == pytest.approx(trainer.stepper.optimiser.param_groups[0]["peak"] * factor)
    assert {group["peak"] for group in trainer.stepper.optimiser.param_groups} == {0.002, 0.01}


def built(model, config, lang):
    return objective_of(model.task, config, lang).build(model)


# --- targets and losses


def collated(task, lang, cuts):
    """The targets of a batch of cuts as tensors."""
    loss = objective_of(task, TrainConfig(), lang).task
    return loss.collate([targets_of(cut)[loss.name] for cut in cuts])


def test_ctc_targets_are_normalised_text(cuts):
    lang = lang_of()
    labels, sizes = collated("ctc", lang, list(cuts)[1:3])
    assert sizes.tolist() == [4, 3]
    assert labels.tolist() == lang.tokens.encode("ba c") + lang.tokens.encode("aab")


def test_seq2seq_learns_language_text_and_end_but_not_the_rest_of_the_prompt(cuts):
    lang = lang_of(["de", "en"])
    tokens = lang.tokens
    inputs, labels = collated("seq2seq", lang, list(cuts)[:2])
    text = [tokens.encode("ab"), tokens.encode("ba c")]
    assert inputs[0].tolist() == [*tokens.prompt("en"), *text[0], tokens.eot, tokens.eot]
    assert inputs[1].tolist() == [*tokens.prompt("de"), *text[1]]
    learnt = [IGNORE, IGNORE]
    assert labels[0].tolist() == [tokens.language_ids["en"], *learnt, *text[0], tokens.eot, IGNORE, IGNORE]
    assert labels[1].tolist() == [tokens.language_ids["de"], *learnt, *text[1], tokens.eot]


def test_ctc_loss_is_torchs_per_label(cuts):
    model, lang, loader = setup_of("ctc")
    batch = loader.collate(list(cuts))
    found = built(model, TrainConfig(), lang)(model, batch["features"], batch["lengths"], batch["cuts"])
    expected = labels = 0
    for cut in cuts:  # one by one, without padding
        logits, frames = model.ctc_logits(loader.one(cut)[None], torch.tensor([len(loader.one(cut))]))
        target = torch.tensor(lang.tokens.encode(lang.normalise(cut.supervisions[0].text)))
        log_probs = logits[0].log_softmax(-1)
        assert len(log_probs) == int(frames)
        expected += F.ctc_loss(log_probs, target, frames[0], torch.tensor(len(target)), reduction="sum").item()
        labels += len(target)
    assert found.units == labels
    assert found.total.item() == pytest.approx(expected / labels, rel=1e-4)
    assert found.task_sum == pytest.approx(expected, rel=1e-4)


def test_ctc_errors_count_the_edits_of_the_greedy_path(cuts):
    model, lang, loader = setup_of("ctc")
    torch.nn.init.zeros_(model.head.linear.weight)
    torch.nn.init.zeros_(model.head.linear.bias)
    batch = loader.collate(list(cuts))
    objective = built(model, TrainConfig(), lang)
    arguments = (model, batch["features"], batch["lengths"], batch["cuts"])
    total = sum(len(lang.tokens.encode(lang.normalise(text))) for text in TEXTS)
    assert objective(*arguments, errors=True).errors == (total, total, len(TEXTS))  # blanks alone
    model.head.linear.bias.data[lang.tokens.ids["a"]] = 1.0  # one "a" each
    having = sum("a" in text.lower() for text in TEXTS)
    assert objective(*arguments, errors=True).errors == (total - having, total, 0)


def test_auxiliary_losses_add_to_the_total_and_not_to_the_tasks_own(cuts):
    model, lang, loader = setup_of("seq2seq")
    batch = loader.collate(list(cuts))
    arguments = (model, batch["features"], batch["lengths"], batch["cuts"])
    torch.manual_seed(5)
    plain = built(model, TrainConfig(), lang)(*arguments)
    config = TrainConfig(ctc_weight=0.5, language_weight=2.0)
    both = built(model, config, lang)
    assert both.weights == (1.0, 0.5, 2.0)
    for parameter in both.parameters():  # the auxiliary heads
        torch.nn.init.zeros_(parameter)
    found = both(*arguments)
    assert found.task_sum == pytest.approx(plain.task_sum)
    uniform, labels = 0.0, 0
    for cut in cuts:
        frames, target = model.frames_of(cut), lang.tokens.encode(lang.normalise(cut.supervisions[0].text))
        log_probs = torch.full((frames, lang.tokens.size), -math.log(lang.tokens.size))
        uniform += F.ctc_loss(
            log_probs, torch.tensor(target), torch.tensor(frames), torch.tensor(len(target)), reduction="sum"
        ).item()
        labels += len(target)
    extra = 0.5 * uniform / labels + 2.0 * math.log(2)
    assert found.total.item() - plain.total.item() == pytest.approx(extra, rel=1e-3)


# --- what trains


@pytest.mark.parametrize("task", ["ctc", "classify", "seq2seq"])
@pytest.mark.parametrize("adapt", ["full", "head"])
def test_gradients_go_to_what_trains_and_nothing_else(task, adapt, cuts):
    model, lang, loader = setup_of(task)
    freeze_for(model, adapt, trains_head=True)
    batch = loader.collate(list(cuts)[:3])
    objective = built(model, TrainConfig(), lang)
    total = objective(model, batch["features"], batch["lengths"], batch["cuts"]).total
    if task == "seq2seq" and adapt == "head":  # it has no head of its own
        assert not total.requires_grad
        return
    total.backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("masked_spec_embed"):
            assert (parameter.grad is not None) == parameter.requires_grad, name


def test_full_keeps_the_front_end_frozen_and_head_keeps_all_but_the_head():
    model, _, _ = setup_of("ctc")
    freeze_for(model, "full", trains_head=True)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen and frozen == {n for n, _ in model.named_parameters() if ".feature_extractor." in n}
    freeze_for(model, "head", trains_head=True)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"head.linear.weight", "head.linear.bias"}
    freeze_for(model, "none", trains_head=False)
    assert not any(p.requires_grad for p in model.parameters())


def test_full_keeps_whispers_sinusoids():
    model, _, _ = setup_of("seq2seq")
    freeze_for(model, "full", trains_head=True)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["hf.model.encoder.embed_positions.weight"]


def test_frozen_weights_stay_bit_for_bit_in_a_training_of_the_head(cuts, tmp_path):
    config = TrainConfig(epochs=2, batch_seconds=1.5, keep="last")
    trainer = trainer_of("ctc", tmp_path, config, lambda model: freeze_for(model, "head", trains_head=True))
    before, digest = state_of(trainer), frozen_digest(trainer.model)
    numbers = measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")
    after = state_of(trainer)
    assert {n for n in after if not torch.equal(before[n], after[n])} == {"head.linear.weight", "head.linear.bias"}
    assert frozen_digest(trainer.model) == digest
    assert numbers["parameters_trained"] == sum(after[n].numel() for n in ("head.linear.weight", "head.linear.bias"))


@pytest.mark.parametrize("task", ["ctc", "seq2seq", "classify"])
def test_lora_leaves_frozen_weights_bit_for_bit(task, cuts, tmp_path):
    def prepare(model):
        freeze_for(model, "lora", trains_head=True)
        lora_on(model, LoraSettings(rank=2))

    config = TrainConfig(epochs=2, batch_seconds=1.5, lr=0.01, keep="last")
    trainer = trainer_of(task, tmp_path, config, prepare)
    before, digest = state_of(trainer), frozen_digest(trainer.model)
    trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    after = state_of(trainer)
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert frozen_digest(trainer.model) == digest
    heads = {n for n in changed if trainer.model.is_head(n)}
    assert changed and all("lora_" in n for n in changed - heads)
    assert {n for n in after if "lora_B" in n} <= changed
    assert bool(heads) == (trainer.model.head is not None)


def test_a_lora_target_that_matches_nothing_is_an_error_of_the_user():
    model, _, _ = setup_of("ctc")
    with pytest.raises(UserError, match=r"lora: .*nowhere"):
        lora_on(model, LoraSettings(targets=("*nowhere*",)))
    with pytest.raises(UserError, match="needs the section `lora`"):
        lora_on(model, None)


def test_nothing_to_train_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nothing to train"):
        trainer_of("ctc", tmp_path, TrainConfig(), lambda model: freeze_for(model, "none", trains_head=False))


# --- runs


@pytest.mark.parametrize("task", ["ctc", "seq2seq", "classify"])
def test_training_lowers_the_loss(task, cuts, tmp_path):
    config = TrainConfig(epochs=40, batch_seconds=0.7, lr=0.004, head_lr=0.01, dropout=0.0)
    trainer = trainer_of(task, tmp_path, config)
    numbers = measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")
    first, last = trainer.state.history[0], trainer.state.history[-1]
    assert last["loss"] < 0.6 * first["loss"] and last["dev_loss"] < first["dev_loss"]
    assert numbers["dev_metric"] == min(row["dev_metric"] for row in trainer.state.history) < 0.7
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == numbers["epochs"] == 40


def test_the_model_ends_with_the_weights_of_the_best_epoch(cuts, tmp_path, monkeypatch):
    trainer = trainer_of("ctc", tmp_path, TrainConfig(epochs=3, batch_seconds=60, lr=0.01, dropout=0.0))
    errors, seen = iter([5, 1, 3]), []

    def fake(*_):
        seen.append(state_of(trainer))
        return Errors(next(errors), 10)

    monkeypatch.setattr(trainer.objective.task, "errors", fake)
    trainer.loader.all = lambda *_, **__: [trainer.loader.collate(list(cuts))]
    assert measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")["dev_metric"] == 0.1
    assert_same(state_of(trainer), seen[1])
    assert not torch.equal(seen[1]["head.linear.weight"], seen[2]["head.linear.weight"])


def test_patience_ends_a_run_that_gets_no_better(cuts, tmp_path, monkeypatch):
    trainer = trainer_of("ctc", tmp_path, TrainConfig(epochs=9, batch_seconds=60, patience=2))
    errors = iter([5, 3, 4, 4, 4, 4, 4, 4, 4])
    monkeypatch.setattr(trainer.objective.task, "errors", lambda *_: Errors(next(errors), 10))
    trainer.loader.all = lambda *_, **__: [trainer.loader.collate(list(cuts))]
    assert measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")["epochs"] == 4


@pytest.mark.parametrize(("errors", "epochs"), [([3] * 9, 3), ([5, 3, 4, 3, 3], 4), ([5, 4, 4, 3, 3, 3], 6)])
def test_to_be_as_good_again_is_no_better(errors, epochs, cuts, tmp_path, monkeypatch):
    trainer = trainer_of("ctc", tmp_path, TrainConfig(epochs=9, batch_seconds=60, patience=2))
    found = iter(errors)
    monkeypatch.setattr(trainer.objective.task, "errors", lambda *_: Errors(next(found), 10))
    trainer.loader.all = lambda *_, **__: [trainer.loader.collate(list(cuts))]
    assert measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")["epochs"] == epochs


def test_dev_is_encoded_once(cuts, tmp_path):
    trainer = trainer_of("ctc", tmp_path, TrainConfig(epochs=1, batch_seconds=60))
    passes = []
    trainer.model.body.encoder.register_forward_hook(lambda module, *_: passes.append(module.training))
    trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    assert passes == [True, False]


def resumable(folder):
    return Checkpoints(folder).files()


RUNS = {
    "constraint": ("ctc", low_rank, {"dropout": 0.2}),
    "auxiliary heads and masks": (
        "seq2seq",
        None,
        {"dropout": 0.1, "spec_augment": SpecAugment(), "ctc_weight": 0.5, "language_weight": 0.5},
    ),
    "LF-MMI": ("ctc", None, {"loss": "lfmmi", "dropout": 0.1}),
    "label priors, delay penalty": ("ctc", None, {"ctc": CtcConfig(prior_scale=0.3, delay_penalty=0.02)}),
    "last epoch": ("classify", None, {"dropout": 0.1, "keep": "last", "weight_decay": 0.1}),
}


@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("where", ["_evaluate", "_save"])
def test_a_killed_training_goes_on_and_ends_as_it_would_have_ended(case, where, cuts, tmp_path, monkeypatch):
    task, prepare, keys = RUNS[case]
    config = TrainConfig(epochs=4, batch_seconds=1.5, lr=0.005, head_lr=0.01, **keys)

    def run(folder, seed=7):
        trainer = trainer_of(task, tmp_path / folder, config, prepare)
        torch.manual_seed(seed)
        return trainer, measured(trainer, cuts, cuts, tmp_path / folder / "metrics.jsonl")

    whole, numbers = run("whole")
    with monkeypatch.context() as patch:
        real = getattr(Trainer, where)

        def killed(self, *arguments):
            if self.state.epoch == 2:
                raise KeyboardInterrupt
            return real(self, *arguments)

        patch.setattr(Trainer, where, killed)
        with pytest.raises(KeyboardInterrupt):
            run("killed")
    assert resumable(tmp_path / "killed")
    assert not (tmp_path / "killed" / "metrics.jsonl").exists()
    resumed, again = run("killed", seed=99)
    assert_same(state_of(resumed), state_of(whole))
    assert resumed.state.history == whole.state.history
    assert (tmp_path / "killed" / "metrics.jsonl").read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    timed = ("seconds_train", "speech_seconds_per_second", "peak_bytes")
    assert {k: v for k, v in numbers.items() if k not in timed} == {k: v for k, v in again.items() if k not in timed}
    left = {*resumable(tmp_path / "killed"), tmp_path / "killed" / "metrics.jsonl"}
    assert set((tmp_path / "killed").iterdir()) == left


@pytest.mark.parametrize("task", ["ctc", "seq2seq"])
def test_workers_and_cuts_on_disk_train_the_same_weights(task, cuts, tmp_path):
    def run(name, workers, given):
        config = TrainConfig(epochs=2, batch_seconds=1.5, dropout=0.2, spec_augment=SpecAugment())
        trainer = trainer_of(task, tmp_path / name, config, workers=workers)
        trainer.loader = Loader(trainer.loader.inputs, workers=workers, augmentation=Augmentation(noise=Noise()))
        torch.manual_seed(7)
        trainer.run(given, given, tmp_path / name / "metrics.jsonl")
        return state_of(trainer), trainer.state.history

    kept = keep(cuts, tmp_path / "kept.jsonl")
    whole, history = run("memory", 0, cuts)
    for name, workers in (("disk", 0), ("workers", 2)):
        weights, rows = run(name, workers, kept)
        assert_same(weights, whole)
        assert rows == history


def test_a_state_of_other_settings_is_refused(cuts, tmp_path, monkeypatch):
    config = TrainConfig(epochs=2, batch_seconds=60)
    trainer = trainer_of("ctc", tmp_path, config, key="a" * 64)
    trainer._save()
    other = trainer_of("ctc", tmp_path, config, key="b" * 64)
    with pytest.raises(
        UserError,
        match=r"state-0-\w+\.pt belongs to a run with other settings or inputs \(its key is a{12}, this run's is bbbb",
    ):
        other.run(cuts, cuts, tmp_path / "metrics.jsonl")
    assert resumable(tmp_path) and not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("missing", ["stepper", "rng", "epoch"])
def test_a_state_of_another_version_is_refused(missing, cuts, tmp_path):
    config = TrainConfig(epochs=2, batch_seconds=60)
    trainer = trainer_of("ctc", tmp_path, config)
    trainer._save()
    _, state = trainer.checkpoints.newest()
    (state if missing in state else state["state"]).pop(missing)
    trainer.checkpoints.save(1, state)
    with pytest.raises(
        UserError, match=rf"state-1-\w+\.pt cannot be read: it has no '{missing}', so another version .*; remove"
    ):
        trainer_of("ctc", tmp_path, config).run(cuts, cuts, tmp_path / "metrics.jsonl")


def not_finite(monkeypatch, trainer, which):
    """Make the loss NaN in the steps for which ``which(number)`` holds; the list of weights before each step."""
    seen, real = [], trainer.objective.forward

    def forward(model, features, lengths, cuts, **options):
        found = real(model, features, lengths, cuts, **options)
        if not model.training:
            return found
        seen.append(model.head.linear.weight.detach().clone())
        return Losses(found.total * math.nan, math.nan, found.units) if which(len(seen)) else found

    monkeypatch.setattr(trainer.objective, "forward", forward)
    return seen


def test_a_loss_that_is_not_finite_is_skipped(cuts, tmp_path, monkeypatch, caplog):
    trainer = trainer_of("ctc", tmp_path, TrainConfig(epochs=2, batch_seconds=1.0, lr=0.01))
    seen = not_finite(monkeypatch, trainer, lambda number: number == 2)
    numbers = measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")
    assert numbers["steps_skipped"] == 1 and "skipping step 2: the loss is nan, for u" in caplog.text
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2]) and not torch.equal(seen[2], seen[3])
    assert all(math.isfinite(row["loss"]) for row in trainer.state.history)


def test_too_many_in_a_row_end_the_training_with_advice(cuts, tmp_path, monkeypatch):
    trainer = trainer_of("ctc", tmp_path, TrainConfig(epochs=9, batch_seconds=1.0))
    seen = not_finite(monkeypatch, trainer, lambda number: True)
    with pytest.raises(UserError, match=r"not finite in 11 steps in a row, the last one for u\d.*: lower lr"):
        trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    assert len(seen) == TrainConfig().bad_patience + 1 == 11
    assert all(torch.equal(seen[0], weight) for weight in seen)


def test_bad_steps_with_a_good_one_between_do_not_end_it(cuts, tmp_path, monkeypatch):
    trainer = trainer_of("ctc", tmp_path, TrainConfig(epochs=9, batch_seconds=1.0))
    seen = not_finite(monkeypatch, trainer, lambda number: number % 8 != 0)
    numbers = measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")
    assert len(seen) > 22 and numbers["steps_skipped"] == len(seen) - len(seen) // 8


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_schedule_ends_with_the_last_step(accumulate, tmp_path):
    cuts = drawn_cuts(("ab", "ba c", "aab", "cc", "bca", "acb", "a", "cab", "abcab", "acbabc"))
    config = TrainConfig(epochs=10, batch_seconds=0.9, accumulate=accumulate, warmup=0.1, hold=0.2, final=0.05)
    trainer = drawn_trainer("ctc", tmp_path, config)
    batches = [sum(1 for _ in batch_indices(numbered(cuts), 0.9, 1, epoch)) for epoch in range(10)]
    assert len(set(batches)) > 1
    numbers = measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")
    assert numbers["steps"] == sum(-(-n // accumulate) for n in batches)
    assert trainer.state.history[-1]["lr"] == pytest.approx(0.05 * config.lr)


def test_of_a_long_training_the_first_epoch_is_counted(cuts, monkeypatch):
    monkeypatch.setattr(plan, "MOST_COUNTED", 59)
    numbers = list(batch_indices(numbered(cuts), 0.7, 1, 0))
    steps, largest = plan.plan(numbered(cuts), TrainConfig(epochs=10, batch_seconds=0.7), 1)
    assert steps == 10 * len(numbers) and largest in numbers


def test_the_largest_batch_of_all_epochs_is_rehearsed(cuts, tmp_path, monkeypatch):
    config = TrainConfig(epochs=10, batch_seconds=0.9)
    trainer, found = trainer_of("ctc", tmp_path, config, dry_run=True), []
    monkeypatch.setattr(loop, "rehearse", lambda stepper, batch: found.extend(batch["cuts"]))
    trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    seconds = numbered(cuts).durations
    sizes = [
        len(batch) * seconds[batch].max()
        for epoch in range(10)
        for batch in batch_indices(numbered(cuts), 0.9, 1, epoch)
    ]
    assert max(sizes) <= 0.9 + 1e-9
    assert len(found) * max(cut.duration for cut in found) == pytest.approx(max(sizes))


def test_a_batch_of_impossible_targets_alone_counts_no_label(cuts):
    model, lang, loader = setup_of("ctc")
    batch = loader.collate(list(cuts)[:1])
    short = batch | {"features": batch["features"][:, :350], "lengths": torch.tensor([350])}
    objective = built(model, TrainConfig(), lang)
    found = objective(model, short["features"], short["lengths"], short["cuts"])
    assert (found.units, found.impossible, found.task_sum) == (0, 1, 0.0) and found.total == 0.0
    assert objective.units(model, short) == [0]


def test_max_steps_ends_a_run_in_the_middle_of_an_epoch(cuts, tmp_path):
    trainer = trainer_of("ctc", tmp_path, TrainConfig(epochs=5, batch_seconds=1.0, max_steps=6))
    numbers = measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")
    assert (numbers["steps"], numbers["epochs"]) == (6, 2) and trainer.state.history[0]["step"] == 4


def test_a_gradient_that_is_not_finite_is_skipped(cuts, tmp_path, monkeypatch, caplog):
    trainer = trainer_of("ctc", tmp_path, TrainConfig(epochs=1, batch_seconds=0.7, lr=0.01, keep="last"))
    real, seen = trainer.objective.forward, []

    def forward(model, *arguments, **options):
        found = real(model, *arguments, **options)
        if model.training:
            seen.append(model.head.linear.weight.detach().clone())
            if len(seen) == 2:  # the loss is finite, its gradient is not
                weight = model.head.linear.weight
                found.total = found.total + (0 * weight.sum()).abs().sqrt()
        return found

    monkeypatch.setattr(trainer.objective, "forward", forward)
    numbers = measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")
    assert numbers["steps_skipped"] == trainer.state.history[0]["skipped"] == 1
    assert "skipping step 2: the gradient's norm is nan, for u" in caplog.text
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2]) and not torch.equal(seen[2], seen[3])
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_an_epoch_of_which_every_step_was_skipped_has_no_loss(cuts, tmp_path, monkeypatch):
    trainer = trainer_of("ctc", tmp_path, TrainConfig(epochs=2, batch_seconds=60))
    not_finite(monkeypatch, trainer, lambda number: number == 1)
    trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["loss"] is None, row["skipped"]) for row in rows] == [(True, 1), (False, 0)]


def test_a_run_without_a_step_that_counts_is_no_success(cuts, tmp_path, monkeypatch):
    trainer = trainer_of("ctc", tmp_path, TrainConfig(epochs=2, batch_seconds=60))
    not_finite(monkeypatch, trainer, lambda number: True)
    with pytest.raises(UserError, match=r"none of 2 steps changed the weights: .* listen to the recordings"):
        trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")


# --- averages, blanks, and what a person sees


def averaging(cuts, folder, monkeypatch, keep, errors):
    """A run that averages three evaluations whose errors (and at last the mean's) are ``errors``, and their weights."""
    config = TrainConfig(epochs=4, batch_seconds=60, lr=0.01, dropout=0.0, average=3, keep=keep)
    trainer, errors, seen = trainer_of("ctc", folder, config), iter(errors), []

    def fake(*_):
        seen.append(state_of(trainer))
        return Errors(next(errors), 10)

    monkeypatch.setattr(trainer.objective.task, "errors", fake)
    trainer.loader.all = lambda *_, **__: [trainer.loader.collate(list(cuts))]
    return trainer, measured(trainer, cuts, cuts, folder / "metrics.jsonl"), seen


@pytest.mark.parametrize(("keep", "errors"), [("best", [5, 3, 4, 4, 3]), ("last", [5, 3, 4, 4, 8])])
def test_the_mean_of_the_last_evaluations_is_the_result(keep, errors, cuts, tmp_path, monkeypatch):
    trainer, numbers, seen = averaging(cuts, tmp_path, monkeypatch, keep, errors)
    final = state_of(trainer)
    assert (numbers["averaged"], numbers["dev_metric"]) == (3, errors[-1] / 10)
    for name, found in final.items():
        expected = torch.stack([state[name].double() for state in seen[1:4]]).mean(0)
        assert torch.equal(found, expected.to(found.dtype)), name
    assert not torch.equal(final["head.linear.weight"], seen[3]["head.linear.weight"])


def test_a_mean_that_is_worse_on_dev_than_the_best_epoch_is_not_taken(cuts, tmp_path, monkeypatch):
    trainer, numbers, seen = averaging(cuts, tmp_path, monkeypatch, "best", [5, 3, 4, 4, 4])
    assert (numbers["averaged"], numbers["dev_metric"]) == (0, 0.3)
    assert_same(state_of(trainer), seen[1])


def blank(trainer):
    """Make CTC output blanks alone, and keep it there."""
    with torch.no_grad():
        trainer.model.head.linear.weight.zero_()
        trainer.model.head.linear.bias.zero_()
        trainer.model.head.linear.bias[0] = 5.0
    return trainer


def test_blank_output_is_reported_and_ends_the_run_where_asked(cuts, tmp_path, caplog):
    keys = {"epochs": 4, "batch_seconds": 60, "lr": 1e-9, "head_lr": 1e-9}
    numbers = measured(blank(trainer_of("ctc", tmp_path, TrainConfig(**keys))), cuts, cuts, tmp_path / "metrics.jsonl")
    assert numbers["epochs"] == 4 and caplog.text.count("CTC's output for dev is only blank") == 4
    trainer = blank(trainer_of("ctc", tmp_path / "stopped", TrainConfig(**keys, blank_patience=2)))
    with pytest.raises(UserError, match=r"step 2: .* in 2 evaluations in a row \(blank_patience\); train longer"):
        trainer.run(cuts, cuts, tmp_path / "stopped" / "metrics.jsonl")


def test_output_that_is_not_blank_everywhere_is_no_collapse(cuts, tmp_path, monkeypatch, caplog):
    config = TrainConfig(epochs=4, batch_seconds=60, blank_patience=2)
    trainer, blanks = trainer_of("ctc", tmp_path, config), iter([6, 5, 6, 0])
    monkeypatch.setattr(trainer.objective.task, "errors", lambda *_: Errors(3, 10, next(blanks)))
    trainer.loader.all = lambda *_, **__: [trainer.loader.collate(list(cuts))]
    assert measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")["epochs"] == 4
    assert [row["dev_blank"] for row in trainer.state.history] == pytest.approx([1, 5 / 6, 1, 0])
    assert caplog.text.count("only blank") == 2


def test_bytes_of_optimiser_and_gradients_are_those_of_the_tensors(cuts, tmp_path):
    config = TrainConfig(epochs=1, batch_seconds=60)
    trainer = trainer_of("ctc", tmp_path, config, lambda model: freeze_for(model, "head", trains_head=True))
    numbers = measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")
    head = trainer.model.head.linear
    size = head.weight.nbytes + head.bias.nbytes
    assert numbers["bytes"]["gradients"] == size == 4 * numbers["parameters_trained"]
    assert numbers["bytes"]["optimiser"] == 2 * size + 2 * 4  # two moments, and the count of steps of each tensor


def test_lines_in_the_log_where_there_is_no_terminal(cuts, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    trainer_of("ctc", tmp_path, TrainConfig(epochs=1, batch_seconds=0.7)).run(cuts, cuts, tmp_path / "metrics.jsonl")
    lines = [line for line in caplog.messages if line.startswith("step ")]
    pattern = r"step (\d) of 5, epoch 1, loss \d+\.\d{3}, \d+ s of speech per second, \d\d:\d\d left"
    assert [re.fullmatch(pattern, line)[1] for line in lines] == ["1", "2", "3", "4", "5"]
    assert "parameters trained" in caplog.messages[-1]


def test_curves_of_a_killed_run_go_on_where_its_state_is(cuts, tmp_path, monkeypatch):
    config, events = TrainConfig(epochs=2, batch_seconds=0.7), tmp_path / "events"

    def run(steps):
        trainer = trainer_of("ctc", tmp_path / "scratch", config)
        trainer.events = events
        interrupt(trainer, steps)
        return trainer, trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")

    with pytest.raises(KeyboardInterrupt):
        run(7)  # two steps after the last state
    trainer, _ = run(None)
    found = EventAccumulator(str(events)).Reload()
    assert [event.step for event in found.Scalars("step/loss")] == list(range(1, 11))
    assert [event.step for event in found.Scalars("epoch/dev_metric")] == [row["step"] for row in trainer.state.history]
    shutil.rmtree(tmp_path / "scratch")
    run(None)  # a new run starts new curves
    assert len(EventAccumulator(str(events)).Reload().Scalars("step/loss")) == 10


def test_curves_only_where_asked_for(tmp_path):
    paths = (tmp_path / "scratch", *[tmp_path / "cuts.jsonl.gz"] * 2)
    paths[1].write_bytes(b"")
    assert Run(TrainConfig(), Runtime(), 1, *paths, [], events=tmp_path / "events").events is None
    with pytest.raises(UserError, match="--tensorboard"):
        Run(TrainConfig(), Runtime(tensorboard=True), 1, *paths, [])


# --- dropout


def test_dropout_is_set_everywhere():
    model, _, _ = setup_of("seq2seq")
    set_dropout(model, 0.3)
    layer = model.body.encoder.layers[0]
    assert (layer.dropout, layer.activation_dropout, layer.self_attn.dropout) == (0.3, 0.3, 0.3)
