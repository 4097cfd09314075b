"""A published Whisper on real speech: which text it expects, what the normalisers of scoring make of its output, and
its decoders."""

import difflib
from types import SimpleNamespace

import pytest
import soundfile
import torch

from lowrank_speech.decoding.whisper import beam, greedy
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


def decoded(folder, model, mels, module=greedy, **keys):
    """Hypotheses of log-mels as a batch."""
    source, lang = SimpleNamespace(model=model, folder=folder), SimpleNamespace(tokens=None, leading_space=True)
    cuts = [SimpleNamespace(id=str(i), supervisions=[SimpleNamespace(language="en")]) for i in range(len(mels))]
    features = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
    batch = {"cuts": cuts, "features": features, "lengths": torch.tensor([len(mel) for mel in mels])}
    with torch.inference_mode():
        return module.open(source, lang, module.Settings(**keys))(batch)


@pytest.mark.slow
def test_beam_search_finds_likelier_texts_than_greedy(whisper, spoken):
    model, folder = whisper
    mels = [mel for mel, _ in spoken.values()]
    first = decoded(folder, model, mels)
    found = decoded(folder, model, mels, beam, beam=3, nbest=3)

    def mean(row):
        return row.score / (len(row.ids) + 1)

    assert all(mean(row) >= mean(other) - 1e-3 for row, other in zip(found, first, strict=True))
    assert any(row.ids != other.ids for row, other in zip(found, first, strict=True))
    for row in found:
        means = [mean(other) for other in row.nbest]
        assert means == sorted(means, reverse=True) and len({other.text for other in row.nbest}) == 3


@pytest.mark.slow
def test_a_long_recording_is_what_its_utterances_are(speech_data, whisper):
    """Five utterances of about 9 s, joined: about the same words in both ways, at their times."""
    model, folder = whisper
    root = speech_data / "voices"
    rows = [line.split("\t") for line in (root / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    audio = [row[1] for row in rows if row[2] == "en" and float(row[4]) > 8 and row[5].strip()][:5]
    waves = [torch.from_numpy(soundfile.read(root / name, dtype="float32")[0]) for name in audio]
    whole = log_mel(torch.cat(waves))
    assert len(whole) > 3200
    alone = decoded(folder, model, [log_mel(wave) for wave in waves], word_times=True)
    expected, begin = [], 0.0
    for wave, row in zip(waves, alone, strict=True):
        expected += [(word.text.lower().strip(".,?!"), begin + word.start) for word in row.words]
        begin += len(wave) / 16_000
    for long in ("sequential", "chunks"):
        (row,) = decoded(folder, model, [whole], long=long, word_times=True)
        starts = [word.start for word in row.words]
        assert starts == sorted(starts) or long == "chunks"
        assert all(0 <= word.start <= word.end <= begin + 0.03 for word in row.words)
        said = [word.text.lower().strip(".,?!") for word in row.words]
        assert row.text.split() == [word.text for word in row.words]
        assert wer({"u": ([text for text, _ in expected], said)}) < 0.25
        # Words that both have in the same order are at about the same time.
        matcher = difflib.SequenceMatcher(None, [text for text, _ in expected], said, autojunk=False)
        off = [
            abs(expected[match.a + i][1] - starts[match.b + i])
            for match in matcher.get_matching_blocks()
            for i in range(match.size)
        ]
        assert len(off) > 0.5 * len(expected) and sorted(off)[len(off) // 2] < 0.2
