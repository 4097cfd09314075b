"""Models by name, and the Python API: ``load(name)`` with ``transcribe``, ``identify`` and ``logits``."""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import lowrank_speech
from conftest import REPOSITORY
from lowrank_speech import load
from lowrank_speech.errors import UserError
from lowrank_speech.features.inputs import inputs_of
from lowrank_speech.inference.naming import find
from lowrank_speech.models.folder import load_model
from using import call, experiment, language_folder, noise, objects, whisper_folder

__all__ = ["call"]


def fake_model(folder, **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2", **config}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def refused(*arguments, **keys):
    with pytest.raises(UserError) as error:
        find(*arguments, **keys)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for system in ("w/asr/lowrank", "w/asr/full", "w/lid/full"):
        fake_model(tmp_path / "exp/mine/train" / system / "model", lowrank_speech={"lang_sha256": None})
        (tmp_path / "exp/mine/train" / system / "train.json").write_text("{}")
    return tmp_path / "exp/mine"


def test_a_system_has_several_names(mine):
    wanted = mine / "train/w/asr/full/model"
    names = ("exp/mine:w/asr/full", "exp/mine/train/w/asr/full", "exp/mine/train/w/asr/full/model", wanted)
    for name in names:
        found = find(name)
        assert found.folder.absolute() == wanted and found.system == "w/asr/full", name
        assert found.experiment.absolute() == mine and found.origin == "experiment"
        assert found.ours and found.trained and found.lang is None


def test_errors_list_the_systems(mine):
    for name in ("exp/mine:w/asr/ful", "exp/mine:w/asr", "exp/mine:", "exp/mine", "exp/mine:../mine/train/w/asr/full"):
        assert "w/asr/full, w/asr/lowrank, w/lid/full" in refused(name), name
    assert "exp/other does not exist" in refused("exp/other:w/asr/full")
    (mine / "train").rename(mine / "gone")
    (mine / "train").mkdir()
    assert "no system of it is trained yet" in refused("exp/mine")


def test_a_plain_folder(tmp_path):
    found = find(fake_model(tmp_path / "hub"))
    assert (found.origin, found.ours, found.trained, found.experiment) == ("folder", False, False, None)
    assert "only hub names have revisions" in refused(tmp_path / "hub", revision="main")


def test_a_name_below_the_folder_of_models(tmp_path, monkeypatch):
    fake_model(tmp_path / "tiny")
    monkeypatch.setenv("SPEECH_MODELS", str(tmp_path))
    assert find("tiny").folder == tmp_path / "tiny"
    monkeypatch.delenv("SPEECH_MODELS")
    assert "SPEECH_MODELS is not set" in refused("tiny")


def test_folders_that_are_not_models(tmp_path, mine):
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in refused("empty")
    folder = fake_model(tmp_path / "half")
    (folder / "model.safetensors").unlink()
    assert "half is not a complete model folder: model.safetensors is missing" in refused("half")
    for file, program in (("model.onnx", "onnxruntime"), ("model.bin", "CTranslate2 (faster-whisper)")):
        Path("for-others").mkdir()
        Path("for-others", file).touch()
        assert refused("for-others").startswith(f"for-others is an export for {program}; its README.md says how")
        shutil.rmtree("for-others")
    (folder / "config.json").write_text("{")
    assert "half/config.json is not valid" in refused("half")
    (tmp_path / "text.txt").write_text("")
    assert "text.txt is a file" in refused("text.txt")
    assert "does not exist" in refused("./nothing") and "does not exist" in refused("a/b/c")
    adapter = mine / "train/w/asr/full/adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert "LoRA adapter" in refused(adapter) and "full/model" in refused(adapter)


# -- load


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An experiment with a CTC system and a language system, a published Whisper, recordings."""
    root = tmp_path_factory.mktemp("api")
    names = SimpleNamespace(root=root, exp=experiment(root).folder, whisper=whisper_folder(root / "whisper"))
    names.lid = language_folder(names.exp / "train/wav2vec2/lid/full/model")
    names.ctc = names.exp / "train/wav2vec2/asr/lowrank/model"
    shutil.copytree(names.exp / "train/m/asr/full/model", names.ctc)
    names.a, names.b = noise(root / "a.wav", 1.1), noise(root / "b.wav", 0.6, seed=1)
    return names


def test_the_package_imports_at_once():
    """``load`` comes when it is asked for; other names do not exist."""
    code = "import lowrank_speech, sys; assert not {'torch', 'numpy', 'lowrank_speech.inference'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert load.__name__ == "load" and load.__doc__
    with pytest.raises(AttributeError, match="nothing"):
        lowrank_speech.nothing  # noqa: B018


def test_samples_paths_and_lists_give_the_same(made):
    model = load(made.ctc)
    samples, rate = soundfile.read(made.a)
    wanted = model.transcribe(made.a)
    assert wanted.text and wanted.audio == str(made.a) and wanted.seconds == pytest.approx(1.1) and not wanted.notes
    whole = (samples * 2**15).astype(np.int16)
    two = np.stack([samples, samples], 1)
    for one in (str(made.a), (samples, rate), (torch.tensor(samples), rate), (whole, rate), (two, rate), (two.T, rate)):
        found = model.transcribe(one)
        assert (found.text, found.seconds) == (wanted.text, wanted.seconds) and found.words == wanted.words
    assert model.transcribe(samples, rate=rate).text == wanted.text
    many = model.transcribe([made.b, (samples, rate), made.a])
    assert [one.text for one in many] == [model.transcribe(made.b).text, wanted.text, wanted.text]
    assert model.transcribe([]) == []


def test_logits_are_those_of_the_model(made):
    model = load(made.ctc)
    samples, rate = soundfile.read(made.a, dtype="float32")
    found = model.logits(samples, rate)
    plain = load_model(made.ctc)
    inputs = inputs_of(made.ctc).of(torch.from_numpy(samples))
    with torch.inference_mode():
        wanted = plain.ctc_logits(inputs[None], torch.tensor([len(inputs)]))[0][0].log_softmax(-1)
    assert torch.allclose(found, wanted, atol=1e-5) and found.shape[1] == len(model.tokens)
    assert torch.allclose(found.exp().sum(-1), torch.ones(len(found)), atol=1e-5)
    text = "".join(model.tokens[i] for i in found.argmax(-1).unique_consecutive().tolist() if i)
    assert " ".join(text.replace("|", " ").replace("<unk>", "\ufffd").split()) == model.transcribe(made.a).text
    languages = load(made.lid)
    assert languages.logits(samples, rate).shape == (3,) and languages.languages == ["de", "en", "fr"]


def test_identify(made):
    model = load(made.lid)
    found = model.identify(made.a)
    assert next(iter(found.probabilities)) == found.language and sum(found.probabilities.values()) == pytest.approx(1)
    assert not found.calibrated and found.audio == str(made.a)
    assert [one.language for one in model.identify([made.a, made.b])] == [
        found.language,
        model.identify(made.b).language,
    ]
    assert set(model.identify(made.a, languages=["de", "fr"]).probabilities) == {"de", "fr"}


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda m: load(m.ctc).transcribe("absent.wav"), "absent.wav does not exist"),
        (lambda m: load(m.ctc).transcribe([m.a, "absent.wav"]), "absent.wav does not exist"),
        (lambda m: load(m.ctc).transcribe(np.zeros(1000)), "the sampling rate of the samples is missing"),
        (lambda m: load(m.ctc).transcribe(np.zeros((10, 10, 10)), rate=8000), "expected (T,) or (T, channels)"),
        (lambda m: load(m.ctc).transcribe((np.zeros(0), 8000)), "there are no samples"),
        (lambda m: load(m.ctc).transcribe((np.full(9000, np.nan), 8000)), "NaN or infinite"),
        (lambda m: load(m.ctc).transcribe((np.zeros(10), 16_000)), "the model needs at least"),
        (lambda m: load(m.ctc).transcribe((np.zeros(9000), 8000.5)), "rate is 8000.5"),
        (lambda m: load(m.ctc).transcribe(m.root), "is a folder"),
        (lambda m: load(m.ctc).identify(m.a), "use `lowrank-speech transcribe`"),
        (lambda m: load(m.lid).transcribe(m.a), "use `lowrank-speech identify`"),
        (lambda m: load(m.whisper).logits(np.zeros(1000)), "use transcribe"),
        (lambda m: load(m.lid).tokens, "is not a CTC model"),
        (lambda m: load(m.ctc, device="tpu"), "expected one of: auto, cpu, cuda"),
        (lambda m: load(m.ctc, dtype=torch.float16), "expected fp32 or bf16"),
    ],
)
def test_errors_are_one_line(made, use, message):
    with pytest.raises(UserError) as error:
        use(made)
    assert message in str(error.value) and "\n" not in str(error.value)


# -- the page of the docs

PAGE = (REPOSITORY / "docs/using.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) for line in block.splitlines()
]


@pytest.fixture
def place(made, monkeypatch):
    """A folder with the files that the page names."""
    monkeypatch.chdir(made.root)
    for folder in ("talks", "calls"):
        (made.root / folder).mkdir(exist_ok=True)
    noise(made.root / "talks/t.flac", 0.8)
    noise(made.root / "calls/c.mp3", 0.8, 8000)
    noise(made.root / "talk.mp4.wav", 5.0).replace(made.root / "talk.mp4")
    arpa = "\\data\\\nngram 1=5\n\n\\1-grams:\n-1 <s>\n-1 </s>\n-1 <unk>\n-0.5 a\n-0.5 b\n\n\\end\\\n"
    (made.root / "words.arpa").write_text(arpa)
    return made


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_of_the_page(place, call, monkeypatch, line):
    """As they are, with tiny models under the same names."""
    program, *argv = shlex.split(line.replace("openai/whisper-base", str(place.whisper)))
    assert program == "lowrank-speech"
    if "<" in argv:
        data = Path(argv.pop()).read_bytes()
        argv.pop()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: False))
    code, out, err = call(*argv)
    assert code == 0, err
    assert out.strip() or list(Path("subtitles").glob("*.srt"))


def test_python_of_the_page(place, capsys):
    code = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    exec(compile(code, "docs/using.md", "exec"), {})
    assert "torch.Size" in capsys.readouterr().out


def test_json_keys_are_those_of_the_page(place, call):
    _, out, _ = call("transcribe", place.ctc, place.a, "absent.wav", "--format", "json")
    rows = set(re.findall(r"^\| `(\w+)` \| ", PAGE.partition("| key | value |")[2].partition("\n\n")[0], re.MULTILINE))
    assert {key for one in objects(out).values() for key in one} == rows
