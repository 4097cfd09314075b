"""``lowrank-speech init``: the config that it writes is accepted, and says what was found."""

import logging
import subprocess
import sys

import pytest
import yaml

from lowrank_speech import cli
from lowrank_speech.experiment import first
from lowrank_speech.experiment.check import check
from lowrank_speech.workflow.config import systems, training
from lowrank_speech.workflow.experiments import open_experiment
from workflow_tree import REPOSITORY, job_stats

BASES = {
    "facebook/wav2vec2-xls-r-300m": "wav2vec2",
    "openai/whisper-small": "whisper",
    "facebook/w2v-bert-2.0": "w2v-bert",
    "microsoft/wavlm-large": "wav2vec2",
    "someone/my-hubert": "wav2vec2",
}


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run the command in a folder of its own: exit code, stdout, stderr."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        with pytest.raises(SystemExit) as left:
            cli.main(["init", *map(str, argv)])
        captured = capsys.readouterr()
        return left.value.code or 0, captured.out, captured.err

    return call


def kaldi(root, *names, speakers=12, languages=(), text="HELLO THERE"):
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        ids = [f"{name}{i:02d}" for i in range(speakers)]
        (folder / "wav.scp").write_text("".join(f"{u} {u}.wav\n" for u in ids))
        (folder / "utt2spk").write_text("".join(f"{u} s{u}\n" for u in ids))
        if text:
            (folder / "text").write_text("".join(f"{u} {text}\n" for u in ids))
        if languages:
            (folder / "utt2lang").write_text("".join(f"{u} {languages[i % 2]}\n" for i, u in enumerate(ids)))
    return root


def table(path, languages=("de", "en"), speakers=30, text="Hello, there."):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"u{i}\tu{i}.wav\t{languages[i % len(languages)]}\ts{i}\t1.0\t{text}" for i in range(speakers)]
    path.write_text("\n".join(["id\taudio\tlanguage\tspeaker\tseconds\ttext", *rows, ""]))
    return path


def written(path):
    """The experiment of a config, which passes all checks."""
    experiment = open_experiment(path)
    check(experiment.slices)
    return experiment


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("task", ["asr", "lid"])
def test_every_family_and_task(call, tmp_path, base, task):
    kaldi(tmp_path / "my corpus 2", "train", "dev", "test", languages=("de", "en"))
    code, shown, error = call("--corpus", "my corpus 2", "--base", base, "--task", task)
    assert code == 0, error
    name = f"my_corpus_2_{task}.yaml"
    assert shown.startswith(f"written: {name} (kaldi corpus, 12 utterances in train; {BASES[base]} model)\n")
    assert f"lowrank-speech run {name}" in shown
    experiment = written(name)
    config = experiment.config
    assert config["output"] == f"exp/my_corpus_2_{task}"
    (of_base,) = config["bases"].values()
    assert (of_base["family"], of_base["source"]) == (BASES[base], base)
    assert [s.method for s in systems(config)] == ["base", "full", "lowrank", "lora", "lowrank_lora"]
    rates = {s.method: training(config, s)["lr"] for s in systems(config)}
    full, lora = map(float, first.RATES[BASES[base]])
    assert (rates["full"], rates["lora"], rates["lowrank_lora"]) == (full, lora, lora)
    splits = config["corpora"]["my_corpus_2"]["splits"]
    assert {name: (s["source"], tuple(s["part"])) for name, s in splits.items()} == {
        split: (split, (0.0, 1.0)) for split in ("train", "dev", "test")
    }


def test_snakemake_accepts_it(call, tmp_path):
    kaldi(tmp_path / "data", "train", "dev")
    model = tmp_path / "models" / "mine"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "whisper"}')
    (model / "model.safetensors").write_text("")
    code, _, error = call(
        "a.yaml", "--corpus", "data", "--base", "models/mine", "--language", "en", "--output", "exp/a"
    )
    assert code == 0, error
    command = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "-n", "--quiet", "all"]
    command += ["--configfile", "a.yaml"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert job_stats(done.stdout)["train"] == 5
    config = yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert config["bases"]["mine"]["source"] == "models/mine" and "revision" not in config["bases"]["mine"]
    assert config["langs"]["own"]["normalise"]["case"] == "sentence"  # the transcripts are upper-case


@pytest.mark.parametrize(
    ("names", "speakers", "expected"),
    [
        (("train",), 20, {"train": ("train", 0.0, 0.8), "dev": ("train", 0.8, 0.9), "test": ("train", 0.9, 1.0)}),
        (("train", "dev"), 20, {"train": ("train", 0.0, 0.9), "dev": ("train", 0.9, 1.0), "test": ("dev", 0.0, 1.0)}),
        (
            ("train_960", "valid", "test-clean", "test-other"),
            20,
            {"train": ("train_960", 0.0, 1.0), "dev": ("valid", 0.0, 1.0), "test": ("test-clean", 0.0, 1.0)},
        ),
        (("all",), 3, {"train": ("all", 0.0, 0.8), "dev": ("all", 0.8, 0.9), "test": ("all", 0.9, 1.0)}),
    ],
)
def test_splits(call, tmp_path, names, speakers, expected):
    kaldi(tmp_path / "data", *names, speakers=speakers)
    where = "data/all" if names == ("all",) else "data"
    code, _, error = call("a.yaml", "--corpus", where, "--base", "a/whisper", "--language", "en")
    assert code == 0, error
    splits = written("a.yaml").config["corpora"]["data"]["splits"]
    assert {name: (s["source"], *s["part"]) for name, s in splits.items()} == expected
    parts = {s["by"] for s in splits.values() if s["part"] != [0.0, 1.0]}
    assert parts <= {"speaker" if speakers >= 10 else "utterance"}
    assert ("too few speakers (3 in a language)" in (tmp_path / "a.yaml").read_text()) == (speakers == 3)


def test_tables(call, tmp_path):
    table(tmp_path / "t" / "train.tsv")
    table(tmp_path / "t" / "dev.tsv", text="")
    code, _, error = call("a.yaml", "--corpus", "t", "--base", "a/xlsr", "--task", "lid")
    assert code == 0, error
    assert written("a.yaml").config["corpora"]["t"]["kind"] == "tsv"
    assert call("b.yaml", "--corpus", "t/train.tsv", "--base", "a/whisper")[0] == 0
    config = yaml.safe_load((tmp_path / "b.yaml").read_text())
    assert "normalise" not in config["langs"]["own"]  # the transcripts have both cases
    assert config["score"]["normaliser"] == "whisper-basic"  # not only English
    written("b.yaml")
    bare = table(tmp_path / "bare" / "all.tsv")
    bare.write_text("\n".join(line.rpartition("\t")[0] for line in bare.read_text().splitlines()))
    code, _, error = call("c.yaml", "--corpus", bare, "--base", "a/xlsr", "--task", "lid")
    assert code == 0 and written("c.yaml").config["corpora"]["bare"]["columns"]["text"] is None


def test_a_published_layout(call, tmp_path):
    """LibriSpeech: the section is that of corpora.detect, and the config passes all checks."""
    for subset, speakers in (("train-clean-5", 3), ("dev-clean", 1), ("test-clean", 1)):
        for speaker in range(speakers):
            folder = tmp_path / "LibriSpeech" / subset / str(speaker) / "7"
            folder.mkdir(parents=True)
            (folder / f"{speaker}-7.trans.txt").write_text(f"{speaker}-7-0000 HELLO THERE\n")
            (folder / f"{speaker}-7-0000.flac").write_bytes(b"")
    code, shown, error = call("a.yaml", "--corpus", "LibriSpeech", "--base", "openai/whisper-small")
    assert code == 0, error
    assert "librispeech corpus, 3 utterances in train-clean-5" in shown
    config = written("a.yaml").config
    (section,) = config["corpora"].values()
    assert section["kind"] == "librispeech"
    assert {split: keys["source"] for split, keys in section["splits"].items()} == {
        "train": "train-clean-5", "dev": "dev-clean", "test": "test-clean",
    }  # fmt: skip
    assert config["score"]["normaliser"] == "whisper-english"
    assert config["langs"]["own"]["normalise"]["case"] == "sentence"
    code, _, error = call("b.yaml", "--corpus", "LibriSpeech", "--base", "openai/whisper-small", "--kind", "mls")
    assert code == 2 and "is not of the kind mls; those that fit: librispeech" in error


def test_names_and_values_that_yaml_would_misread():
    assert [first.valid_name(text, "base") for text in ("whisper-tiny.en", "2024 data", "ä", "no")] == [
        "whisper-tiny_en", "base_2024_data", "base", "no",
    ]  # fmt: skip
    for value in ("no", "no-1", "a b", "1.0", "ünd", 'x"y', "a/b.c", "null", "a: b", "#x"):
        assert yaml.safe_load(f"key: {first.quoted(value)} # comment") == {"key": value}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--corpus", "none", "--base", "a/whisper"), "--corpus: none does not exist; give a folder with Kaldi"),
        (("--corpus", "audio", "--base", "a/whisper"), "has audio, but no table; write one"),
        (("--corpus", "empty", "--base", "a/whisper"), "has neither data directories (wav.scp) nor tables"),
        (("--corpus", "a.yaml", "--base", "a/whisper"), "is not a tab-separated table (.tsv)"),
        (("--corpus", "data", "--base", "a/whisper"), "has no utt2lang; name its language, for example --language en"),
        (("--corpus", "odd", "--base", "a/whisper", "--language", "en"), "none is called train; give the one"),
        (("--corpus", "mute", "--base", "a/whisper", "--language", "en"), "has no transcripts"),
        (("--corpus", "mute", "--base", "a/xlsr", "--language", "en", "--task", "lid"), "has one language, en"),
        (("--corpus", "data", "--base", "a/b", "--language", "en"), "does not tell the family; add --family"),
        (("--corpus", "data", "--base", "nowhere", "--language", "en"), "there is no model folder nowhere here"),
        (("--corpus", "data", "--base", "empty", "--language", "en"), "has no config.json"),
        (("a.yaml", "--corpus", "data", "--base", "a/whisper", "--language", "en"), "a.yaml exists; name another"),
        (("a.txt", "--corpus", "data", "--base", "a/whisper", "--language", "en"), "ends in .yaml"),
        (
            ("--corpus", "data", "--base", "a/whisper", "--language", "en", "--output", "b.yaml"),
            "--output is the folder of the results",
        ),
        (
            ("--corpus", "data", "--base", "a/whisper", "--language", "en", "--output", "a b"),
            "output: 'a b' is not valid",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(call, tmp_path, words, message):
    kaldi(tmp_path / "data", "train")
    kaldi(tmp_path / "odd", "one", "two")
    kaldi(tmp_path / "mute", "train", text="")
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a.wav").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.yaml").write_text("mine: 1\n")
    before = sorted(tmp_path.rglob("*"))
    code, shown, error = call(*words)
    assert (code, shown) == (2, "") and message in error and len(error.splitlines()) == 1, error
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "a.yaml").read_text() == "mine: 1\n"


def test_a_language_that_the_corpus_contradicts_is_named(call, tmp_path):
    table(tmp_path / "talks" / "train.tsv")
    kaldi(tmp_path / "one", "train")
    base = "--base", "openai/whisper-small"
    code, _, error = call("a.yaml", "--corpus", "talks", *base, "--language", "en")
    assert code == 0 and "--language en is not used" in error and "(de, en); the key `languages`" in error
    for language in ("en", "EN"):
        code, _, error = call(f"{language}_.yaml", "--corpus", "one", *base, "--language", language)
        assert code == 0 and not error
    table(tmp_path / "single" / "train.tsv", languages=("en",))
    code, _, error = call("c.yaml", "--corpus", "single", *base, "--language", "en")
    assert code == 0 and not error
