"""The command identify: probabilities, windows of long recordings, back ends, zero-shot Whisper, errors."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lowrank_speech.decoding.language import scores
from lowrank_speech.inference import languages
from lowrank_speech.inference.languages import Identifier
from lowrank_speech.inference.loaded import load
from lowrank_speech.inference.naming import find
from lowrank_speech.inference.network import open_network
from lowrank_speech.inference.sound import open_sound, samples_of
from using import call, ctc_folder, language_folder, noise, objects, whisper_folder

__all__ = ["call"]
LABELS = ["de", "en", "fr"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Models and recordings."""
    root = tmp_path_factory.mktemp("use")
    names = SimpleNamespace(root=root, lid=language_folder(root / "exp/mine/train/w/lid/full/model"))
    names.whisper, names.ctc = whisper_folder(root / "whisper"), ctc_folder(root / "ctc")
    names.a, names.b = noise(root / "a.wav", 1.3), noise(root / "b.flac", 0.7, 44_100, channels=2)
    return names


def scored(folder, *paths):
    """The log-likelihoods that the decoder of the pipeline gives."""
    net = open_network(find(folder))
    features, lengths = net.batch([net.input(samples_of(open_sound(path))) for path in paths])
    with torch.inference_mode():
        found = scores.open(net, None, scores.Settings())({"features": features, "lengths": lengths})
    return torch.tensor([one.scores for one in found], dtype=torch.float64)


def test_probabilities_are_those_of_the_pipelines_scores(made, call):
    code, out, err = call("identify", made.lid, made.a, made.b, "--format", "json")
    assert code == 0 and "not calibrated" in err
    found = objects(out)
    wanted = scored(made.lid, made.a, made.b).softmax(-1).tolist()
    for path, row in zip((made.a, made.b), wanted, strict=True):
        one = found[str(path)]
        assert list(one) == ["audio", "language", "probabilities"]
        assert [one["probabilities"][label] for label in LABELS] == pytest.approx(row, abs=1e-6)
        assert one["language"] == LABELS[int(np.argmax(row))] == next(iter(one["probabilities"]))
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-9)


def test_some_languages(made, call):
    whole = json.loads(call("identify", made.lid, made.a, "--format", "json")[1])["probabilities"]
    some = json.loads(call("identify", made.lid, made.a, "--format", "json", "--languages", "en, fr")[1])[
        "probabilities"
    ]
    assert set(some) == {"en", "fr"} and sum(some.values()) == pytest.approx(1)
    assert some["en"] / some["fr"] == pytest.approx(whole["en"] / whole["fr"])


def test_text(made, call):
    _, one, _ = call("identify", made.lid, made.a)
    language, probability = one.rstrip("\n").split("\t")
    assert language in LABELS and 1 / 3 <= float(probability) <= 1
    _, both, _ = call("identify", made.lid, made.a, made.b)
    assert f"{made.a}\t{one}" in both and len(both.splitlines()) == 2


def test_a_long_recording_is_the_mean_of_its_windows(made, tmp_path, monkeypatch):
    monkeypatch.setattr(languages, "WINDOW", 2.0)
    made_with = Identifier(open_network(find(made.lid)))
    assert made_with.longest == 2.0
    path = noise(tmp_path / "long.wav", 7.1)
    with torch.inference_mode():
        found = made_with.long(open_sound(path))
    samples = samples_of(open_sound(path))
    windows = made_with.windows(len(samples))
    assert len(windows) == 4 and windows[0][0] == 0 and windows[-1][1] == len(samples)
    assert max(end - start for start, end in windows) - min(end - start for start, end in windows) <= 1
    with torch.inference_mode():
        rows = torch.stack([made_with.scores([made_with.input(samples[s:e])])[0] for s, e in windows])
    wanted = dict(zip(LABELS, rows.mean(0).softmax(-1).tolist(), strict=True))
    assert found.probabilities == pytest.approx(wanted) and found.seconds == pytest.approx(7.1)


def test_whisper_uses_its_language_tokens(made, tmp_path, call):
    """The probabilities are those of a softmax over the language tokens after the start of the transcript."""
    _, out, _ = call("identify", made.whisper, made.a, "--format", "json", "--languages", "de,en")
    found = json.loads(out)["probabilities"]
    net = open_network(find(made.whisper))
    features, lengths = net.batch([net.input(samples_of(open_sound(made.a)))])
    with torch.inference_mode():
        states = net.model.body.encoder(net.model.pad_mel(features, lengths)).last_hidden_state
        start = torch.tensor([[net.model.config.decoder_start_token_id]])
        logits = net.model.decoder_logits(states, start)[0, -1]
    ids = net.model.hf.generation_config.lang_to_id
    wanted = logits[[ids["<|de|>"], ids["<|en|>"]]].softmax(-1).tolist()
    assert [found["de"], found["en"]] == pytest.approx(wanted, abs=1e-5)
    long = noise(tmp_path / "long.wav", 9.0)
    assert sum(load(made.whisper).identify(long).probabilities.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{ctc}", "{a}"], "is a model for speech recognition; use `lowrank-speech transcribe`"),
        (["{lid}", "{a}", "--languages", "de,xx"], "does not know 'xx'; expected some of: de, en, fr"),
        (["{lid}", "{a}", "--languages", "de"], "name at least two"),
        (["{whisper}", "{a}", "--languages", "de,zh"], "does not know 'zh'"),
        (["{lid}", "{root}/nothing/*.wav"], "matches no file"),
        (["{root}/exp/mine:w/lid/ful", "{a}"], "expected {root}/exp/mine:SYSTEM with one of: w/lid/full"),
    ],
)
def test_wrong_arguments(made, call, argv, message):
    code, out, err = call("identify", *(text.format(**vars(made)) for text in argv))
    assert code == 2 and not out and message.format(**vars(made)) in err
    assert err.startswith("error: ") and len(err.strip().splitlines()) == 1


def test_faults_are_named_and_the_rest_goes_on(made, tmp_path, call):
    (tmp_path / "text.wav").write_text("no audio")
    code, out, err = call("identify", made.lid, tmp_path / "text.wav", made.a, "--format", "json")
    found = objects(out)
    assert code == 1 and found[str(made.a)]["language"] in LABELS
    bad = found[str(tmp_path / "text.wav")]
    assert bad["language"] is None and bad["probabilities"] is None and "is not audio" in bad["error"]
    assert f"error: {bad['error']}" in err


# -- back ends


def backend(folder, weight=0.5, offsets=(0.0, 1.0, 0.0), columns=LABELS, **changed):
    """A trained back end, as the stage backend writes it: scaled scores and an offset for each language."""
    weights = (weight * np.eye(len(columns))).tolist()
    inputs = [{"system": "w/lid/full", "columns": list(columns)}]
    found = {"kind": "affine", "on": "scores", "languages": list(columns), "inputs": inputs}
    found |= {"weights": [weights], "offsets": list(offsets)} | changed
    folder.mkdir(parents=True)
    (folder / "backend.json").write_text(json.dumps({"stage": "backend", "metrics": {"backend": found}}))
    return folder / "backend.json"


@pytest.fixture
def calibrated(made, tmp_path):
    """An experiment with the same system, for back ends of a test."""
    link = tmp_path / "exp"
    link.mkdir()
    (link / "train").symlink_to(made.root / "exp/mine/train")
    return link


def test_the_back_end_of_the_system_calibrates(made, calibrated, call):
    file = backend(calibrated / "backend/w/lid/full/affine")
    argv = (f"{calibrated}:w/lid/full", made.a, "--format", "json")
    code, out, err = call("identify", *argv)
    found = json.loads(out)["probabilities"]
    logits = 0.5 * scored(made.lid, made.a)[0] + torch.tensor([0.0, 1.0, 0.0])
    assert code == 0 and not err
    assert [found[label] for label in LABELS] == pytest.approx(logits.softmax(-1).tolist(), abs=1e-6)
    assert json.loads(call("identify", made.lid, *argv[1:], "--backend", file)[1])["probabilities"] == pytest.approx(
        found
    )
    code, out, err = call("identify", *argv, "--backend", "none")
    assert "not calibrated" in err and json.loads(out)["probabilities"] != pytest.approx(found)
    backend(calibrated / "backend/w/lid/full/other")
    code, _, err = call("identify", *argv)
    assert code == 2 and "has several back ends" in err and "other/backend.json" in err


def test_a_back_end_for_other_languages_too(made, calibrated, call):
    """A column that the model does not have is that of other languages: the mean of the others' likelihoods."""
    columns = [*LABELS, "other"]
    file = backend(calibrated / "open", offsets=(0.0,) * 4, columns=columns)
    argv = ("identify", made.lid, made.a, "--backend", file, "--format", "json")
    code, out, err = call(*argv)
    assert code == 0 and set(json.loads(out)["probabilities"]) == set(columns), err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"columns": ["de", "en", "es"]}, "the back end is for de, en, es, but the model knows de, en, fr"),
        ({"on": "embeddings"}, "reads embeddings"),
    ],
)
def test_back_ends_of_other_systems(made, calibrated, call, changed, message):
    file = backend(calibrated / "wrong", **changed)
    code, _, err = call("identify", made.lid, made.a, "--backend", file)
    assert code == 2 and message in err
    code, _, err = call("identify", made.lid, made.a, "--backend", calibrated / "absent.json")
    assert code == 2 and "absent.json" in err


# -- real speech


@pytest.mark.slow
def test_a_published_whisper_on_real_speech(speech_models, speech_data, call):
    if not (speech_models / "whisper-base").is_dir():
        pytest.skip("no whisper-base in $SPEECH_MODELS")
    rows = [line.split("\t") for line in (speech_data / "voices/dev.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    long = {row[2]: row for row in rows if float(row[4]) > 4}
    paths = {str(speech_data / "voices" / row[1]): language for language, row in long.items()}
    code, out, _ = call(
        *("identify", speech_models / "whisper-base", *paths, "--languages", ",".join(long), "--format", "json")
    )
    found = {name: one["language"] for name, one in objects(out).items()}
    assert code == 0 and sum(found[name] == language for name, language in paths.items()) >= len(paths) - 1
