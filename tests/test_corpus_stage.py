"""The stage corpus: what it writes, that a rebuild is equal bit for bit, and what people read when it stops."""

import dataclasses
import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment

from lowrank_speech.corpora import registry
from lowrank_speech.corpora.common import SetAside
from lowrank_speech.errors import UserError
from lowrank_speech.stages import corpus

TABLE = {"kind": "tsv", "splits": {"train": {"source": "train.tsv"}, "test": {"source": "test.tsv"}}}


def make_corpus(root: Path) -> Path:
    """Six utterances of two speakers in train, two of a third in test; one file of train is silent."""
    root.mkdir()
    rng = np.random.default_rng(3)
    rows = {"train": [], "test": []}
    for i in range(8):
        split, speaker = ("train", f"s{i % 2}") if i < 6 else ("test", "s9")
        samples = rng.normal(0, 0.1, 8000 + 100 * i) * (i != 4)
        soundfile.write(root / f"{i}.flac", samples, 16_000)
        text = "" if i == 5 else f"word {i}"
        rows[split].append(f"u{i}\t{i}.flac\t{'de' if i % 3 else 'en'}\t{speaker}\t\t{text}")
    for split, lines in rows.items():
        (root / f"{split}.tsv").write_text("id\taudio\tlanguage\tspeaker\tseconds\ttext\n" + "\n".join(lines[::-1]))
    return root


def run(out: Path, config: dict, seed: int = 1, jobs: int = 1) -> int:
    cfg = json.dumps({"seed": seed, "corpus": config})
    return corpus.main(["--cfg", cfg, "--out", str(out), "--manifest", str(out / "corpus.json"), "--jobs", str(jobs)])


def hashes(out: Path) -> dict[str, str]:
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != "corpus.json")
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def body(out: Path, config: dict) -> None:
    """The stage without its handling of errors, which are the subject here."""
    cfg = json.dumps({"seed": 1, "corpus": config})
    corpus.body(SimpleNamespace(cfg=cfg, out=out, manifest=out / "corpus.json", jobs=1))


def test_what_it_writes(tmp_path):
    root, out = make_corpus(tmp_path / "in"), tmp_path / "out"
    assert run(out, {**TABLE, "path": str(root)}) == 0
    assert sorted(p.name for p in out.iterdir()) == ["corpus.json", "set_aside.tsv", "test.jsonl.gz", "train.jsonl.gz"]
    train = list(CutSet.from_file(out / "train.jsonl.gz"))
    assert [cut.id for cut in train] == ["u0", "u1", "u2", "u3", "u5"]
    for cut in train:
        assert cut.load_audio().shape == (1, 8000 + 100 * int(cut.id[1:]))
        [supervision] = cut.supervisions
        assert supervision.id == cut.id
        assert Path(cut.recording.sources[0].source).is_absolute()
    lines = (out / "set_aside.tsv").read_text().splitlines()
    assert lines[0] == "id\tsplit\treason\tdetail"
    assert len(lines) == 2
    assert lines[1].startswith("u4\ttrain\tsilent\t")
    numbers = json.loads((out / "corpus.json").read_text())["numbers"]
    assert numbers["splits"]["train"] == {
        "utterances": 5,
        "seconds": round(sum(8000 + 100 * i for i in (0, 1, 2, 3, 5)) / 16_000, 3),
        "speakers": 2,
        "languages": {"de": 3, "en": 2},
        "transcribed": 4,
        "words": 8,
    }
    assert numbers["set_aside"] == {"silent": 1}
    assert numbers["shared_speakers"] == {}


def test_rebuilt_bit_for_bit(tmp_path):
    root = make_corpus(tmp_path / "in")
    config = {**TABLE, "path": str(root)}
    outs = [tmp_path / name for name in ("a", "b")]
    assert [run(out, config, jobs=jobs) for out, jobs in zip(outs, (1, 4), strict=True)] == [0, 0]
    assert hashes(outs[0]) == hashes(outs[1])
    first = hashes(outs[0])
    assert run(outs[0], config) == 0  # over itself
    assert hashes(outs[0]) == first
    one, other = (json.loads((out / "corpus.json").read_text()) for out in outs)
    assert one["numbers"] == other["numbers"]
    assert one["outputs"] == other["outputs"]


def test_gzip_header_has_no_time(tmp_path):
    corpus.write_cuts(tmp_path / "a.jsonl.gz", [])
    content = (tmp_path / "a.jsonl.gz").read_bytes()
    assert content[3:8] == bytes(5)  # no flags (no file name), time 0
    assert gzip.decompress(content) == b""


def test_audio_digest_follows_the_samples(tmp_path):
    root = make_corpus(tmp_path / "in")
    config = {**TABLE, "path": str(root)}
    run(tmp_path / "a", config)
    samples, rate = soundfile.read(root / "2.flac")
    samples[100] += 0.01
    soundfile.write(root / "2.flac", samples, rate)
    run(tmp_path / "b", config)
    one, other = (json.loads((tmp_path / n / "corpus.json").read_text())["numbers"] for n in ("a", "b"))
    assert one.pop("audio_sha256") != other.pop("audio_sha256")
    assert one == other
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")  # the cuts say nothing of it: hence the digest


def test_an_empty_split_stops_the_run(tmp_path):
    root, out = make_corpus(tmp_path / "in"), tmp_path / "out"
    for name in ("6.flac", "7.flac"):
        (root / name).unlink()
    with pytest.raises(UserError, match=r"split test: no utterance is left, 2 were set aside: .*missing file \(2\)"):
        body(out, {**TABLE, "path": str(root)})
    assert (out / "set_aside.tsv").read_text().count("missing file") == 2
    assert not (out / "corpus.json").exists()
    assert not (out / "train.jsonl.gz").exists()


def test_an_id_in_two_splits(tmp_path):
    root, out = make_corpus(tmp_path / "in"), tmp_path / "out"
    with (root / "test.tsv").open("a") as file:
        file.write("\nu0\t0.flac\ten\ts0\t\tagain")
    assert run(out, {**TABLE, "path": str(root)}) == 0
    row = (out / "set_aside.tsv").read_text().splitlines()[1].split("\t")
    assert row[:3] == ["u0", "test", "duplicate id"]
    assert "train.tsv line 7" in row[3]
    assert "test.tsv line 4" in row[3]


def test_speakers_in_two_splits_are_reported(tmp_path):
    root, out = make_corpus(tmp_path / "in"), tmp_path / "out"
    with (root / "test.tsv").open("a") as file:
        file.write("\nnew\t0.flac\ten\ts0\t\tagain")
    assert run(out, {**TABLE, "path": str(root)}) == 0
    assert json.loads((out / "corpus.json").read_text())["numbers"]["shared_speakers"] == {"train+test": 1}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "zip"}, "'zip' is none of"),
        ({}, "'' is none of"),
        ({**TABLE, "spilts": {}}, "cfg.corpus: unknown key 'spilts'"),
        ({**TABLE, "checks": {"chanel": 0}}, "cfg.corpus.checks: unknown key 'chanel'"),
        ({"kind": "tsv", "splits": {"../x": {"source": "train.tsv"}}}, "'../x' names a file"),
        ({**TABLE, "path": "/nonexistent/folder"}, "no folder /nonexistent/folder"),
    ],
)
def test_bad_settings(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        body(tmp_path / "out", config)


def test_data_root_comes_from_the_environment(tmp_path, monkeypatch):
    make_corpus(tmp_path / "voices")
    monkeypatch.setenv("SPEECH_DATA", str(tmp_path))
    assert run(tmp_path / "out", TABLE) == 0
    monkeypatch.delenv("SPEECH_DATA")
    assert run(tmp_path / "out", TABLE) == 2


# --- a corpus that makes its audio, as espeak does, without eSpeak


@dataclasses.dataclass(frozen=True)
class MadeConfig:
    kind: str
    splits: dict[str, dict[str, int]]
    names: str


def made(config, root, audio_dir, seed, jobs):
    """Yield a cut per letter of ``names``, and one item that could not be made."""
    assert audio_dir.is_dir()
    for name in config.names:
        path = audio_dir / f"{name}.flac"
        soundfile.write(path, np.random.default_rng(ord(name)).normal(0, 0.1, 8000), 16_000)
        recording = Recording(name, [AudioSource("file", [0], str(path))], 16_000, 8000, 0.5)
        supervision = SupervisionSegment(name, name, 0.0, 0.5, 0, text=name, language="xx", speaker="v")
        yield "train", MonoCut(name, 0.0, 0.5, 0, supervisions=[supervision], recording=recording)
    yield "train", SetAside("z", "too strange", "nobody can say it")
    if "!" in config.names:
        raise UserError("the voice is gone")


@pytest.fixture
def made_corpus(monkeypatch):
    corpus_module = SimpleNamespace(Config=MadeConfig, locate=lambda config, data_root: None, read=made)
    monkeypatch.setattr(registry, "module", lambda kind: corpus_module)
    return lambda names: {"kind": "made", "splits": {"train": {}}, "names": names}


@pytest.mark.parametrize("relative", [False, True])
def test_made_audio_stands_at_its_final_place(tmp_path, monkeypatch, made_corpus, relative):
    monkeypatch.chdir(tmp_path)
    out = Path("exp/out") if relative else tmp_path / "out"
    assert run(out, made_corpus("cab")) == 0
    cuts = list(CutSet.from_file(out / "train.jsonl.gz"))
    assert [cut.id for cut in cuts] == ["a", "b", "c"]
    assert [cut.recording.sources[0].source for cut in cuts] == [str(out / "audio" / f"{n}.flac") for n in "abc"]
    assert all(cut.load_audio().shape == (1, 8000) for cut in cuts)
    assert [p.name for p in out.glob(".*")] == []


def test_made_audio_is_fresh_each_time(tmp_path, made_corpus):
    run(tmp_path, made_corpus("abc"))
    first = hashes(tmp_path)
    run(tmp_path, made_corpus("bx"))
    assert sorted(p.name for p in (tmp_path / "audio").iterdir()) == ["b.flac", "x.flac"]
    run(tmp_path, made_corpus("abc"))
    assert hashes(tmp_path) == first


def test_a_reader_that_fails_leaves_the_old_audio(tmp_path, made_corpus):
    run(tmp_path, made_corpus("abc"))
    assert run(tmp_path, made_corpus("x!")) == 2
    assert sorted(p.name for p in (tmp_path / "audio").iterdir()) == ["a.flac", "b.flac", "c.flac"]
    assert not list(tmp_path.glob(".*"))


# --- the program, and a real corpus


def test_program(tmp_path):
    """As a rule calls it: exit code 2 and one line for people; --help without torch."""
    command = [sys.executable, "-m", "lowrank_speech.stages.corpus"]
    cfg = json.dumps({"seed": 1, "corpus": {**TABLE, "path": "nowhere"}})
    arguments = ["--cfg", cfg, "--out", str(tmp_path), "--manifest", str(tmp_path / "corpus.json")]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "no folder nowhere" in result.stderr
    result = subprocess.run(
        [sys.executable, "-X", "importtime", *command[1:], "--help"], capture_output=True, text=True
    )
    assert "--jobs" in result.stdout
    assert not {"torch", "lhotse"} & {line.split("|")[-1].strip() for line in result.stderr.splitlines()}


def test_real_digits_are_rebuilt(tmp_path, speech_data, monkeypatch):
    monkeypatch.setenv("SPEECH_DATA", str(speech_data))
    config = {"kind": "digits", "splits": {"train": {"speakers": ["theo"], "strings": 20}}}
    assert run(tmp_path / "a", config) == 0
    assert run(tmp_path / "b", config, jobs=2) == 0
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    one, other = (json.loads((tmp_path / n / "corpus.json").read_text())["numbers"] for n in ("a", "b"))
    assert one == other
    assert run(tmp_path / "c", config, seed=2) == 0
    assert hashes(tmp_path / "a") != hashes(tmp_path / "c")
