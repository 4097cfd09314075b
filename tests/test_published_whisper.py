"""A published Whisper on real speech: which text it expects, and what the normalisers of scoring make of its output."""

import pytest
import soundfile
import torch

from lowrank_speech.features.logmel import log_mel
from lowrank_speech.lang.comparison import Comparison
from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
from lowrank_speech.models.sources import open_dense
from lowrank_speech.models.text import WhisperTokens
from lowrank_speech.scoring import asr
from whisper_decoding import generate

WHISPERS = Normaliser(NormaliseConfig(case="sentence", punctuation="keep", final_stop=True))
IDS = ("2897-028970294", "2897-028970146", "9631-096310004", "2014-020140121", "5432-054320136", "0736-007360250")


@pytest.fixture(scope="module")
def whisper(speech_models):
    """Model and folder of tiny.en."""
    return open_dense(speech_models / "whisper-tiny.en")


@pytest.fixture(scope="module")
def spoken(speech_data):
    """Id -> (log-mel, reference) of a few sentences of speechocean762's dev directory."""
    root = speech_data / "speechocean762"
    texts, audio = (
        dict(line.split(maxsplit=1) for line in (root / "dev" / name).read_text(encoding="utf-8").splitlines())
        for name in ("text", "wav.scp")
    )
    samples = {name: soundfile.read(root / audio[name], dtype="float32")[0] for name in IDS}
    return {name: (log_mel(torch.from_numpy(wave)), texts[name]) for name, wave in samples.items()}


@pytest.mark.slow
@torch.no_grad()
def test_whispers_own_text_costs_it_least(whisper, spoken):
    model, folder = whisper
    losses = {}
    for style, normalise in (("house", Normaliser()), ("whisper", WHISPERS)):
        for leading in (False, True):
            tokens, total = WhisperTokens(folder, leading), 0.0
            for mel, text in spoken.values():
                states, _ = model.states(mel[None], torch.tensor([len(mel)]))
                ids = [*tokens.prompt("en"), *tokens.encode(normalise(text, "en"), "en"), tokens.eot]
                logits = model.decoder_logits(states, torch.tensor([ids[:-1]]))[0]
                first = len(tokens.prompt("en")) - 1
                total += float(torch.nn.functional.cross_entropy(logits[first:], torch.tensor(ids[first + 1 :])))
            losses[style, leading] = total / len(spoken)
    assert losses["house", True] < 0.8 * losses["house", False], losses
    assert losses["whisper", True] < 0.8 * losses["whisper", False], losses
    assert losses["whisper", True] < losses["house", True], losses


@pytest.mark.slow
@torch.no_grad()
def test_normalisers_on_its_output(whisper, spoken):
    model, folder = whisper
    tokens = WhisperTokens(folder)
    pairs = {}
    for name, (mel, text) in spoken.items():
        row = generate(model, mel[None], torch.tensor([len(mel)]), tokens, None)[0]
        pairs[name] = text.split(), tokens.decode(list(row.ids)).split()
    rates = {"none": wer(pairs)}
    for kind in ("house", "whisper-basic", "whisper-english"):
        normalised, emptied = asr.normalised(pairs, Comparison(kind), dict.fromkeys(pairs, "en"))
        assert not emptied
        rates[kind] = wer(normalised)
    assert rates["none"] > 0.8 and all(rate < 0.7 * rates["none"] for kind, rate in rates.items() if kind != "none")


def wer(pairs) -> float:
    table = asr.per_utterance(pairs)
    return table[["substitutions", "deletions", "insertions"]].sum().sum() / table["words"].sum()
