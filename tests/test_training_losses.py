"""Losses: targets are prepared once, unusable utterances are set aside before the first step, and adding a loss."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lhotse import CutSet

from conftest import REPOSITORY
from lowrank_speech import fingerprints
from lowrank_speech.errors import UserError
from lowrank_speech.features.kept import keep
from lowrank_speech.lang.codes import nearest_language
from lowrank_speech.lang.lm import arpa
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
from lowrank_speech.lang.select import Reason
from lowrank_speech.lowrank.lora import merge
from lowrank_speech.stages import base, train
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.data.targets import targets_of, with_targets
from lowrank_speech.training.losses.loss import Materials
from lowrank_speech.training.losses.objective import make_objective
from stage_world import MODEL, RECIPE, done, make_features, refused, table, train_cfg, train_paths, utterance
from tiny_training import drawn_cuts, drawn_trainer, lang_of, lora, objective_of

# --- adding one

DUMMY = '''
"""The square of the distance of the pooled states to the number of letters of the language's name."""

import torch

from lowrank_speech.training.losses.loss import Errors, Loss, Term


class Dummy(Loss):
    name = "dummy"
    tasks = ("classify",)

    def prepare(self, utterance):
        return len(utterance.language)

    def collate(self, targets):
        return torch.tensor(targets, dtype=torch.float32)

    def forward(self, model, states, frames, target, errors=False):
        found = model.head_logits(states, frames).mean(-1)
        wrong = Errors(int((found.round() != target).sum()), len(target)) if errors else None
        return Term((found - target).square().mean(), len(target), errors=wrong)

    def units(self, target, frames):
        return len(target)
'''
CASE = """        case "dummy":
            from lowrank_speech.training.losses.dummy import Dummy

            return Dummy
"""


def test_a_loss_is_one_file_and_one_line_of_the_registry(world, tmp_path):
    source = shutil.copytree(REPOSITORY / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    losses = source / "lowrank_speech" / "training" / "losses"
    (losses / "dummy.py").write_text(DUMMY)
    registry = (losses / "registry.py").read_text()
    first = '        case "ctc":\n'
    (losses / "registry.py").write_text(registry.replace(first, CASE + first))
    cfg = train_cfg("lid", training={"loss": "dummy", "epochs": 5, "lr": 0.01})
    cfg["task"]["languages"] = ["de", "en"]
    command = [sys.executable, "-m", "lowrank_speech.stages.train", "--cfg", json.dumps(cfg)]
    out = tmp_path / "out"
    for name, path in (train_paths(world, "wav2vec2", out, "lid") | {"manifest": out / "train.json"}).items():
        command += [f"--{name.replace('_', '-')}", str(path)]
    found = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(source)}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"] and rows[0]["loss"] > 1


def test_what_a_training_does_not_use_can_be_left_out_of_its_code_hash():
    """Other losses, other ways to adapt, and augmentation, with what only they import."""
    names = ("lowrank.lora", "lowrank.constraint", "training.losses.seq2seq", "training.losses.language")
    without = tuple(f"lowrank_speech.{name}" for name in (*names, "features.augment"))
    whole, narrow = (fingerprints.closure("lowrank_speech.stages.train", without=left) for left in ((), without))
    only_they = {f"lowrank_speech.{name}" for name in ("lowrank.adapter", "lowrank.product", "corpora.noise")}
    assert whole - narrow >= {*without, *only_they} and "lowrank_speech.training.losses.ctc_losses" in narrow


def test_a_loss_that_does_not_fit_the_task_is_refused(world, tmp_path, capsys):
    paths = train_paths(world, "wav2vec2", tmp_path / "out")
    for loss, message in (
        ("seq2seq", "seq2seq is not a loss for ctc"),
        ("none", "'none' is not a known loss; expected one of: ctc"),
    ):
        cfg = train_cfg(training={"loss": loss})
        refused(capsys, f"training.loss: {message}", train, cfg, tmp_path / "m.json", **paths)


def test_auxiliary_losses_that_do_not_go_with_a_task_are_left_out():
    recipe = TrainConfig(ctc_weight=0.5, language_weight=0.2)
    found = {task: objective_of(task, recipe, lang_of(["de", "en"])) for task in ("ctc", "seq2seq", "classify")}
    assert {task: [loss.name for loss in made.losses] for task, made in found.items()} == {
        "ctc": ["ctc", "language"],
        "seq2seq": ["seq2seq", "ctc", "language"],
        "classify": ["language"],
    }


def test_ctc_beside_a_whisper_with_its_own_tokenizer_is_refused():
    lang = Lang("whisper", None, (), Normaliser(NormaliseConfig()), None)
    recipe = TrainConfig(ctc_weight=0.5)
    with pytest.raises(UserError, match=r"training\.ctc_weight: .* Whisper's own tokenizer; set ctc_weight: 0"):
        make_objective("seq2seq", Materials(recipe, lang, tokens=lang_of(["de"]).tokens))


def test_lfmmi_through_the_stage(world, tmp_path):
    """The n-gram of the denominator is an output; its words are token ids."""
    out = tmp_path / "out"
    cfg = train_cfg(training={"loss": "lfmmi", "lfmmi": {"order": 3}})
    manifest = done(train, cfg, out / "train.json", **train_paths(world, "wav2vec2", out))
    assert manifest["outputs"]["ngram.arpa"]["bytes"] == (out / "ngram.arpa").stat().st_size
    assert manifest["metrics"]["ctc"]["backend"] == "torch" and manifest["metrics"]["ctc_impossible"] == 0
    model = arpa.read(out / "ngram.arpa")
    size = Lang.load(world.lang["wav2vec2"]).tokens.size
    assert model.order == 3 and all(0 < int(word) < size for word in set(model.words) - {"<unk>", "<s>", "</s>"})


def test_lfmmi_for_whisper_is_refused(world, tmp_path, capsys):
    message = "training.loss: lfmmi is not a loss for seq2seq; remove it to train with seq2seq"
    paths = train_paths(world, "whisper", tmp_path / "out")
    refused(capsys, message, train, train_cfg(training={"loss": "lfmmi"}), tmp_path / "m.json", **paths)


# --- targets


@pytest.mark.parametrize("mixed", [False, True])
def test_targets_travel_with_a_cut_through_a_file(mixed, tmp_path):
    cut = list(drawn_cuts())[1]
    if mixed:
        cut = cut.pad(duration=2.0)
    targets = {"ctc": [1, 2, 2], "language": "de", "seq2seq": [[7], [1, 2]]}
    (found,) = keep([with_targets(cut, targets)], tmp_path / "cuts.jsonl")
    assert targets_of(found) == targets and found.duration == cut.duration
    assert found.supervisions[0].text == cut.supervisions[0].text


def test_a_text_is_normalised_once_and_not_in_training(world, tmp_path, monkeypatch):
    calls, real = [], Normaliser.__call__

    def counted(self, text, language=None):
        calls.append(text)
        return real(self, text, language)

    monkeypatch.setattr(Normaliser, "__call__", counted)
    paths = {f"{split}_cuts": world.corpus / f"{split}.jsonl.gz" for split in ("train", "dev")}
    paths |= {"lang": world.lang["whisper"], "scratch": tmp_path / "scratch", "out": tmp_path / "model"}
    recipe = RECIPE | {"ctc_weight": 0.3, "language_weight": 0.2, "accumulate": 2}
    cfg = {"seed": 1, "family": "whisper", "source": "scratch", "model": MODEL["whisper"], "pretrain": recipe}
    done(base, cfg, tmp_path / "base.json", **paths)
    texts = [cut.supervisions[0].text for split in ("train", "dev") for cut in world.cuts[split]]
    assert sorted(calls) == sorted(texts)


def train_with(world, tmp_path, more, split="train"):
    """Train Whisper with more cuts in a split; rows of set_aside.tsv by id, and the manifest's numbers."""
    cuts = make_features(world, "whisper", [*world.cuts[split], *more], tmp_path, split)
    out = tmp_path / "out"
    paths = train_paths(world, "whisper", out, **{f"{split}_cuts": cuts})
    numbers = done(train, train_cfg(), out / "train.json", **paths)["metrics"]
    return {row["id"]: (row["reason"], row["detail"]) for row in table(out / "set_aside.tsv")}, numbers


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_text_that_is_longer_than_the_decoder_is_set_aside(world, tmp_path, split):
    """The decoder of this Whisper takes 24 tokens: the prompt of four, and 20 of text; it never reads the end."""
    more = [
        utterance(tmp_path, "fits", "abcd" * 5, "en", 0.9),
        utterance(tmp_path, "long", "abcd" * 5 + "a", "en", 0.9),
    ]
    rows, numbers = train_with(world, tmp_path, more, split)
    assert rows == {"long": ("text longer than the decoder", "25 tokens, the decoder takes at most 24")}
    assert numbers[f"utterances_{split}"] == 9


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_language_that_whisper_does_not_know_is_set_aside_and_a_region_is_mapped(world, tmp_path, split):
    languages = {"x-fr": "fr", "x-none": None, "y-gb": "en-GB", "y-at": "DE_at"}
    more = [utterance(tmp_path, name, "ab", language) for name, language in languages.items()]
    rows, numbers = train_with(world, tmp_path, more, split)
    known = "the model knows de, en"
    assert rows == {
        "x-fr": ("unknown language", f"'fr'; {known}"),
        "x-none": ("unknown language", f"None; {known}"),
    }
    assert numbers[f"utterances_{split}"] == 10 and numbers["set_aside"] == {"unknown language": 2}


def test_the_prompt_of_a_region_is_that_of_its_language():
    lang = lang_of(["de", "en"])
    objective = objective_of("seq2seq", TrainConfig(), lang)

    def target(language):
        supervision = SimpleNamespace(text="ab", language=language)
        return objective.prepare(SimpleNamespace(supervisions=[supervision]), None)

    assert target("en-GB") == target("EN") == target("en") != target("de")
    assert isinstance(target("fr"), Reason)


def test_an_unknown_language_of_dev_is_set_aside_beside_recognition(world, tmp_path):
    cuts = [*world.cuts["dev"], utterance(tmp_path, "x-fr", "ab", "fr"), utterance(tmp_path, "x-none", "ab", None)]
    CutSet.from_cuts(cuts).to_file(tmp_path / "dev.jsonl.gz")
    paths = {"train_cuts": world.corpus / "train.jsonl.gz", "dev_cuts": tmp_path / "dev.jsonl.gz"}
    paths |= {"lang": world.lang["wav2vec2"], "scratch": tmp_path / "scratch", "out": tmp_path / "model"}
    recipe = RECIPE | {"language_weight": 0.5}
    cfg = {"seed": 1, "family": "wav2vec2", "source": "scratch", "model": MODEL["wav2vec2"], "pretrain": recipe}
    assert done(base, cfg, tmp_path / "base.json", **paths)["metrics"]["set_aside"] == {"unknown language": 2}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("de", "de"),
        ("DE", "de"),
        ("zh-CN", "zh"),
        ("zh-cn", "zh"),
        ("zh-Hant-TW", "zh"),
        ("pt_BR", "pt-BR"),
        ("PT-pt", "pt"),
        ("fr", None),
        ("d", None),
        ("deu", None),
        ("", None),
        (None, None),
    ],
)
def test_the_nearest_language(code, expected):
    assert nearest_language(code, ["de", "pt", "pt-BR", "zh"]) == expected


# --- dropout


@pytest.mark.parametrize("task", ["ctc", "seq2seq"])
def test_the_dropout_of_adapters_is_theirs(task, tmp_path):
    recipe = TrainConfig(epochs=1, batch_seconds=60, dropout=0.1)
    trainer = drawn_trainer(task, tmp_path, recipe, lambda model: lora(model, dropout=0.3))
    cuts = drawn_cuts()
    trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    named = dict(trainer.model.named_modules())
    found = {name: module.p for name, module in named.items() if isinstance(module, torch.nn.Dropout)}
    adapters = {name for name in found if "lora_dropout" in name}
    assert adapters and {found[name] for name in adapters} == {0.3}
    assert {p for name, p in found.items() if name not in adapters} <= {0.1}
    merge(trainer.model.peft)
    assert {module.p for module in trainer.model.modules() if isinstance(module, torch.nn.Dropout)} <= {0.1}
