"""Trainings of tiny models on utterances of tones, or, without files, on speech generated from utterance names."""

import zlib

import numpy as np
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from lowrank_speech.features.batches import Loader
from lowrank_speech.features.inputs import Inputs
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
from lowrank_speech.lang.tokens import CharTokens
from lowrank_speech.lowrank.constraint import SemiOrthogonal
from lowrank_speech.lowrank.factorise import factorise
from lowrank_speech.lowrank.lora_settings import LoraSettings
from lowrank_speech.models.dropout import set_dropout
from lowrank_speech.models.scratch import from_scratch
from lowrank_speech.models.tasks import to_task
from lowrank_speech.training.adapt import freeze_for, lora_on
from lowrank_speech.training.config import Runtime, TrainConfig
from lowrank_speech.training.data.targets import with_targets
from lowrank_speech.training.loop import Trainer
from lowrank_speech.training.losses.loss import Materials, Utterance
from lowrank_speech.training.losses.objective import make_objective
from tiny_models import WAV2VEC2, WHISPER

RATE = 16_000
TEXTS = ["ab", "ba c", "Aab!", "cc", "bca", "acb"]
FEED_FORWARD = ("_dense", ".fc1", ".fc2")


def make_cuts(folder):
    """Six utterances in ``folder``; every character is a tone of its own."""
    rng, made = np.random.default_rng(1), []
    time = np.arange(2400) / 16_000
    for i, text in enumerate(TEXTS):
        tones = [np.sin(2 * np.pi * (300 + 400 * "abc".find(c)) * time) * (c in "abc") for c in text.lower()]
        wave = 0.3 * np.concatenate(tones) + 0.01 * rng.standard_normal(2400 * len(tones))
        soundfile.write(folder / f"u{i}.wav", wave.astype(np.float32), 16_000)
        recording = Recording.from_file(folder / f"u{i}.wav")
        language = "de" if i % 2 else "en"
        supervision = SupervisionSegment(f"u{i}", f"u{i}", 0.0, recording.duration, text=text, language=language)
        made.append(MonoCut(f"u{i}", 0.0, recording.duration, 0, [supervision], recording=recording))
    return ready(made)


def ready(cuts):
    """The cuts with their targets for every task, as a training prepares them."""
    losses = [objective_of(task, TrainConfig(), lang_of(["de", "en"])).task for task in ("ctc", "seq2seq", "classify")]
    made = []
    for cut in cuts:
        utterance = Utterance(cut, losses[0].materials.lang, lambda _: 10**6)
        targets = {loss.name: loss.prepare(utterance) for loss in losses}
        made.append(with_targets(cut, {**targets, "lfmmi": targets["ctc"]}))
    return CutSet.from_cuts(made)


def objective_of(task, config, lang, labels=("de", "en")):
    """The objective of a task, without the heads of auxiliary losses (``build``)."""
    return make_objective(task, Materials(config, lang, lang.tokens, labels=list(labels)))


def drawn_cuts(texts=("ab", "ba c", "aab", "cc", "bca", "acb", "a", "cab")):
    """A cut of each text, 0.15 s for each of its letters, without a file; see ``drawn``."""
    made = []
    for i, text in enumerate(texts):
        seconds = 0.15 * len(text)
        recording = Recording(f"u{i}", [], RATE, round(RATE * seconds), seconds)
        language = "de" if i % 2 else "en"
        supervision = SupervisionSegment(f"u{i}", f"u{i}", 0.0, seconds, text=text, language=language)
        made.append(MonoCut(f"u{i}", 0.0, seconds, 0, [supervision], recording=recording))
    return ready(made)


def drawn(task):
    """A loader that draws a cut's input from its name."""

    def inputs(cut, _=None):
        generator = torch.Generator().manual_seed(zlib.crc32(cut.id.encode()))
        shape = (round(100 * cut.duration), 12) if task == "seq2seq" else (round(RATE * cut.duration),)
        return torch.randn(shape, generator=generator)

    return Loader(inputs)


def lang_of(languages=None):
    return Lang("char", CharTokens.build("abc", languages), ("de", "en"), Normaliser(NormaliseConfig()), "0" * 64)


def setup_of(task, seed=1):
    """(model, lang, loader) of a task: ctc, seq2seq or classify."""
    if task == "seq2seq":
        lang = lang_of(["de", "en"])
        return from_scratch("whisper", WHISPER, lang.tokens, seed), lang, Loader(Inputs("logmel", n_mels=12), 60)
    lang = lang_of()
    model = from_scratch("wav2vec2", WAV2VEC2, lang.tokens, seed, "random")
    if task == "classify":
        model, _ = to_task(model, "classify", 2, ["de", "en"], seed=seed)
    return model, lang, Loader(Inputs("waveform"), 60)


def trainer_of(task, scratch, config, prepare=None, key="key", loader=None, **runtime):
    """A trainer; ``runtime``: keys of ``Runtime``."""
    model, lang, usual = setup_of(task)
    constraint = prepare(model) if prepare else None
    if loader is not None:  # the objective may draw the weights of heads
        torch.manual_seed(5)
    objective = objective_of(task, config, lang)
    objective.fit(drawn_cuts)
    objective.build(model)
    return Trainer(model, objective, config, 1, scratch, key, loader or usual, constraint, runtime=Runtime(**runtime))


def drawn_trainer(task, scratch, config, prepare=None, **runtime):
    """A trainer for ``drawn_cuts``. ``prepare``: by default ``full``."""
    return trainer_of(task, scratch, config, prepare or full, loader=drawn(task), **runtime)


def measured(trainer, train, dev, metrics):
    """Train to the end; metrics and cost together."""
    outcome = trainer.run(train, dev, metrics)
    return outcome.metrics | outcome.cost


def trained(trainer):
    """Parameters of the model (without auxiliary heads) that train, by name."""
    return {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}


# --- what trains


def full(model):
    set_dropout(model, 0.0)
    freeze_for(model, "full", trains_head=True)


def low_rank(model, rank=4):
    names = [n for n, m in model.body.named_modules() if isinstance(m, torch.nn.Linear) and n.endswith(FEED_FORWARD)]
    model.plan = dict.fromkeys(names, rank)
    factorise(model.body, model.plan)
    full(model)
    return SemiOrthogonal(model.body, "floating", 1.0, 0.5, None, 1)


def lora(model, **settings):
    set_dropout(model, 0.0)
    freeze_for(model, "lora", trains_head=True)
    torch.manual_seed(3)
    model.peft = lora_on(model, LoraSettings(rank=2, **settings))


def low_rank_lora(model):
    low_rank(model)
    lora(model)


def interrupt(trainer, step):
    """End the training before the update number ``step``, after what precedes it; None: never."""
    real = trainer.stepper.step

    def stepped(*arguments):
        if trainer.step == step:
            raise KeyboardInterrupt
        return real(*arguments)

    trainer.stepper.step = stepped


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
