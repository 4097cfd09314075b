"""Distillation on speech without transcripts: the objective, the teacher's transcripts, the stage, the workflow."""

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from lhotse import CutSet
from safetensors.torch import load_file

from lowrank_speech.errors import UserError
from lowrank_speech.fingerprints import closure
from lowrank_speech.lang.select import SetAside
from lowrank_speech.stages import train
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.data.splits import Split
from lowrank_speech.training.data.targets import targets_of, with_targets
from lowrank_speech.training.data.untranscribed import KEY, Untranscribed, Writer
from lowrank_speech.training.distil_settings import DistilSettings
from lowrank_speech.training.loop import Trainer
from lowrank_speech.training.losses.distil import Distilled, Teacher
from lowrank_speech.training.losses.untranscribed import DistilledUntranscribed
from lowrank_speech.training.process.distributed import Ranks
from lowrank_speech.workflow import closures
from lowrank_speech.workflow.config import overlaps, splits_used
from stage_world import done, make_features, table, train_cfg, train_paths, utterance
from stage_world import refused as stage_refused
from tiny_training import drawn, drawn_cuts, drawn_trainer, full, objective_of, setup_of
from workflow_config import checked, edited, refused, sliced, wildcards

TASKS = ("ctc", "seq2seq", "classify")
SETTINGS = DistilSettings(logits=0.7, hidden=0.3, transcripts=0.5)


def parts_of(task, settings=SETTINGS):
    """A student, and its objective with and without untranscribed cuts."""
    student, lang, _ = setup_of(task)
    full(student)
    plain = objective_of(task, TrainConfig(), lang).build(student)
    teacher = Teacher(setup_of(task, 2)[0], settings, "fp32")
    old, new = Distilled(plain, teacher), DistilledUntranscribed(plain, teacher)
    return SimpleNamespace(student=student, plain=plain, task=plain.task, teacher=teacher, old=old, new=new)


def without_transcript(cut, loss):
    """The cut as if only the teacher had heard it, and had written its transcript."""
    written = targets_of(cut)[loss.name]
    tokens = (written[0] + written[1])[:-1] if loss.name == "seq2seq" else None
    return with_targets(cut, {KEY: loss.untranscribed(tokens)})


def gradient(student, objective, task, cuts):
    batch = drawn(task).collate(list(cuts), (1, 0))
    student.zero_grad()
    found = objective(student.train(), batch["features"], batch["lengths"], batch["cuts"])
    found.total.backward()
    assert [units for *_, units in found.terms] == objective.units(student, batch)
    assert len(found.terms) == len(objective.weights)
    return found, torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


# --- the objective


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("weights", [{"logits": 0.7}, {"logits": 0.0, "hidden": 0.3}, {"logits": 0.7, "hidden": 0.3}])
def test_the_gradient_of_untranscribed_cuts_is_that_of_distillation_alone(task, weights):
    parts = parts_of(task, DistilSettings(**weights))
    cuts = list(drawn_cuts())
    found, new = gradient(parts.student, parts.new, task, [without_transcript(cut, parts.task) for cut in cuts])
    assert found.units == 0 and found.task_sum == 0 and found.terms[0][1].item() == 0 and found.total.isfinite()
    alone = Distilled(parts.plain, Teacher(parts.teacher.model, DistilSettings(**weights, transcripts=0.0), "fp32"))
    reference, old = gradient(parts.student, alone, task, cuts)
    assert found.total.item() == reference.total.item() and torch.equal(new, old) and new.abs().max() > 0


@pytest.mark.parametrize("task", TASKS)
def test_a_mixed_batch_has_the_losses_of_its_transcribed_cuts_and_the_teachers_of_all(task):
    parts = parts_of(task)
    cuts = list(drawn_cuts())
    mixed = [without_transcript(cut, parts.task) if i in (0, 3, 4) else cut for i, cut in enumerate(cuts)]
    found, new = gradient(parts.student, parts.new, task, mixed)
    whole, _ = gradient(parts.student, parts.old, task, cuts)
    heard = [cuts[i] for i in (1, 2, 5, 6, 7)]
    some, _ = gradient(parts.student, parts.old, task, heard)
    (_, of_task, units), *of_teacher = found.terms
    torch.testing.assert_close(of_task, some.terms[0][1], rtol=1e-5, atol=1e-6)
    assert units == some.units < whole.units
    for (_, mean, units), (_, other, same) in zip(of_teacher, whole.terms[1:], strict=True):
        torch.testing.assert_close(mean, other, rtol=1e-5, atol=1e-6)
        assert units == same
    settings = DistilSettings(logits=0.7, hidden=0.3, transcripts=0.0)
    _, taught = gradient(
        parts.student, Distilled(parts.plain, Teacher(parts.teacher.model, settings, "fp32")), task, cuts
    )
    _, told = gradient(parts.student, parts.plain, task, heard)
    torch.testing.assert_close(new, taught + 0.5 * told, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_transcribed_batches_have_the_same_bits_as_before(task):
    parts = parts_of(task)
    (one, a), (other, b) = (gradient(parts.student, o, task, drawn_cuts()) for o in (parts.new, parts.old))
    assert one.total.item() == other.total.item() and torch.equal(a, b)


@pytest.mark.parametrize("task", TASKS)
def test_small_batches_give_the_gradient_of_a_large_one(task, tmp_path):
    """Also if one of them has no transcript, and one nothing else."""
    grads = []
    for cut_at in ((), (2, 5)):
        trainer = drawn_trainer(task, tmp_path, TrainConfig())
        teacher = Teacher(setup_of(task, 2)[0], SETTINGS, "fp32")
        trainer.stepper.objective = DistilledUntranscribed(trainer.objective, teacher)
        cuts = list(drawn_cuts())
        cuts = [without_transcript(c, trainer.objective.task) if i in (0, 1, 3) else c for i, c in enumerate(cuts)]
        bounds = [0, *cut_at, len(cuts)]
        batches = [drawn(task).collate(cuts[a:b], (1, 0)) for a, b in pairwise(bounds)]
        trainer.model.train()
        trainer.stepper._update = lambda constrained: True
        trainer.stepper.step(batches, 4)
        grads.append(torch.cat([p.grad.flatten() for p in trainer.stepper.parameters if p.grad is not None]))
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_a_training_without_any_transcript_has_no_loss_of_the_task_and_still_trains(task, tmp_path):
    trainer = drawn_trainer(task, tmp_path, TrainConfig(epochs=6, batch_seconds=1.0, lr=0.005, keep="last"))
    teacher = Teacher(setup_of(task, 2)[0], SETTINGS, "fp32")
    trainer.objective = trainer.stepper.objective = DistilledUntranscribed(trainer.objective, teacher)
    trainer.parts = trainer.parts._replace(objective=trainer.objective)
    cuts = [without_transcript(cut, trainer.objective.task) for cut in drawn_cuts()]
    trainer.run(cuts, drawn_cuts(), tmp_path / "metrics.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] is None and row["skipped"] == 0 and row["dev_loss"] > 0 for row in rows)
    for name in ("loss_logits", "loss_hidden"):
        assert 0 < rows[-1][name] < 0.8 * rows[0][name]


# --- the transcripts of the teacher


def speech(folder, **languages):
    """Cuts without text, by name; with one, ``x-text``, that has a text which nobody reads."""
    seconds = (0.3 + 0.1 * i for i in range(len(languages)))
    found = [utterance(folder, name, None, languages[name], s) for name, s in zip(languages, seconds, strict=True)]
    return [*found, utterance(folder, "x-text", "zzz?", "en")]


@pytest.fixture
def whisper(tmp_path):
    """A teacher with its writer, a split of six cuts, and what the training asks of them."""
    model, lang, loader = setup_of("seq2seq")
    objective = objective_of("seq2seq", TrainConfig(), lang)
    objective.materials.positions = model.decoder_positions
    cuts = speech(tmp_path, a="en", b="de", c=None, d="de-AT", e="en")
    CutSet.from_cuts(cuts).to_file(tmp_path / "more.jsonl.gz")
    split = Split("untranscribed", tmp_path / "more.jsonl.gz", TrainConfig())
    writer = Writer(setup_of("seq2seq", 2)[0].eval(), loader, torch.device("cpu"), "fp32")
    return SimpleNamespace(model=model, task=objective.task, writer=writer, split=split, folder=tmp_path / "run")


def usable(of, set_aside=None):
    found = Untranscribed([of.split], of.folder, Ranks(), of.writer)
    cuts = found.usable(of.model, of.task, SetAside() if set_aside is None else set_aside)
    return {cut.id: targets_of(cut) for cut in cuts}


def test_the_decoder_reads_what_the_teacher_writes(whisper):
    Untranscribed([whisper.split], whisper.folder, Ranks(), whisper.writer).transcribe(whisper.model)
    found, tokens = usable(whisper), whisper.task.materials.tokens
    assert list(found) == ["a", "b", "c", "d", "e", "x-text"]
    for cut in CutSet.from_file(whisper.split.path):
        batch, language = whisper.writer.loader.collate([cut]), whisper.writer.language(cut)
        assert language == {"d": "de"}.get(cut.id, cut.supervisions[0].language)
        greedy = whisper.writer.teacher.greedy(batch["features"], batch["lengths"], cut, language)[0].tolist()
        prompt, text = found[cut.id][KEY]
        assert prompt + text == [*greedy, tokens.eot] and len(text) > 1
        assert language is None or prompt == tokens.prompt(language)


def test_a_transcript_is_written_once_and_by_any_number_of_processes(whisper, monkeypatch):
    """Killed twice: between two lines, and within one. Then all of it, from two processes."""
    whole = SimpleNamespace(**vars(whisper) | {"folder": whisper.folder / "whole"})
    Untranscribed([whole.split], whole.folder, Ranks(), whole.writer).transcribe(whole.model)
    real, seen = Writer.__call__, []

    def until(last):
        def written(self, cut):
            if cut.id == last:
                raise KeyboardInterrupt
            seen.append(cut.id)
            return real(self, cut)

        return written

    this = Untranscribed([whisper.split], whisper.folder, Ranks(), whisper.writer)
    for last in ("b", "d"):
        monkeypatch.setattr(Writer, "__call__", until(last))
        with pytest.raises(KeyboardInterrupt):
            this.transcribe(whisper.model)
        with (whisper.folder / "teacher-0.jsonl").open("a") as file:
            file.write('["d", [1')
    monkeypatch.setattr(Writer, "__call__", until(None))
    this.transcribe(whisper.model)
    this.transcribe(whisper.model)
    assert seen == ["a", "b", "c", "d", "e", "x-text"]
    assert usable(whisper) == usable(whole)
    for rank in (1, 0):
        two = Untranscribed([whisper.split], whisper.folder / "two", Ranks(rank, 2), whisper.writer)
        two.transcribe(whisper.model)
    assert seen[6:] == ["b", "d", "x-text", "a", "c", "e"]
    assert {c.id: targets_of(c) for c in two.usable(whisper.model, whisper.task, SetAside())} == usable(whole)


def test_what_cannot_be_used_is_set_aside_with_a_reason(whisper, tmp_path, monkeypatch):
    cuts = speech(tmp_path, fine="en", foreign="fr", mute="de", endless="en")
    cuts.append(utterance(tmp_path, "long", None, "en", seconds=2.0))
    CutSet.from_cuts(cuts).to_file(whisper.split.path)
    tokens, real = whisper.task.materials.tokens, Writer.__call__
    said = {"mute": tokens.prompt("de"), "endless": tokens.prompt("en") + [1] * 100}
    monkeypatch.setattr(Writer, "__call__", lambda self, cut: said.get(cut.id) or real(self, cut))
    Untranscribed([whisper.split], whisper.folder, Ranks(), whisper.writer).transcribe(whisper.model)
    set_aside = SetAside()
    assert list(usable(whisper, set_aside=set_aside)) == ["fine", "x-text"]
    assert {name: reason for name, reason, _ in set_aside.rows} == {
        "foreign": "unknown language",
        "mute": "empty transcript of the teacher",
        "endless": "text longer than the decoder",
        "long": "longer than the model's window",
    }
    CutSet.from_cuts(cuts[1:2]).to_file(whisper.split.path)
    with pytest.raises(UserError, match=r"more.jsonl.gz: no utterance is left; set aside: 1 x unknown lang.*; ch"):
        usable(whisper)


def test_a_teacher_in_half_precision_writes_too(whisper):
    teacher = Teacher(setup_of("seq2seq", 2)[0], DistilSettings(), "bf16").model
    assert any(p.dtype == torch.bfloat16 for p in teacher.parameters())
    whisper.writer = Writer(teacher, whisper.writer.loader, torch.device("cpu"), "bf16")
    Untranscribed([whisper.split], whisper.folder, Ranks(), whisper.writer).transcribe(whisper.model)
    assert len(usable(whisper)) == 6


# --- the stage


@pytest.fixture
def job(world, systems, tmp_path):
    """The arguments of the stage, for a family; with two splits of untranscribed cuts."""

    def arguments(family, out, task="asr"):
        more = []
        for name, languages in {"one": {"a": "en", "b": "de"}, "two": {"c": None, "d": "en"}}.items():
            folder = tmp_path / family / name
            if not (folder / f"{name}.jsonl.gz").exists():
                folder.mkdir(parents=True)
                make_features(world, family, speech(folder, **languages), folder, name)
            more.append(folder / f"{name}.jsonl.gz")
        teacher = systems[family, task].model
        return train_paths(world, family, tmp_path / out, task, teacher=teacher) | {"untranscribed_cuts": more}

    return arguments


@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(family, job, tmp_path, monkeypatch):
    """Stopped while the teacher writes, and in the second epoch; then the teacher writes no more."""
    recipe = {"spec_augment": {}, "dropout": 0.2, "batch_seconds": 1.2}
    cfg = train_cfg(distil={"hidden": 0.5}, training=recipe)
    whole = done(train, cfg, tmp_path / "whole/train.json", **job(family, "whole"))
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] > 0 and row["loss_logits"] > 0 and row["loss_hidden"] > 0 for row in rows)
    assert whole["metrics"]["utterances_train"] == 8 and whole["metrics"]["utterances_untranscribed"] == 6
    assert 2 < whole["metrics"]["seconds_untranscribed"] < whole["metrics"]["seconds_speech"]
    paths = job(family, "parts")

    class Stopped(BaseException):
        pass

    def stop(*_):
        raise Stopped

    written, end, real = [], Trainer._end_of_epoch, Writer.__call__

    def write_two(self, cut):
        if len(written) == 2:
            raise Stopped
        written.append(cut.id)
        return real(self, cut)

    def end_of_first(self, dev):
        if self.state.epoch:
            raise Stopped
        end(self, dev)

    monkeypatch.setattr(Writer, "__call__", write_two)
    if family == "whisper":
        with pytest.raises(Stopped):
            done(train, cfg, tmp_path / "parts/train.json", **paths)
        assert written == ["a", "b"]
    monkeypatch.setattr(Writer, "__call__", lambda self, cut: written.append(cut.id) or real(self, cut))
    monkeypatch.setattr(Trainer, "_end_of_epoch", end_of_first)
    with pytest.raises(Stopped):
        done(train, cfg, tmp_path / "parts/train.json", **paths)
    assert written == (["a", "b", "x-text", "c", "d", "x-text"] if family == "whisper" else [])
    monkeypatch.setattr(Trainer, "_end_of_epoch", end)
    monkeypatch.setattr(Writer, "__call__", stop)
    parts = done(train, cfg, tmp_path / "parts/train.json", **paths)
    one, other = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert parts["metrics"] == whole["metrics"]
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "parts/metrics.jsonl").read_text()


def test_the_stage_without_logits_or_transcripts(job, world, tmp_path, monkeypatch):
    """Where no decoder reads, the teacher writes nothing; a classifier's priors count stated languages only."""
    monkeypatch.setattr(Writer, "__call__", lambda *_: pytest.fail("the teacher writes"))
    cfg = train_cfg(distil={"logits": 0, "hidden": 1.0})
    record = done(train, cfg, tmp_path / "a.json", **job("whisper", "a"))
    assert record["metrics"]["utterances_untranscribed"] == 6 and not table(tmp_path / "a/set_aside.tsv")
    record = done(train, train_cfg("lid", distil={}), tmp_path / "b.json", **job("wav2vec2", "b", "lid"))
    assert record["metrics"]["utterances_untranscribed"] == 6 and record["metrics"]["labels"] == ["de", "en"]
    config = json.loads((tmp_path / "b/model/config.json").read_text())
    assert config["lowrank_speech"]["priors"] == [0.5, 0.5]


def test_the_stage_names_what_is_wrong(job, tmp_path, capsys):
    paths, manifest = job("wav2vec2", "out"), tmp_path / "m.json"
    alone = {name: path for name, path in paths.items() if name != "teacher"}
    stage_refused(capsys, "--untranscribed-cuts needs the section distil", train, train_cfg(), manifest, **alone)
    paths["untranscribed_cuts"] = [tmp_path / "nowhere.jsonl.gz"]
    stage_refused(capsys, "nowhere.jsonl.gz does not exist", train, train_cfg(distil={}), manifest, **paths)


# --- the workflow

ASR = {"base": "wav2vec2", "task": "asr"}


def with_speech(*splits, **keys):
    """tiny_config, in which the method lowrank learns from full on ``splits``."""
    return edited("methods.lowrank.distil", {"teacher": "full", "untranscribed": list(splits), **keys})


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([{"split": "train"}], ".split: 'train' of corpora.ocean is the train split of tasks.asr; choose a split that"),
        ([{"split": "dev"}], ".split: 'dev' of corpora.ocean is the dev split of tasks.asr"),
        ([{"corpus": "ocean", "split": "test"}], ".split: 'test' of corpora.ocean is a test split of tasks.asr"),
        ([{"corpus": "babel", "split": "test"}], ".split: 'test' of corpora.babel is a test split of tasks.lid"),
        ([{"split": "tset"}], ".split: 'tset' does not exist; expected one of the splits of corpora.ocean: train,"),
        ([{"corpus": "sea", "split": "x"}], ".corpus: 'sea' does not exist; expected one of babel, ocean"),
        ([], ": expected at least 1 entry, got []"),
        ([{"corpus": "babel"}], "[0]: the key 'split' is missing"),
        (["extra"], "[0]: expected a mapping, got 'extra'"),
    ],
)
def test_a_config_with_impossible_splits_is_refused(splits, message):
    assert refused(with_speech(*splits)).startswith(f"methods.lowrank.distil.untranscribed{message}")


def test_a_split_twice_and_a_method_without_a_teacher_are_refused():
    config = with_speech({"corpus": "babel", "split": "pretrain"}, {"corpus": "babel", "split": "pretrain"})
    assert "occurs twice" in refused(config)
    config = edited("methods.lowrank.untranscribed", {"split": "pretrain", "corpus": "babel"})
    assert refused(config).startswith("methods.lowrank: unknown key 'untranscribed'")
    config = edited("methods.lowrank.distil", {"logits": 0, "hidden": 1, "untranscribed": {"split": "pretrain"}})
    config["systems"]["tasks"] = ["lid"]
    assert checked(config)["methods"]["lowrank"]["distil"]["untranscribed"] == {"split": "pretrain", "corpus": None}


def test_only_systems_with_such_speech_depend_on_it():
    config = checked(with_speech({"corpus": "babel", "split": "pretrain"}))
    plain = checked(edited("methods.lowrank.distil", {"teacher": "full"}))
    slices, before = sliced(config), sliced(plain)
    names = {f"lowrank_speech.training.{part}.untranscribed" for part in ("losses", "data")}
    for of, method, has in ((slices, "lowrank", True), (slices, "full", False), (before, "lowrank", False)):
        left_out = closures.unused("train", of, wildcards(**ASR, method=method))
        found = closure("lowrank_speech.stages.train", without=[f"lowrank_speech.{name}" for name in left_out])
        assert names & set(found) == (names if has else set())
    for method in ("full", "lowrank"):
        assert slices.train(wildcards(**ASR, method=method)) == before.train(wildcards(**ASR, method=method))
    assert overlaps(config, "asr")["untranscribed"] == [("babel", "pretrain")]
    assert "untranscribed" not in overlaps(plain, "asr")
    config["corpora"]["babel"]["splits"]["more"] = {"utterances": 2, "voices": ["m3"]}
    config["methods"]["lowrank"]["distil"]["untranscribed"] = [{"corpus": "babel", "split": "more"}]
    assert ("babel", "more") in splits_used(config) and ("babel", "more") not in splits_used(plain)
