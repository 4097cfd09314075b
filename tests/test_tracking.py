"""What a corpus depends on, on disk: tables by content, audio by a record that is cheap to compare."""

import json
import os
import subprocess
import sys
import time

import pytest

from lowrank_speech.artefact import write_json
from lowrank_speech.corpora import digits, kaldi, registry, tracking, tsv


@pytest.fixture
def audio(tmp_path):
    (tmp_path / "data" / "a").mkdir(parents=True)
    files = [tmp_path / "data" / "a" / f"{i}.flac" for i in range(4)]
    for file in files[:3]:
        file.write_bytes(b"x" * 10)
    return files  # the last one is missing


def recorded(tmp_path, files, track="auto", listed=()):
    path = tmp_path / "train.audio.json"
    write_json(path, tracking.record(tmp_path / "data", [str(file) for file in files], track, listed))
    return path


def later(path):
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


@pytest.mark.parametrize("track", ["auto", "stat", "hash"])
def test_every_file_is_watched(tmp_path, audio, track):
    path = recorded(tmp_path, audio, track)
    assert tracking.changed(path) is None
    audio[1].write_bytes(b"y" * 11)
    assert tracking.changed(path) == "a/1.flac has changed"
    audio[1].unlink()
    assert tracking.changed(path) == "a/1.flac is gone"


def test_a_missing_file_that_comes_is_a_change(tmp_path, audio):
    path = recorded(tmp_path, audio)
    audio[3].write_bytes(b"x")
    assert tracking.changed(path) == "a/3.flac is new"


@pytest.mark.parametrize("track", ["auto", "stat"])
def test_a_file_with_another_time_and_equal_content_has_not_changed(tmp_path, audio, track):
    path = recorded(tmp_path, audio, track)
    later(audio[0])
    assert tracking.changed(path) is None
    audio[0].write_bytes(b"z" * 10)
    later(audio[0])
    assert tracking.changed(path) == "a/0.flac has changed"


def test_times_count_or_contents(tmp_path, audio, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "MANY", 3)  # too many to read again
        by_time = recorded(tmp_path, audio, "stat")
    later(audio[0])
    assert tracking.changed(by_time) == "a/0.flac has changed"
    by_content = recorded(tmp_path, audio, "hash")
    later(audio[0])
    assert tracking.changed(by_content) is None
    before = audio[0].stat()
    audio[0].write_bytes(b"z" * 10)
    os.utime(audio[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert tracking.changed(by_content) == "a/0.flac has changed"


def test_nothing_is_watched_with_none(tmp_path, audio):
    path = recorded(tmp_path, audio, "none")
    audio[0].unlink()
    assert tracking.changed(path) is None


def test_of_many_files_the_folders_are_watched(tmp_path, audio, monkeypatch):
    monkeypatch.setattr(tracking, "MANY", 3)
    path = recorded(tmp_path, audio)
    record = json.loads(path.read_text())
    assert (record["track"], record["count"], record["files"], list(record["folders"])) == ("folders", 4, {}, ["a"])
    audio[0].write_bytes(b"longer than before")  # written over: not seen, as the documentation says
    assert tracking.changed(path) is None
    time.sleep(0.02)
    audio[3].write_bytes(b"x")
    assert tracking.changed(path) == "files were added to or removed from a"


def test_of_many_folders_those_above_are_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "MANY", 5)
    files = []
    for speaker in range(3):
        for chapter in range(4):
            folder = tmp_path / "data" / str(speaker) / str(chapter)
            folder.mkdir(parents=True)
            files.append(folder / "0.flac")
            files[-1].write_bytes(b"x")
    record = json.loads(recorded(tmp_path, files).read_text())
    assert list(record["folders"]) == ["0", "1", "2"]


def test_a_record_that_is_not_there_or_broken_is_a_change(tmp_path):
    assert tracking.changed(tmp_path / "no.json") == "the record of its audio files is missing"
    (tmp_path / "broken.json").write_text('{"root": 1}')
    assert tracking.changed(tmp_path / "broken.json") == "the record of its audio files cannot be read"


def test_files_outside_the_folder_are_watched(tmp_path, audio):
    elsewhere = tmp_path / "elsewhere.flac"
    elsewhere.write_bytes(b"x")
    path = recorded(tmp_path, [elsewhere])
    assert list(json.loads(path.read_text())["files"]) == [str(elsewhere)]
    elsewhere.unlink()
    assert tracking.changed(path) == f"{elsewhere} is gone"


def test_a_look_at_many_files_is_flat(tmp_path, monkeypatch):
    """By default the time does not grow with the corpus: no file is looked at, and few folders."""
    (tmp_path / "data").mkdir()
    files = [f"{tmp_path}/data/{i % 500}/{i}.flac" for i in range(100_000)]
    record = tracking.record(tmp_path / "data", files, "auto")
    assert (record["count"], len(record["folders"]), record["files"]) == (100_000, 500, {})
    write_json(tmp_path / "r.json", record)
    looked = []
    real = os.stat
    monkeypatch.setattr(tracking.os, "stat", lambda path, **keys: looked.append(path) or real(path, **keys))
    assert tracking.changed(tmp_path / "r.json") is None
    assert len(looked) == 501  # and whether the root is there


# --- what each kind of corpus reads


def config(**keys):
    return registry.read(keys, "corpus")


def test_sources_of_each_kind(tmp_path):
    part = {"train": {"source": "train", "part": [0, 0.5]}, "dev": {"source": "train", "part": [0.5, 1]}}
    found = kaldi.sources(config(kind="kaldi", splits=part), tmp_path)
    names = {"wav.scp", "segments", "text", "utt2spk", "utt2lang", "spk2gender", "reco2dur"}
    assert {path.name for path in found} == names and len(found) == len(names)
    assert {path.parent for path in found} == {tmp_path / "train"}
    tables = {"a": {"source": "a.tsv"}, "b": {"source": "b.tsv"}}
    assert tsv.sources(config(kind="tsv", splits=tables), tmp_path) == [tmp_path / "a.tsv", tmp_path / "b.tsv"]
    strings = config(kind="digits", splits={"a": {"speakers": ["ann"], "strings": 1}})
    assert (digits.sources(strings, tmp_path), digits.listed(strings, tmp_path)) == ([], [tmp_path / "audio"])
    espeak = config(kind="espeak", languages=["de"], splits={"a": {"utterances": 1, "voices": ["m1"]}})
    assert registry.module("espeak").sources(espeak, None) == []


def test_a_table_that_comes_or_goes_changes_the_set(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "wav.scp").write_text("a a.wav\n")
    paths = kaldi.sources(config(kind="kaldi", splits={"train": {"source": "train"}}), tmp_path)
    assert tracking.tables(paths, tmp_path) == {"train/wav.scp": tmp_path / "train" / "wav.scp"}
    (tmp_path / "train" / "text").write_text("a hello\n")
    assert set(tracking.tables(paths, tmp_path)) == {"train/wav.scp", "train/text"}


HEAVY = {"numpy", "scipy", "torch", "lhotse", "soundfile", "pandas", "yaml", "tqdm"}
LIGHT = [
    *(f"corpora.{name}" for name in ("digits", "espeak", "kaldi", "tsv", "registry", "parts", "common", "tracking")),
    *("lang.config", "lang.normalise", "lang.tags", "stages.overlap"),
]


def test_settings_are_read_without_anything_heavy():
    """The workflow reads every slice with its class before the first job."""
    code = f"import sys; [__import__('lowrank_speech.' + name) for name in {LIGHT}]; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def test_tracking_needs_the_standard_library_only():
    code = "import sys; import lowrank_speech.corpora.tracking; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pydantic" not in done.stdout.split()
