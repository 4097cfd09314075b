"""A tiny corpus of tones and the model stages run on it, for the fixtures `world` and `systems`."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from lowrank_speech.artefact import read_cost
from lowrank_speech.models.tasks import body_state
from lowrank_speech.stages import base, decode, features, lang, train
from tiny_models import WAV2VEC2, WHISPER

TEXTS = {"de": ["ab", "Bä!", "abä", "bb"], "en": ["cd", "dc", "C d", "dd"]}
PITCH = {c: 300 + 350 * i for i, c in enumerate("abcdäxz")}
FAMILIES = ("wav2vec2", "whisper")
KIND = {"wav2vec2": "conv", "whisper": "logmel"}
MODEL = {"wav2vec2": {**WAV2VEC2, "conv_kernel": [256, 8], "conv_stride": [40, 8]}, "whisper": WHISPER}
RECIPE = {"epochs": 2, "batch_seconds": 2.0, "lr": 0.003, "head_lr": 0.01, "dropout": 0.0, "ctc": {"backend": "torch"}}
CTC = {"backend": "torch", "version": torch.__version__}


def utterance(folder, name, text, language, seconds=None, speaker="s"):
    """A cut of its own file: every letter is a tone of 0.15 s."""
    tones = [PITCH.get(c, 0) for c in (text or "ab").lower()]
    time = np.arange(int(16_000 * (seconds / len(tones) if seconds else 0.15))) / 16_000
    rng = np.random.default_rng(list(name.encode()))
    wave = np.concatenate([0.3 * np.sin(2 * np.pi * pitch * time) for pitch in tones])
    wave += 0.01 * rng.standard_normal(len(wave))
    soundfile.write(folder / f"{name}.wav", wave.astype(np.float32), 16_000)
    recording = Recording.from_file(folder / f"{name}.wav")
    supervision = SupervisionSegment(name, name, 0.0, recording.duration, text=text, language=language, speaker=speaker)
    return MonoCut(name, 0.0, recording.duration, 0, [supervision], recording=recording)


def run(stage, cfg, manifest, **paths):
    """(exit code, manifest with the run's ``cost``) of a stage's ``main``."""
    arguments = ["--cfg", json.dumps(cfg), "--manifest", str(manifest)]
    for name, path in paths.items():
        arguments += [f"--{name.replace('_', '-')}", *map(str, path if isinstance(path, list) else [path])]
    code = stage.main(arguments)
    return code, json.loads(manifest.read_text(encoding="utf-8")) | {"cost": read_cost(manifest)} if code == 0 else None


def done(stage, cfg, manifest, **paths):
    code, record = run(stage, cfg, manifest, **paths)
    assert code == 0
    assert record["stage"] == stage.__name__.rpartition(".")[2]
    return record


def refused(capsys, message, stage, cfg, manifest, **paths):
    """The stage ends with code 2, leaves no manifest, and says ``message`` in its last line."""
    capsys.readouterr()
    code, _ = run(stage, cfg, manifest, **paths)
    shown = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and not manifest.exists()
    assert "ERROR" in shown[-1] and message in shown[-1], shown[-1]
    assert not any("Traceback" in line for line in shown)


def make_base(world, family, folder, seed=1, **keys):
    cfg = {"seed": seed, "family": family, "source": "scratch", "model": MODEL[family], "pretrain": RECIPE, **keys}
    paths = {f"{split}_cuts": world.corpus / f"{split}.jsonl.gz" for split in ("train", "dev")}
    out = {"out": folder / "model", "scratch": folder / "scratch"}
    return done(base, cfg, folder / "base.json", lang=world.lang[family], **paths, **out)


def make_features(world, family, cuts, folder, split):
    """Features of ``cuts``; the path of the cuts that have them."""
    source = folder / f"raw-{split}.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(source)
    out = folder / f"{split}.jsonl.gz"
    done(features, {"kind": KIND[family]}, folder / f"{split}.json", cuts=source, base=world.base[family], out=out)
    return out


def train_paths(world, family, folder, task="asr", **changed):
    paths = {f"{split}_cuts": world.features[family] / f"{split}.jsonl.gz" for split in ("train", "dev")}
    paths |= {"model": world.base[family], "out": folder, "scratch": folder / "scratch"}
    return paths | ({"lang": world.lang[family]} if task == "asr" else {}) | changed


def train_cfg(task="asr", adapt="full", seed=1, **keys):
    recipe = RECIPE | keys.pop("training", {})
    return {"seed": seed, "task": {"type": task}, "adapt": adapt, "training": recipe, **keys}


def top(record):
    """The files and folders that hold a manifest's outputs, without what is in the folders."""
    return {name.partition("/")[0] for name in record["outputs"]}


def moved_in_body(before, after):
    """Names of the body's weights that differ; masked_spec_embed, which nothing uses, is left out."""
    old, new = (body_state(model)[0] for model in (before, after))
    assert new.keys() <= old.keys()
    return {n for n, v in new.items() if not torch.equal(v, old[n]) and n != "masked_spec_embed"}


def table(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def hypotheses(folder):
    """The lines of hypotheses.jsonl."""
    return [json.loads(line) for line in (folder / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()]


def decode_with(world, systems, family, task, folder, cuts=None, **keys):
    paths = {"model": systems[family, task].model, "out": folder}
    paths["cuts"] = cuts or world.features[family] / "test.jsonl.gz"
    if task == "asr":
        paths["lang"] = world.lang[family]
    cfg = {"task": {"type": task}, "decoder": {"batch_seconds": 2.0, **keys}}
    return done(decode, cfg, folder / "decode.json", **paths)


def make_world(root):
    """Corpus, token sets, and for both families a base and its features."""
    found = SimpleNamespace(root=root, corpus=root / "corpus", lang={}, base={}, features={}, records={}, cuts={})
    (root / "wav").mkdir()
    found.corpus.mkdir()
    for split in ("train", "dev", "test"):
        found.cuts[split] = [
            utterance(root / "wav", f"{split}-{language}{i}", text, language, speaker=f"{split}{i % 2}")
            for language, texts in TEXTS.items()
            for i, text in enumerate(texts)
        ]
        CutSet.from_cuts(found.cuts[split]).to_file(found.corpus / f"{split}.jsonl.gz")
    for family, purpose in (("wav2vec2", "ctc"), ("whisper", "seq2seq")):
        folder = found.lang[family] = root / "lang" / purpose
        cfg = {"seed": 1, "lang": {"kind": "char", "for": purpose}}
        done(lang, cfg, folder / "lang.json", cuts=found.corpus / "train.jsonl.gz", out=folder)
        found.records[family] = make_base(found, family, root / family)
        found.base[family] = root / family / "model"
        found.features[family] = root / family / "features"
        for split, cuts in found.cuts.items():
            found.features[family].mkdir(exist_ok=True)
            make_features(found, family, cuts, found.features[family], split)
    return found


def make_systems(world):
    """A trained system of each family and task."""
    found = {}
    for family in FAMILIES:
        for task in ("asr", "lid"):
            folder = world.root / family / task
            record = done(train, train_cfg(task), folder / "train.json", **train_paths(world, family, folder, task))
            found[family, task] = SimpleNamespace(folder=folder, model=folder / "model", record=record)
    return found


def odd_cuts(tmp_path):
    return [
        utterance(tmp_path, "x-none", None, "en"),
        utterance(tmp_path, "x-blank", "  ", "en"),
        utterance(tmp_path, "x-signs", "?!...", "de"),
        utterance(tmp_path, "x-dense", "abcd" * 20, "en", seconds=0.4),
        utterance(tmp_path, "x-long", "abcd", "en", seconds=1.3),
    ]
