"""The stage corpus: its outputs, bit-identical rebuilds, and its errors."""

import gzip
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment

from lowrank_speech import settings
from lowrank_speech.corpora import registry, tracking
from lowrank_speech.corpora.common import SetAside
from lowrank_speech.errors import UserError
from lowrank_speech.settings import read
from lowrank_speech.stages import common, corpus

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


def run(out: Path, config: dict, split: str = "train", seed: int = 1, jobs: int = 1, track: str = "auto") -> int:
    cfg = json.dumps({"seed": seed, "corpus": config})
    runtime = ["--runtime", json.dumps({"track": track})]
    where = ["--out", str(out), "--manifest", str(out / f"{split}.json")]
    return corpus.main(["--cfg", cfg, "--split", split, *where, *runtime, "--jobs", str(jobs)])


def run_all(out: Path, config: dict, **options) -> list[int]:
    return [run(out, config, split, **options) for split in config["splits"]]


def hashes(out: Path) -> dict[str, str]:
    """Of what the stage makes; the record of the audio holds times."""
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.suffix != ".json")
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def numbers(out: Path, split: str = "train") -> dict:
    return json.loads((out / f"{split}.json").read_text())["metrics"]


def body(out: Path, config: dict, split: str = "train") -> None:
    """The stage without its handling of errors, which are the subject here."""
    given = {"seed": 1, "corpus": config}
    arguments = SimpleNamespace(split=split, out=out, manifest=out / f"{split}.json", jobs=1, code="c")
    corpus.body(common.Run("corpus", arguments, given, read(corpus.Config, given), corpus.Runtime()))


def test_what_it_writes(tmp_path):
    root, out = make_corpus(tmp_path / "in"), tmp_path / "out"
    assert run(out, {**TABLE, "path": str(root)}) == 0
    names = ["audio.json", "cost.json", "index.tsv", "json", "jsonl.gz", "set_aside.tsv"]
    assert sorted(p.name for p in out.iterdir()) == [f"train.{name}" for name in names]
    train = list(CutSet.from_file(out / "train.jsonl.gz"))
    assert [cut.id for cut in train] == ["u0", "u1", "u2", "u3", "u5"]
    for cut in train:
        assert cut.load_audio().shape == (1, 8000 + 100 * int(cut.id[1:]))
        [supervision] = cut.supervisions
        assert supervision.id == cut.id
        assert Path(cut.recording.sources[0].source).is_absolute()
    lines = (out / "train.set_aside.tsv").read_text().splitlines()
    assert lines[0] == "id\treason\tdetail"
    assert len(lines) == 2
    assert lines[1].startswith("u4\tsilent\t")
    found = numbers(out)
    assert found.pop("audio_sha256")
    assert found == {
        "utterances": 5,
        "seconds": round(sum(8000 + 100 * i for i in (0, 1, 2, 3, 5)) / 16_000, 3),
        "speakers": 2,
        "languages": {"de": 3, "en": 2},
        "transcribed": 4,
        "words": 8,
        "tags": {},
        "set_aside": {"silent": 1},
    }


def test_index(tmp_path):
    root, out = make_corpus(tmp_path / "in"), tmp_path / "out"
    assert run(out, {**TABLE, "path": str(root)}) == 0
    header, *rows = [line.split("\t") for line in (out / "train.index.tsv").read_text().splitlines()]
    assert header == ["id", "speaker", "language", "seconds", "sha256", "source", "session"]
    cuts = {cut.id: cut for cut in CutSet.from_file(out / "train.jsonl.gz")}
    assert [row[0] for row in rows] == list(cuts)
    for name, speaker, language, seconds, digest, *origin in rows:
        assert origin == ["", ""]
        [supervision] = cuts[name].supervisions
        assert (speaker, language, float(seconds)) == (supervision.speaker, supervision.language, cuts[name].duration)
        assert digest == hashlib.sha256(cuts[name].load_audio().astype("<f4").tobytes()).hexdigest()


def test_rebuilt_bit_for_bit(tmp_path):
    root = make_corpus(tmp_path / "in")
    config = {**TABLE, "path": str(root)}
    outs = [tmp_path / name for name in ("a", "b")]
    assert [run_all(out, config, jobs=jobs) for out, jobs in zip(outs, (1, 4), strict=True)] == [[0, 0], [0, 0]]
    assert hashes(outs[0]) == hashes(outs[1])
    first = hashes(outs[0])
    assert run_all(outs[0], config) == [0, 0]  # over itself
    assert hashes(outs[0]) == first
    for split in TABLE["splits"]:
        one, other = (json.loads((out / f"{split}.json").read_text()) for out in outs)
        assert one["metrics"] == other["metrics"]
        assert one["outputs"] == other["outputs"]


def test_a_split_does_not_depend_on_the_others(tmp_path):
    """Its slice holds only itself, and its bytes are those that it has beside others."""
    root = make_corpus(tmp_path / "in")
    parts = {"a": {"source": "train.tsv", "part": [0, 0.5], "by": "utterance"}}
    both = parts | {"b": {"source": "train.tsv", "part": [0.5, 1], "by": "utterance", "max_utterances": 2}}
    assert run(tmp_path / "alone", {"kind": "tsv", "path": str(root), "splits": parts}, "a") == 0
    assert run_all(tmp_path / "both", {"kind": "tsv", "path": str(root), "splits": both}) == [0, 0]
    alone, beside = hashes(tmp_path / "alone"), hashes(tmp_path / "both")
    assert alone == {name: beside[name] for name in alone}


def test_gzip_header_has_no_time(tmp_path):
    corpus.write_cuts(tmp_path / "a.jsonl.gz", tmp_path / "a.index.tsv", [])
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
    one, other = (numbers(tmp_path / n) for n in ("a", "b"))
    assert one.pop("audio_sha256") != other.pop("audio_sha256")
    assert one == other
    cuts = "train.jsonl.gz"  # they say nothing of it: hence the digest
    assert hashes(tmp_path / "a")[cuts] == hashes(tmp_path / "b")[cuts]


def test_an_empty_split_stops_the_run(tmp_path):
    root, out = make_corpus(tmp_path / "in"), tmp_path / "out"
    for name in ("6.flac", "7.flac"):
        (root / name).unlink()
    with pytest.raises(UserError, match=r"split test: no utterance is left, 2 were set aside: .*missing file \(2\)"):
        body(out, {**TABLE, "path": str(root)}, "test")
    assert (out / "test.set_aside.tsv").read_text().count("missing file") == 2
    assert [p.name for p in out.iterdir()] == ["test.set_aside.tsv"]


def test_an_id_twice_in_a_source_counts_once_whatever_the_split(tmp_path):
    root, out = make_corpus(tmp_path / "in"), tmp_path / "out"
    table = root / "train.tsv"
    table.write_text(table.read_text() + "\n" + table.read_text().splitlines()[-1])  # u0, as it is in line 7
    parts = {
        name: {"source": "train.tsv", "part": part, "by": "utterance"}
        for name, part in (("a", [0, 0.5]), ("b", [0.5, 1]))
    }
    assert run_all(out, {"kind": "tsv", "path": str(root), "splits": parts}) == [0, 0]
    cuts = [cut.id for split in parts for cut in CutSet.from_file(out / f"{split}.jsonl.gz")]
    assert sorted(cuts) == ["u0", "u1", "u2", "u3", "u5"]
    listed = [line.split("\t") for name in parts for line in (out / f"{name}.set_aside.tsv").read_text().splitlines()]
    [row] = [row for row in listed if row[0] == "u0"]
    assert row[1] == "duplicate id"
    assert "train.tsv line 8" in row[2] and "first in" in row[2] and "train.tsv line 7" in row[2]


def test_an_id_in_two_sources_is_a_matter_of_the_overlap(tmp_path):
    root, out = make_corpus(tmp_path / "in"), tmp_path / "out"
    with (root / "test.tsv").open("a") as file:
        file.write("\nu0\t0.flac\ten\ts0\t\tagain")
    assert run_all(out, {**TABLE, "path": str(root)}) == [0, 0]
    assert [cut.id for cut in CutSet.from_file(out / "test.jsonl.gz")] == ["u0", "u6", "u7"]


def test_tags_in_transcripts_are_counted_and_told(tmp_path, capfd):
    root, out = make_corpus(tmp_path / "in"), tmp_path / "out"
    table = root / "train.tsv"
    text = (
        table.read_text()
        .replace("word 0", "<hes> so [door  slams] <hes>")
        .replace("word 1", "((what)) *cough* (aside)")
    )
    table.write_text(text)
    assert run(out, {**TABLE, "path": str(root)}) == 0
    assert numbers(out)["tags"] == {"<hes>": 2, "((what))": 1, "*cough*": 1, "[door slams]": 1}
    said = capfd.readouterr().err
    assert "WARNING" in said and "<hes> (2), ((what)) (1)" in said and "`normalise.tags`" in said


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "zip"}, "unknown kind 'zip'; expected one of"),
        ({}, "unknown kind ''; expected one of"),
        ({**TABLE, "spilts": {}}, "cfg.corpus: unknown key 'spilts'"),
        ({**TABLE, "checks": {"chanel": 0}}, "cfg.corpus.checks: unknown key 'chanel'"),
        ({"kind": "tsv", "splits": {"dev": {"source": "train.tsv"}}}, "--split: 'train' is not one of the splits dev"),
        ({**TABLE, "path": "/nonexistent/folder"}, "the folder /nonexistent/folder does not exist"),
    ],
)
def test_bad_settings(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        body(tmp_path / "out", config)


def test_a_split_whose_name_leads_elsewhere(tmp_path):
    with pytest.raises(UserError, match=r"'\.\./x' is not a valid name"):
        body(tmp_path / "out", {"kind": "tsv", "splits": {"../x": {"source": "train.tsv"}}}, "../x")


def test_data_root_comes_from_the_environment(tmp_path, monkeypatch):
    make_corpus(tmp_path / "voices")
    monkeypatch.setenv("SPEECH_DATA", str(tmp_path))
    assert run(tmp_path / "out", TABLE) == 0
    monkeypatch.delenv("SPEECH_DATA")
    assert run(tmp_path / "out", TABLE) == 2


def test_what_was_read_is_on_record(tmp_path):
    root, out = make_corpus(tmp_path / "in"), tmp_path / "out"
    (root / "1.flac").unlink()
    assert run(out, {**TABLE, "path": str(root)}) == 0
    path = out / "train.audio.json"
    record = json.loads(path.read_text())
    assert (record["track"], record["count"], record["root"]) == ("stat", 6, str(root))
    assert record["files"]["1.flac"] is None  # it may come
    assert tracking.changed(path) is None
    (root / "0.flac").touch()
    assert tracking.changed(path) is None
    (root / "0.flac").write_bytes((root / "2.flac").read_bytes())
    assert tracking.changed(path) == "0.flac has changed"
    assert run(out, {**TABLE, "path": str(root)}, track="hash") == 0
    assert len(json.loads(path.read_text())["files"]["0.flac"]) == 64
    # The record is no output: times differ from machine to machine, results do not.
    assert not {name for name in json.loads((out / "train.json").read_text())["outputs"] if "audio.json" in name}


def test_a_new_recording_of_digits_is_a_change(tmp_path):
    (tmp_path / "audio").mkdir()
    for digit in range(10):
        soundfile.write(tmp_path / "audio" / f"{digit}_ann_0.flac", np.full(2000, 0.1), 8000)
    config = {"kind": "digits", "path": str(tmp_path), "splits": {"train": {"speakers": ["ann"], "strings": 3}}}
    assert run(tmp_path / "out", config) == 0
    path = tmp_path / "out" / "train.audio.json"
    assert tracking.changed(path) is None
    time.sleep(0.02)
    soundfile.write(tmp_path / "audio" / "0_ann_1.flac", np.full(2000, 0.1), 8000)
    assert tracking.changed(path) == "files were added to or removed from audio"


# --- a corpus that makes its audio, as espeak does, without eSpeak


@settings.settings
class MadeConfig:
    kind: str
    splits: dict[str, dict[str, int]]
    names: str


def made(config, split, root, audio_dir, seed, jobs):
    """Yield a cut per letter of ``names``, and one item that could not be made."""
    assert audio_dir.is_dir()
    for name in config.names:
        path = audio_dir / f"{name}.flac"
        soundfile.write(path, np.random.default_rng(ord(name)).normal(0, 0.1, 8000), 16_000)
        recording = Recording(name, [AudioSource("file", [0], str(path))], 16_000, 8000, 0.5)
        supervision = SupervisionSegment(name, name, 0.0, 0.5, 0, text=name, language="xx", speaker="v")
        yield MonoCut(name, 0.0, 0.5, 0, supervisions=[supervision], recording=recording)
    yield SetAside("z", "too strange", "nobody can say it")
    if "!" in config.names:
        raise UserError("the voice is gone")


@pytest.fixture
def made_corpus(monkeypatch):
    corpus_module = SimpleNamespace(Config=MadeConfig, locate=lambda config, data_root: None, read=made)
    corpus_module.sources = lambda config, root: []
    monkeypatch.setattr(registry, "module", lambda kind: corpus_module)
    return lambda names: {"kind": "made", "splits": {"train": {}, "dev": {}}, "names": names}


@pytest.mark.parametrize("relative", [False, True])
def test_made_audio_stands_at_its_final_place(tmp_path, monkeypatch, made_corpus, relative):
    monkeypatch.chdir(tmp_path)
    out = Path("exp/out") if relative else tmp_path / "out"
    assert run(out, made_corpus("cab")) == 0
    cuts = list(CutSet.from_file(out / "train.jsonl.gz"))
    assert [cut.id for cut in cuts] == ["a", "b", "c"]
    assert [cut.recording.sources[0].source for cut in cuts] == [str(out / "audio/train" / f"{n}.flac") for n in "abc"]
    assert all(cut.load_audio().shape == (1, 8000) for cut in cuts)
    assert [p.name for p in out.rglob(".*")] == []


def test_made_audio_is_fresh_each_time_and_each_split_has_its_own(tmp_path, made_corpus):
    run_all(tmp_path, made_corpus("abc"))
    first = hashes(tmp_path)
    run(tmp_path, made_corpus("bx"))
    assert sorted(p.name for p in (tmp_path / "audio/train").iterdir()) == ["b.flac", "x.flac"]
    assert sorted(p.name for p in (tmp_path / "audio/dev").iterdir()) == ["a.flac", "b.flac", "c.flac"]
    run(tmp_path, made_corpus("abc"))
    assert hashes(tmp_path) == first


def test_a_reader_that_fails_leaves_the_old_audio(tmp_path, made_corpus):
    run(tmp_path, made_corpus("abc"))
    assert run(tmp_path, made_corpus("x!")) == 2
    assert sorted(p.name for p in (tmp_path / "audio/train").iterdir()) == ["a.flac", "b.flac", "c.flac"]
    assert not list(tmp_path.rglob(".*"))


# --- the program, and a real corpus


def test_program(tmp_path):
    """As a rule calls it: exit code 2 and one line for people; --help without torch."""
    command = [sys.executable, "-m", "lowrank_speech.stages.corpus"]
    cfg = json.dumps({"seed": 1, "corpus": {**TABLE, "path": "nowhere"}})
    arguments = ["--cfg", cfg, "--split", "train", "--out", str(tmp_path), "--manifest", str(tmp_path / "train.json")]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert result.returncode == 2
    assert [line.split()[2] for line in result.stderr.splitlines()] == ["INFO", "ERROR"]  # its header, and why not
    assert "the folder nowhere does not exist" in result.stderr
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
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")
    assert run(tmp_path / "c", config, seed=2) == 0
    assert hashes(tmp_path / "a") != hashes(tmp_path / "c")
