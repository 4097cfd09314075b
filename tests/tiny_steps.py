"""Trainings without files: cuts whose speech is drawn from their names, and trainers of tiny models on them."""

import zlib

import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from lowrank_speech.features.batches import Loader
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
from lowrank_speech.lang.tokens import CharTokens
from lowrank_speech.lowrank.apply import factorise
from lowrank_speech.lowrank.constraint import SemiOrthogonal
from lowrank_speech.models.folder import to_task
from lowrank_speech.models.sources import scratch_wav2vec2, scratch_whisper, set_dropout
from lowrank_speech.stages.train import Lora
from lowrank_speech.training.adapt import freeze_for, lora_on
from lowrank_speech.training.loop import Trainer
from lowrank_speech.training.objective import Objective
from tiny_models import WAV2VEC2, WHISPER

RATE = 16_000
FEED_FORWARD = ("_dense", ".fc1", ".fc2")


def tiny_cuts(texts=("ab", "ba c", "aab", "cc", "bca", "acb", "a", "cab")):
    """A cut of each text, 0.15 s for each of its letters."""
    made = []
    for i, text in enumerate(texts):
        seconds = 0.15 * len(text)
        recording = Recording(f"u{i}", [], RATE, round(RATE * seconds), seconds)
        language = "de" if i % 2 else "en"
        supervision = SupervisionSegment(f"u{i}", f"u{i}", 0.0, seconds, text=text, language=language)
        made.append(MonoCut(f"u{i}", 0.0, seconds, 0, [supervision], recording=recording))
    return CutSet.from_cuts(made)


def tiny_setup(task, seed=1):
    """(model, lang, loader) of a task: ctc, seq2seq or classify."""
    languages = ["de", "en"] if task == "seq2seq" else None
    lang = Lang("char", CharTokens.build("abc", languages), ("de", "en"), Normaliser(NormaliseConfig()), "0" * 64)

    def inputs(cut):
        generator = torch.Generator().manual_seed(zlib.crc32(cut.id.encode()))
        shape = (round(100 * cut.duration), 12) if task == "seq2seq" else (round(RATE * cut.duration),)
        return torch.randn(shape, generator=generator)

    if task == "seq2seq":
        return scratch_whisper(WHISPER, lang.tokens, seed), lang, Loader(inputs)
    model = scratch_wav2vec2(WAV2VEC2, lang.tokens.size, seed)
    if task == "classify":
        model, _ = to_task(model, "classify", 2, ["de", "en"], seed=seed)
    return model, lang, Loader(inputs)


def full(model):
    set_dropout(model, 0.0)
    freeze_for(model, "full", trains_head=True)


def low_rank(model, rank=4):
    names = [n for n, m in model.hf.named_modules() if isinstance(m, torch.nn.Linear) and n.endswith(FEED_FORWARD)]
    model.plan = dict.fromkeys(names, rank)
    factorise(model.hf, model.plan)
    full(model)
    return SemiOrthogonal(model.hf, "floating", 1.0, 0.5, None, 1)


def lora(model, **settings):
    set_dropout(model, 0.0)
    freeze_for(model, "lora", trains_head=True)
    torch.manual_seed(3)
    model.peft = lora_on(model, Lora(rank=2, **settings))


def low_rank_lora(model):
    low_rank(model)
    lora(model)


def tiny_trainer(task, scratch, config, prepare=full):
    model, lang, loader = tiny_setup(task)
    constraint = prepare(model)
    torch.manual_seed(5)
    objective = Objective(model, config, lang, lang.tokens, ["de", "en"])
    return Trainer(model, objective, config, 1, scratch, "key", loader, constraint)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.hf.named_parameters()}
