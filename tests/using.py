"""Tiny models and recordings for the commands transcribe and identify, and a command line for them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet

from lowrank_speech import cli
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.tokenizer_files import tokenizer_files
from lowrank_speech.models.build import build
from lowrank_speech.models.folder import save_model
from lowrank_speech.models.tasks import to_task
from lowrank_speech.stages import lang
from stage_world import TEXTS, done, utterance
from test_whisper_window import published
from tiny_models import member, plain
from whisper_models import TIMES, TOKENS

LETTERS = "ABCDEFG'"
RATE = 16_000


def whisper_folder(folder, special=TOKENS, **changed):
    """A published Whisper with all special tokens and a window of 4 s."""
    settings = {"init_std": 0.6, "max_target_positions": 24, "d_model": 32, "num_mel_bins": 20} | changed
    return published(folder, special_tokens=special, times=TIMES, **settings)


def ctc_folder(folder, blank=0, **config):
    """A published CTC model of upper-case letters, whose blank has some number."""
    symbols = ["<s>", "</s>", "<unk>", "|", *LETTERS]
    symbols[blank:blank] = ["<pad>"]
    hf = plain("wav2vec2", vocab_size=len(symbols), pad_token_id=blank, **config)
    hf.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({symbol: i for i, symbol in enumerate(symbols)}))
    said = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "sampling_rate": RATE}))
    return folder


def local(hf):
    """Make a model hear only what is near: without attention. Returns it."""
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if ".out_proj." in name:
                parameter.zero_()
    return hf


def experiment(folder):
    """An experiment with a CTC system of characters, m/asr/full, whose folder has its token set."""
    texts = [(code, text) for code, listed in TEXTS.items() for text in listed]
    cuts = folder / "train.jsonl.gz"
    CutSet.from_cuts(utterance(folder, f"u{i}", text, code) for i, (code, text) in enumerate(texts)).to_file(cuts)
    out = folder / "exp/mine/lang/chars"
    done(lang, {"seed": 1, "lang": {"kind": "char", "for": "ctc"}}, out / "lang.json", cuts=cuts, out=out)
    found = Lang.load(out)
    torch.manual_seed(3)
    config = member("wav2vec2", vocab_size=found.tokens.size).config
    model = build("ctc", config)
    model.meta.lang_sha256 = found.sha256
    system = folder / "exp/mine/train/m/asr/full"
    save_model(model, system / "model", files=tokenizer_files(found.tokens))
    (system / "train.json").write_text("{}")
    return SimpleNamespace(folder=folder / "exp/mine", model=system / "model", lang=out, cuts=cuts)


def language_folder(folder, labels=("de", "en", "fr"), priors=(0.5, 0.3, 0.2)):
    """A trained classifier of languages."""
    model, _ = to_task(member("wav2vec2", "body"), "classify", len(labels), list(labels), seed=2)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter)))
    model.meta.priors = list(priors)
    save_model(model, folder)
    return folder


def noise(path, seconds, rate=RATE, seed=0, channels=1, loud=0.1):
    """A recording of noise whose loudness changes, so that a network hears different things."""
    rng = np.random.default_rng([seed, round(seconds * 1000)])
    time = np.arange(int(seconds * rate)) / rate
    wave = rng.standard_normal((len(time), channels)) * (0.2 + np.abs(np.sin(2.3 * time + seed)))[:, None] * loud
    soundfile.write(path, np.clip(wave, -1, 1).astype(np.float32), rate)
    return path


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command: exit code, stdout, stderr."""

    def call(*argv):
        with pytest.raises(SystemExit) as left:
            cli.main([str(a) for a in argv])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return left.value.code or 0, captured.out, captured.err

    return call


def objects(text):
    """The JSON objects of a text, by ``audio``."""
    found = [json.loads(line) for line in text.splitlines()]
    return {one["audio"]: one for one in found}
