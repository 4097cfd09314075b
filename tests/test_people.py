"""Unusual input on the command line: speech and model names in many forms, impossible paths."""

import csv
import json
import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from lowrank_speech import cli
from lowrank_speech.factorising.speech import kind_of, speech_of
from lowrank_speech.models.build import unwrap
from lowrank_speech.models.counting import count
from lowrank_speech.models.folder import save_model
from lowrank_speech.models.presets import PRESETS
from test_audio_lengths import LOUD, QUIET, mp3
from test_factorise_stage import MODELS, cuts  # noqa: F401
from tiny_models import member


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a command: exit code, stdout, the lines of stderr."""
    monkeypatch.setattr(logging.root, "handlers", [])

    def call(*argv):
        with pytest.raises(SystemExit) as left:
            cli.main([*map(str, argv)])
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err.strip().splitlines()

    return call


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    save_model(MODELS[request.param](), tmp_path / "base")
    return tmp_path / "base"


# --- speech to calibrate on


@pytest.fixture
def speech(tmp_path, cuts):  # noqa: F811
    """The same four recordings in every form."""
    wavs = sorted(tmp_path.glob("u*.wav"))
    folder = tmp_path / "audio" / "deep"
    folder.mkdir(parents=True)
    for wav in wavs:
        shutil.copy(wav, folder)
    (tmp_path / "audio" / "notes.txt").write_text("not audio")
    kaldi = tmp_path / "data" / "train"
    kaldi.mkdir(parents=True)
    (kaldi / "wav.scp").write_text("".join(f"{wav.stem} {wav}\n" for wav in wavs))
    segments = tmp_path / "data" / "segments"
    segments.mkdir()
    (segments / "wav.scp").write_text("".join(f"r-{wav.stem} ../{wav.name}\n" for wav in wavs))
    times = {wav: soundfile.info(wav).duration for wav in wavs}
    (segments / "segments").write_text("".join(f"{w.stem} r-{w.stem} 0.0 {t}\n" for w, t in times.items()))
    (segments / "utt2lang").write_text("".join(f"{wav.stem} en\n" for wav in wavs))
    tsv, comma = tmp_path / "list.tsv", tmp_path / "list.csv"
    tsv.write_text("id\taudio\tlanguage\n" + "".join(f"{wav.stem}\t{wav.name}\ten\n" for wav in wavs))
    with comma.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "sentence"], *([str(wav), 'he said, "yes"'] for wav in wavs)])
    return {"cuts": cuts, "folder": tmp_path / "audio", "kaldi": kaldi, "segments": segments, "tsv": tsv, "csv": comma}


@pytest.mark.parametrize("form", ["folder", "kaldi", "segments", "tsv", "csv"])
def test_speech_in_every_form_gives_the_factors_of_the_cuts(form, model, speech, tmp_path, call):
    found = {}
    for name in ("cuts", form):
        words = ("--rank", 6, "--init", "activation", "--json")
        code, shown, errors = call("factorise", model, tmp_path / name, *words, "--calibrate", speech[name])
        assert code == 0, errors
        found[name] = [row["output_error"] for row in json.loads(shown)["layers"]]
    # The first four are the encoder's: what Whisper's decoder recognises depends on the language that it is told.
    assert np.allclose(found["cuts"][:4], found[form][:4], rtol=1e-4)


def test_languages_and_times_of_the_forms(speech):
    for form in ("segments", "tsv"):
        read = list(speech_of(speech[form], 64, 1))
        assert {cut.supervisions[0].language for cut in read} == {"en"} and len(read) == 4
    lengths = {form: sorted(round(cut.duration, 4) for cut in speech_of(path, 64, 1)) for form, path in speech.items()}
    assert all(found == lengths["cuts"] for found in lengths.values())


def test_a_share_is_drawn_by_the_seed_before_files_are_opened(speech, tmp_path):
    for i in range(30):
        soundfile.write(tmp_path / "audio" / f"x{i}.wav", np.zeros(400), 16_000)
    drawn = [[cut.id for cut in speech_of(speech["folder"], 2, seed)] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 8


def test_what_cannot_be_opened_is_left_out_and_named(speech, tmp_path, caplog):
    (tmp_path / "audio" / "bad.wav").write_bytes(b"RIFF no audio")
    (speech["segments"] / "segments").write_text("a r-u0 0.0 0.2\nb r-u1 90.0 91.0\n")
    assert len(list(speech_of(speech["folder"], 64, 1))) == 4
    assert "leaving out" in caplog.text and "bad.wav: " in caplog.text
    assert [cut.id for cut in speech_of(speech["segments"], 64, 1)] == ["a"]
    assert ": it is 0.5 s long, and the utterance begins at 90 s" in caplog.text


def test_a_header_that_lies_about_the_length_is_not_believed(tmp_path, caplog):
    """The length of an MP3 without a tag is a guess; of two joined files, only the first would be read."""
    (tmp_path / "mp3").mkdir()
    tagged, _ = mp3(tmp_path / "x.mp3", LOUD, "VARIABLE")
    _, quiet = mp3(tmp_path / "x.mp3", QUIET, "VARIABLE")
    for name, content in (("tagged", tagged), ("quiet", quiet), ("twice", tagged * 2)):
        (tmp_path / "mp3" / f"{name}.mp3").write_bytes(content)
    assert soundfile.info(tmp_path / "mp3" / "quiet.mp3").duration > 3
    found = {cut.id: cut for cut in speech_of(tmp_path / "mp3", 9, 1)}
    assert sorted(found) == ["quiet.mp3", "tagged.mp3"]
    for cut in found.values():
        assert cut.duration < 2.2 and cut.load_audio().shape == (1, cut.num_samples)
    assert "twice.mp3: more audio than declared" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "nothing",
            None,
            "nothing does not exist; give Lhotse cuts (.jsonl, .jsonl.gz), a Kaldi data directory, a tab",
        ),
        ("weights.bin", "x", "weights.bin is not in a supported format; give Lhotse cuts"),
        ("t.tsv", "id\tsound\na\tb\n", "t.tsv: its header (id, sound) has no column of audio paths; call that column"),
        ("t.csv", "audio,text\n", "t.csv: expected a header line and a row for each utterance"),
        ("t.tsv", "audio\nno.wav\n", "t.tsv: none of 1 recordings can be opened"),
        ("empty/", "", "empty: contains neither wav.scp nor audio files (.wav, .flac"),
        ("k/wav.scp", "a touch x |\n", "a is a piped command"),
        ("c.jsonl", "{nonsense\n", "c.jsonl: cut number 1 cannot be read"),
    ],
)
def test_speech_that_cannot_be_is_refused_before_the_model_is_opened(name, content, message, tmp_path, call):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name.endswith("/"):
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    given = path.parent if name == "k/wav.scp" else path
    code, shown, errors = call("factorise", tmp_path / "no-model", tmp_path / "out", "--rank", 4, "--calibrate", given)
    assert (code, shown) == (2, "") and message in errors[-1] and "Traceback" not in "".join(errors)
    assert not (tmp_path / "out").exists()


def test_kinds(speech):
    kinds = {form: kind_of(path) for form, path in speech.items()}
    assert kinds == {
        "cuts": "cuts", "folder": "folder", "kaldi": "kaldi", "segments": "kaldi", "tsv": "table", "csv": "table",
    }  # fmt: skip


# --- places and names


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("option", ["out", "--report", "--plot"])
def test_a_place_that_cannot_be_written_is_one_line_before_anything_is_opened(option, tmp_path, call):
    out, words = ("/proc/x", ()) if option == "out" else (tmp_path / "low", (option, "/proc/a/b"))
    code, shown, errors = call("factorise", tmp_path / "no-model", out, "--rank", 4, *words)
    assert (code, shown) == (2, "") and len(errors) == 1
    assert "cannot be written: /proc: " in errors[0] and errors[0].endswith("name another path")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_one_line(tmp_path, call):
    (tmp_path / "file").write_text("x")
    code, _, errors = call("factorise", tmp_path / "no-model", tmp_path / "file" / "low", "--rank", 4)
    assert code == 2 and len(errors) == 1 and "Not a directory" in errors[0]


def test_the_result_says_where_it_is_and_what_comes_next(model, tmp_path, call):
    code, shown, _ = call("factorise", model, tmp_path / "low", "--rank", 6)
    assert code == 0 and f"written: {tmp_path / 'low'}\nnext: fine-tune it" in shown


def test_the_package_is_a_program():
    words = [sys.executable, "-m", "lowrank_speech", "params", "--help"]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 0 and "hub name, or preset" in found.stdout
    found = subprocess.run([*words[:3], "params"], capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.startswith("error: give either a model")


def test_sizes_of_a_folder_a_hub_name_and_a_preset(tmp_path, call, monkeypatch):
    folder, asked = tmp_path / "snapshot", []
    unwrap(member("wav2vec2", "body")).save_pretrained(folder)
    expected = count(model=str(folder), layers="attention", rank=4)

    def snapshot(name, **options):
        asked.append((name, options["revision"], options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    words = ("--layers", "attention", "--rank", 4, "--json")
    code, shown, _ = call("params", "owner/name", *words, "--revision", "abc")
    assert code == 0 and asked == [("owner/name", "abc", ["config.json"])]
    assert json.loads(shown)["layers"] == expected["layers"]
    code, shown, _ = call("params", "whisper-tiny", *words)
    assert code == 0 and json.loads(shown) == count(preset="whisper-tiny", layers="attention", rank=4)
    code, _, errors = call("params", "whisper-tinny", *words)
    assert code == 2 and "whisper-tinny is not a model folder, a hub name" in errors[0] and len(errors) == 1


@pytest.mark.parametrize("preset", ["xls-r-300m", "w2v-bert-2.0", "whisper-tiny"])
def test_layer_names_of_a_preset_a_published_folder_and_a_factorisation_are_the_same(preset, tmp_path, call):
    small = {"num_hidden_layers": 2, "encoder_layers": 2, "decoder_layers": 2}
    found = PRESETS[preset]
    names = {row["name"] for row in count(preset=preset, layers="all")["layers"]}
    for architecture in ("Wav2Vec2ForCTC", "Wav2Vec2ForPreTraining") if preset == "xls-r-300m" else ("X",):
        raw = {"model_type": found.model_type, "architectures": [architecture], **found.config}
        (tmp_path / "config.json").write_text(json.dumps(raw | {k: v for k, v in small.items() if k in raw}))
        assert {row["name"] for row in count(model=str(tmp_path), layers="all")["layers"]} <= names


def test_settings_that_are_refused_are_one_line(model, tmp_path, call):
    code, shown, errors = call("factorise", model, tmp_path / "x", "--keep", 1.5)
    assert (code, shown, errors) == (2, "", ["error: keep is 1.5; it must be at most 1"])


def test_a_language_with_a_region_is_the_one_that_the_decoder_knows(cuts, tmp_path, call):  # noqa: F811
    """en-GB calibrates as en does, and not as what the model takes it for."""
    save_model(MODELS["whisper"](), tmp_path / "base")
    found = []
    for language in ("en", "en-GB", "de"):
        path = tmp_path / f"{language}.jsonl.gz"
        CutSet.from_file(cuts).map(lambda cut, language=language: told(cut, language)).to_file(path)
        words = ("--rank", 6, "--layers", "ffn:decoder", "--json", "--calibrate", path)
        code, shown, errors = call("factorise", tmp_path / "base", tmp_path / language, *words)
        assert code == 0, errors
        found.append([row["output_error"] for row in json.loads(shown)["layers"]])
    assert found[0] == found[1] != found[2]


def told(cut, language):
    cut.supervisions[0].language = language
    return cut
