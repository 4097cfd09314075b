"""Distillation: its two losses against plain formulas, the objective, resumption, several batches, and refusals."""

import copy
import json

import pytest
import torch

from lowrank_speech.errors import UserError
from lowrank_speech.fingerprints import closure
from lowrank_speech.models.scratch import from_scratch
from lowrank_speech.stages import train
from lowrank_speech.training.config import SpecAugment, TrainConfig
from lowrank_speech.training.data.targets import targets_of
from lowrank_speech.training.distil_settings import DistilSettings
from lowrank_speech.training.losses.distil import Distilled, Teacher, divergence, relative_error
from lowrank_speech.workflow import closures
from stage_world import done, refused, train_cfg, train_paths
from tiny_models import WAV2VEC2, WHISPER
from tiny_training import (
    drawn,
    drawn_cuts,
    drawn_trainer,
    full,
    interrupt,
    lora,
    low_rank,
    objective_of,
    setup_of,
    weights,
)
from workflow_config import checked, edited, sliced, wildcards
from workflow_config import refused as config_refused

TASKS = ("ctc", "seq2seq", "classify")
CONFIG = {"epochs": 2, "batch_seconds": 1.0, "lr": 0.005}
SETTINGS = DistilSettings(hidden=0.5)


def distilled(trainer, task, settings=SETTINGS, seed=2, precision="fp32"):
    """The trainer with the terms of a teacher, drawn from ``seed``; before its first step."""
    trainer.objective = trainer.stepper.objective = Distilled(
        trainer.objective, Teacher(setup_of(task, seed)[0], settings, precision)
    ).to(trainer.device)
    trainer.parts = trainer.parts._replace(objective=trainer.objective)
    return trainer


def batch_of(task, cuts=None):
    return drawn(task).collate(list(cuts or drawn_cuts()), (1, 0))


def losses_of(task, student, objective, batch):
    return objective(student.train(), batch["features"], batch["lengths"], batch["cuts"])


# --- the two losses


def test_the_divergence_and_its_gradient_are_those_of_the_formula():
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(7, 5, generator=generator, dtype=torch.float64).float() for _ in "st")
    student.requires_grad_()
    divergence(student, teacher, 2.0).sum().backward()
    p, q = (torch.exp(x / 2) / torch.exp(x / 2).sum(-1, keepdim=True) for x in (teacher, student.detach()))
    expected = 4 * (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(divergence(student.detach(), teacher, 2.0), expected)
    torch.testing.assert_close(student.grad, 2 * (q - p))  # T² times (q - p) / T
    assert divergence(teacher, teacher, 3.0).eq(0).all()


def test_the_relative_error_has_no_unit_and_ignores_padding():
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(2, 6, 3, generator=generator) for _ in "st")
    frames = torch.tensor([6, 2])
    expected = sum(
        n * (student[i, :n] - teacher[i, :n]).square().sum() / teacher[i, :n].square().sum()
        for i, n in ((0, 6), (1, 2))
    )
    torch.testing.assert_close(relative_error(student, teacher, frames), expected / 8)
    torch.testing.assert_close(relative_error(student * 1e3, teacher * 1e3, frames), expected / 8)
    student[1, 2:], teacher[1, 2:] = 1e9, -1e9
    torch.testing.assert_close(relative_error(student, teacher, frames), expected / 8)
    assert relative_error(teacher, teacher, frames) == 0
    assert relative_error(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.tensor([2])) == 0


# --- the objective


@pytest.mark.parametrize("task", TASKS)
def test_a_teacher_like_the_student_adds_nothing(task):
    student, lang, _ = setup_of(task)
    full(student)
    plain = objective_of(task, TrainConfig(), lang).build(student)
    objective = Distilled(plain, Teacher(copy.deepcopy(student), SETTINGS, "fp32"))
    batch = batch_of(task)
    found, alone = (losses_of(task, student, o, batch) for o in (objective, plain))
    assert [float(mean.detach()) for _, mean, _ in found.terms[1:]] == [0.0, 0.0]
    assert found.total.item() == alone.total.item()


@pytest.mark.parametrize("task", TASKS)
def test_the_terms_are_those_of_single_utterances(task):
    """One at a time, without padding, with hidden states from transformers' own hooks, and plain formulas."""
    student, lang, _ = setup_of(task)
    teacher, _, _ = setup_of(task, 2)
    full(student)
    full(teacher)
    settings = DistilSettings(logits=0.7, hidden=0.3, transcripts=0.25, temperature=1.5)
    plain = objective_of(task, TrainConfig(), lang).build(student)
    objective = Distilled(plain, Teacher(copy.deepcopy(teacher), settings, "fp32"))
    sums, units, errors, frames = 0.0, 0, 0.0, 0
    for cut in drawn_cuts():
        batch = batch_of(task, [cut])
        target = plain.losses[0].collate([targets_of(cut)[plain.losses[0].name]])
        layers, logits = [], []
        for model in (student, teacher):
            states, n = model.train().states(batch["features"], batch["lengths"])
            found, handles = [], []
            for layer in model.body.encoder.layers:
                handles.append(
                    layer.register_forward_hook(
                        lambda _, __, out, to=found, n=int(n): to.append(
                            (out[0] if isinstance(out, tuple) else out)[0, :n]
                        )
                    )
                )
            model.eval().states(batch["features"], batch["lengths"])
            for handle in handles:
                handle.remove()
            layers.append(found)
            if task == "seq2seq":
                inputs, labels = target
                logits.append(model.decoder_logits(states, inputs)[labels != -100])
            else:
                logits.append(model.head_logits(states, n).flatten(0, -2))
        p, q = (x.div(1.5).softmax(-1) for x in reversed(logits))
        sums, units = sums + 2.25 * float((p * (p / q).log()).sum().detach()), units + len(p)
        apart = [(s - t).square().sum() / t.square().sum() for s, t in zip(*layers, strict=True)]
        errors, frames = errors + int(n) * float(sum(apart).detach()) / len(apart), frames + int(n)
    batch = batch_of(task)
    whole = losses_of(task, student, objective, batch)
    alone = losses_of(task, student, plain, batch)
    expected = [alone.total.item(), sums / units, errors / frames]
    assert [w for w, *_ in whole.terms] == [0.25, 0.7, 0.3]
    torch.testing.assert_close([m.item() for _, m, _ in whole.terms], expected, rtol=1e-4, atol=1e-6)
    assert [n for *_, n in whole.terms] == [alone.units, units, frames] == objective.units(student, batch)
    assert whole.total.item() == pytest.approx(0.25 * expected[0] + 0.7 * expected[1] + 0.3 * expected[2], rel=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_without_transcripts_a_student_approaches_its_teacher(task, tmp_path):
    settings = DistilSettings(hidden=1.0, transcripts=0.0)
    trainer = distilled(drawn_trainer(task, tmp_path, TrainConfig(**CONFIG | {"epochs": 8})), task, settings)
    cuts = drawn_cuts()
    outcome = trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss_logits", "loss_hidden"):
        assert 0 < rows[-1][name] < 0.7 * rows[0][name]
    assert outcome.metrics["parameters_trained"] == sum(p.numel() for p in trainer.stepper.parameters)


def test_the_teacher_hears_what_spec_augment_hides_from_the_student(tmp_path):
    """The terms change with the masks, and the teacher's states do not."""
    trainer = distilled(drawn_trainer("ctc", tmp_path, TrainConfig(**CONFIG, spec_augment=SpecAugment())), "ctc")
    batch, teacher, seen = batch_of("ctc"), trainer.objective.teacher.model, []
    real = teacher.states

    def states(*inputs):
        found = real(*inputs)
        seen.append(found[0])
        return found

    teacher.states = states
    trainer.model.train()
    first, second = (trainer.stepper.losses(batch) for _ in range(2))
    assert first.total.item() != second.total.item()
    assert torch.equal(*seen) and not seen[0].requires_grad and not teacher.training


def test_the_teacher_is_in_no_state_and_dev_does_not_need_it(tmp_path):
    trainer = distilled(drawn_trainer("ctc", tmp_path, TrainConfig(**CONFIG)), "ctc")
    assert not trainer.objective.state_dict() and not list(trainer.objective.parameters())
    trainer.objective.teacher.model.states = lambda *_: pytest.fail("the teacher ran")
    batch = batch_of("ctc")
    trainer.model.eval()
    found = trainer.objective(trainer.model, batch["features"], batch["lengths"], batch["cuts"], errors=True)
    assert len(found.terms) == 1 and found.errors is not None


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(task, tmp_path):
    recipe = TrainConfig(**CONFIG, spec_augment=SpecAugment(), dropout=0.2)
    cuts, ends = drawn_cuts(), []
    for name, stop in (("whole", None), ("parts", 5)):
        folder = tmp_path / name

        def run(folder=folder, until=None):
            trainer = distilled(drawn_trainer(task, folder, recipe, save_minutes=1e-6), task)
            if until is not None:
                interrupt(trainer, until)
            trainer.run(cuts, cuts, folder / "metrics.jsonl")
            return trainer

        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                run(until=stop)
        ends.append((weights(run()), (folder / "metrics.jsonl").read_text()))
    (one, rows), (other, same_rows) = ends
    assert rows == same_rows and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("task", TASKS)
def test_small_batches_give_the_gradient_of_a_large_one(task, tmp_path):
    """With the weights of their units: frames, tokens, utterances."""
    cuts, grads = list(drawn_cuts()), []
    for parts in ([cuts], [cuts[:1], cuts[1:5], cuts[5:]]):
        trainer = distilled(drawn_trainer(task, tmp_path, TrainConfig(**CONFIG)), task)
        stepper, batches = trainer.stepper, [batch_of(task, part) for part in parts]
        trainer.model.train()
        stepper._update = lambda constrained: True
        assert stepper.step(batches, 4).shown["hidden"][1] == int(
            trainer.model.output_lengths(*(batch_of(task)[key] for key in ("features", "lengths"))).sum()
        )
        grads.append(torch.cat([p.grad.flatten() for p in stepper.parameters if p.grad is not None]))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("adapt", [full, lora, low_rank])
def test_checkpointing_changes_nothing(adapt, tmp_path):
    grads = []
    for on in (False, True):
        config = TrainConfig(**CONFIG, gradient_checkpointing=on)
        trainer = distilled(drawn_trainer("ctc", tmp_path, config, adapt), "ctc", DistilSettings(hidden=1.0))
        trainer.model.train()
        trainer.stepper.losses(batch_of("ctc")).total.backward()
        grads.append(torch.cat([p.grad.flatten() for p in trainer.stepper.parameters if p.grad is not None]))
    torch.testing.assert_close(*grads)


def test_the_teacher_computes_in_the_precision_of_the_training(tmp_path):
    config = TrainConfig(**CONFIG, precision="bf16")
    trainer = distilled(drawn_trainer("seq2seq", tmp_path, config), "seq2seq", precision="bf16")
    teacher = trainer.objective.teacher
    wide = Teacher(setup_of("seq2seq", 2)[0], SETTINGS, "fp32")
    assert 0.4 * wide.bytes < teacher.bytes < 0.7 * wide.bytes
    trainer.model.train()
    narrow = [m.item() for _, m, _ in trainer.stepper.losses(batch_of("seq2seq")).terms]
    exact = distilled(drawn_trainer("seq2seq", tmp_path, TrainConfig(**CONFIG)), "seq2seq")
    exact.model.train()
    torch.testing.assert_close(
        narrow, [m.item() for _, m, _ in exact.stepper.losses(batch_of("seq2seq")).terms], rtol=0.05, atol=0.02
    )


# --- refusals


def test_a_teacher_that_does_not_fit_is_refused():
    student, lang, _ = setup_of("ctc")
    wide = from_scratch("wav2vec2", WAV2VEC2 | {"hidden_size": 32}, lang.tokens, 1, "random")
    deep = from_scratch("wav2vec2", WAV2VEC2 | {"num_hidden_layers": 3}, lang.tokens, 1, "random")
    whisper, spoken, _ = setup_of("seq2seq")
    long = from_scratch("whisper", WHISPER | {"max_source_positions": 60}, spoken.tokens, 1)
    classifier = setup_of("classify")[0]
    for teacher, settings, message in (
        (wide, SETTINGS, "width of the encoder: 32, the student's: 16; .*, or set hidden: 0"),
        (deep, SETTINGS, "encoder layers: 3, the student's: 2"),
        (whisper, SETTINGS, "family: whisper, the student's: wav2vec2"),
        (classifier, SETTINGS, "task: classify, the student's: ctc; .* a method of the experiment, or set logits: 0"),
    ):
        with pytest.raises(UserError, match=message):
            Teacher(teacher, settings, "fp32").check(student, "ctc", student.meta.lang_sha256)
    with pytest.raises(UserError, match="another token set than the student's"):
        Teacher(setup_of("ctc", 2)[0], SETTINGS, "fp32").check(student, "ctc", "1" * 64)
    with pytest.raises(UserError, match="window in seconds: "):
        Teacher(long, SETTINGS, "fp32").check(whisper, "seq2seq")
    with pytest.raises(UserError, match="languages: de, en, the student's: de, fr"):
        Teacher(classifier, SETTINGS, "fp32").check(student, "classify", labels=["de", "fr"])
    Teacher(wide, DistilSettings(), "fp32").check(student, "ctc", wide.meta.lang_sha256)
    Teacher(classifier, DistilSettings(logits=0.0, hidden=1.0), "fp32").check(student, "ctc")


def test_nothing_to_distil_is_refused():
    with pytest.raises(ValueError, match="logits and hidden are both 0"):
        DistilSettings(logits=0.0)


@pytest.mark.parametrize(
    ("method", "value", "message"),
    [
        ("full", {"teacher": "fall"}, "methods.full.distil.teacher: 'fall' does not exist; expected one of base, "),
        ("full", {"teacher": "full"}, "methods.full.distil.teacher: full learns from full; a teacher cannot"),
        ("full", {"logits": 0}, "methods.full.distil: logits and hidden are both 0"),
        ("full", {"temperature": 0}, "methods.full.distil.temperature is 0; it must be above 0"),
        ("full", {}, "methods.full.distil.teacher: the base wav2vec2 has no outputs for the task lid"),
    ],
)
def test_a_config_with_an_impossible_teacher_is_refused(method, value, message):
    assert config_refused(edited(f"methods.{method}.distil", value)).startswith(message)


def test_teachers_that_cannot_teach_are_refused():
    config = edited("methods.full.distil", {"teacher": "lowrank"})
    config["methods"]["lowrank"]["distil"] = {"teacher": "aware"}
    config["methods"]["aware"]["distil"] = {"teacher": "full"}
    assert "full learns from lowrank learns from aware learns from full" in config_refused(config)
    config = edited("methods.full.distil", {"teacher": "lowrank"})
    config["systems"]["methods"].remove("lowrank")
    assert "'lowrank' is not in systems.methods" in config_refused(config)
    config["methods"]["lowrank"] = {"adapt": "none"}
    assert "'lowrank' has adapt: none" in config_refused(config)
    config = edited("methods.lowrank.distil", {"teacher": "full", "hidden": 1, "logits": 0})
    config["training"]["compile"] = True
    assert config_refused(config).startswith("methods.lowrank.distil.hidden: states within compiled layers")
    config = edited("methods.lowrank.distil", {"teacher": "full"})
    config["methods"]["base"] = config["methods"]["full"]
    config["methods"]["aware"]["distil"] = {"hidden": 1, "logits": 0}
    assert "also a method; rename the method" in config_refused(config)
    config["methods"]["base"] = {"adapt": "none"}
    checked(config)


def test_only_a_system_with_a_teacher_depends_on_distillation():
    config = edited("methods.lowrank.distil", {"teacher": "full"})
    slices = sliced(config)
    known = {"base": "wav2vec2", "task": "asr"}
    assert slices.train(wildcards(**known, method="lowrank")).cfg["distil"]["temperature"] == 2.0
    for method, has in (("full", False), ("lowrank", True)):
        left_out = closures.unused("train", slices, wildcards(**known, method=method))
        without = [f"lowrank_speech.{name}" for name in left_out]
        found = closure("lowrank_speech.stages.train", without=without)
        assert ("lowrank_speech.training.losses.distil" in found) == has
        assert ("distil" in slices.train(wildcards(**known, method=method)).cfg) == has


# --- the stage


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_the_stage_distils_a_trained_system(family, world, systems, tmp_path):
    paths = train_paths(world, family, tmp_path / "out")
    cfg = train_cfg(distil={"hidden": 0.5, "transcripts": 0})
    teacher = {"teacher": systems[family, "asr"].model}
    record = done(train, cfg, tmp_path / "train.json", **paths, **teacher)
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert all(row["loss_logits"] > 0 and row["loss_hidden"] > 0 for row in rows)
    metrics, cost = record["metrics"], json.loads((tmp_path / "train.cost.json").read_text())
    assert metrics["parameters_teacher"] == metrics["parameters_total"]
    assert cost["bytes"]["teacher"] >= 4 * metrics["parameters_teacher"]


def test_the_stage_names_a_missing_or_useless_teacher(world, systems, tmp_path, capsys):
    paths, manifest = train_paths(world, "wav2vec2", tmp_path / "out"), tmp_path / "m.json"
    refused(capsys, "distil needs --teacher", train, train_cfg(distil={}), manifest, **paths)
    teacher = {"teacher": systems["wav2vec2", "lid"].model}
    refused(capsys, "--teacher has no effect without", train, train_cfg(), manifest, **paths, **teacher)
    refused(capsys, "its task: classify", train, train_cfg(distil={}), manifest, **paths, **teacher)
    refused(capsys, "adapt: none", train, train_cfg(adapt="none", distil={}), manifest, **paths, **teacher)
    cfg = train_cfg(adapt="head", distil={"hidden": 1.0})
    refused(capsys, "adapt: head does not train the encoder", train, cfg, manifest, **paths, **teacher)
