"""Every kind of bad audio is set aside with a reason; good audio next to it is kept."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

from lowrank_speech.corpora.audio import AudioError, check_file
from lowrank_speech.corpora.common import Checks, SetAside, Utterance
from lowrank_speech.corpora.validate import Accepted, mark_duplicates, most_common, relocated, validate

RATE = 16_000


def tone(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return (0.3 * np.sin(np.arange(round(seconds * rate)) * 0.1)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE, **kwargs) -> Path:
    soundfile.write(path, samples, rate, **kwargs)
    return path


def utterance(path: Path, name: str | None = None, **kwargs) -> Utterance:
    return Utterance(id=name or path.stem, audio=str(path), language="en", speaker="s", where="here", **kwargs)


def one(item, checks: Checks | None = None):
    [result] = validate([item], checks or Checks())
    return result


def refused(item, reason: str, checks: Checks | None = None) -> str:
    result = one(item, checks)
    assert isinstance(result, SetAside), result
    assert result.reason == reason, result
    assert result.id == item.id
    return result.detail


def cut_off(path: Path, size: int) -> Path:
    path.write_bytes(path.read_bytes()[:size])
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_good_audio_is_taken(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", tone())
    result = one(utterance(path, text="HELLO"))
    assert isinstance(result, Accepted)
    cut = result.cut
    assert cut.id == cut.supervisions[0].id == "a"
    assert cut.supervisions[0].text == "HELLO"
    assert cut.load_audio().shape == (1, RATE)
    assert np.array_equal(cut.load_audio()[0], soundfile.read(path, dtype="float32")[0])


def test_missing_file(tmp_path):
    assert "gone.wav" in refused(utterance(tmp_path / "gone.wav"), "missing file")
    (tmp_path / "folder.wav").mkdir()
    refused(utterance(tmp_path / "folder.wav"), "missing file")


@pytest.mark.parametrize("content", [b"", b"no audio at all, but some text", b"RIFF\0\0\0\0WAVE", b"OggS", b"fLaC" * 9])
def test_unreadable(tmp_path, content):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    result = one(utterance(path))
    assert result.reason in ("unreadable audio", "truncated audio")
    assert str(path) in result.detail


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.999])
def test_truncated(tmp_path, suffix, share):
    """libsndfile takes a cut WAV or Ogg file for a shorter whole one; here it is found wherever it was cut."""
    path = write(tmp_path / f"a.{suffix}", np.random.default_rng(0).normal(0, 0.1, 3 * RATE))
    cut_off(path, int(path.stat().st_size * share))
    assert one(utterance(path)).reason in ("truncated audio", "unreadable audio")


def test_a_wav_that_lacks_two_bytes_is_truncated(tmp_path):
    path = write(tmp_path / "a.wav", tone())
    cut_off(path, path.stat().st_size - 2)
    assert "32000 bytes" in refused(utterance(path), "truncated audio")


def test_ogg_cut_between_pages(tmp_path):
    path = write(tmp_path / "a.ogg", np.random.default_rng(0).normal(0, 0.1, 5 * RATE))
    content = path.read_bytes()
    cut_off(path, content.rfind(b"OggS"))
    assert "no last page" in refused(utterance(path), "truncated audio")


def test_streamed_wav_is_whole(tmp_path):
    """A program that writes to a pipe cannot know the length: it writes the largest."""
    path = write(tmp_path / "a.wav", tone())
    content = bytearray(path.read_bytes())
    at = content.find(b"data") + 4
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert check_file(path).frames == RATE


def test_trailing_chunk_is_whole(tmp_path):
    path = write(tmp_path / "a.wav", tone())
    path.write_bytes(path.read_bytes() + b"LIST\x04\0\0\0abcd")
    assert check_file(path).frames == RATE


def test_zero_length(tmp_path):
    refused(utterance(write(tmp_path / "a.wav", np.zeros(0, np.float32))), "zero length")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, value):
    samples = tone()
    samples[77] = value
    detail = refused(utterance(write(tmp_path / "a.wav", samples, subtype="FLOAT")), "samples not finite")
    assert "1 of 16000" in detail


def test_silent(tmp_path):
    refused(utterance(write(tmp_path / "a.flac", np.zeros(RATE))), "silent")


def test_stereo_is_set_aside_unless_a_channel_is_chosen(tmp_path):
    left, right = tone(), np.zeros(RATE, np.float32)
    path = write(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    assert "channel: 0" in refused(utterance(path), "several channels")
    result = one(utterance(path), Checks(channel=0))
    assert np.array_equal(result.cut.load_audio()[0], left)
    refused(utterance(path), "silent", Checks(channel=1))
    refused(utterance(path), "no such channel", Checks(channel=2))


def test_other_rates_are_resampled_lazily(tmp_path):
    path = write(tmp_path / "a.flac", tone(rate=8000), 8000)
    cut = one(utterance(path)).cut
    assert cut.sampling_rate == RATE
    assert cut.load_audio().shape == (1, RATE)
    assert cut.recording.sources[0].source == str(path)
    assert "8000 Hz" in refused(utterance(path), "wrong rate", Checks(sampling_rate=RATE))


def ready(path: Path, rate: int = RATE, frames: int = RATE) -> MonoCut:
    recording = Recording("a", [AudioSource("file", [0], str(path))], rate, frames, frames / rate)
    recording = recording.resample(RATE) if rate != RATE else recording
    supervision = SupervisionSegment("a", "a", 0.0, recording.duration, 0, language="en", speaker="s")
    return MonoCut("a", 0.0, recording.duration, 0, supervisions=[supervision], recording=recording)


def test_ready_cuts(tmp_path):
    path = write(tmp_path / "a.wav", tone())
    cut = ready(path)
    assert one(cut).cut is cut
    assert "16000 Hz, the cut says 8000" in refused(ready(path, 8000, 8000), "wrong rate")
    assert "1.500 s" in refused(ready(path, frames=24_000), "wrong duration")
    assert "the cut says 1" in refused(ready(write(tmp_path / "b.wav", np.stack([tone()] * 2, 1))), "several channels")
    refused(ready(tmp_path / "gone.wav"), "missing file")


def test_a_ready_cut_without_its_supervision_is_a_bug_of_its_reader(tmp_path):
    cut = dataclasses.replace(ready(write(tmp_path / "a.wav", tone())), supervisions=[])
    with pytest.raises(ValueError, match="one supervision"):
        one(cut)


def test_duplicates_name_both_places(tmp_path):
    a, b = write(tmp_path / "a.wav", tone()), write(tmp_path / "b.wav", tone())
    items = [utterance(a, "x"), utterance(b, "x"), utterance(a, "x")]
    results = list(validate(mark_duplicates(items), Checks(), jobs=2))
    assert isinstance(results[0], Accepted)
    for result in results[1:]:
        assert result.reason == "duplicate id"
        assert str(a) in result.detail
    assert str(b) in results[1].detail


def test_too_short_and_too_long(tmp_path):
    path = write(tmp_path / "a.wav", tone(0.05))
    refused(utterance(path), "too short")
    assert isinstance(one(utterance(path), Checks(min_seconds=0.01)), Accepted)
    refused(utterance(write(tmp_path / "b.wav", tone(2))), "too long", Checks(max_seconds=1.5))


def test_declared_duration(tmp_path):
    path = write(tmp_path / "a.wav", tone())
    assert isinstance(one(utterance(path, seconds=1.09)), Accepted)
    assert "1.2" in refused(utterance(path, seconds=1.2), "wrong duration")


def test_segments(tmp_path):
    samples = tone(3.0)
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    cut = one(utterance(path, start=0.5, end=1.75)).cut
    assert np.array_equal(cut.load_audio()[0], samples[8000:28000])
    assert one(utterance(path, start=2.0)).cut.duration == 1.0
    assert one(utterance(path, start=2.0, end=3.05)).cut.end == 3.0
    for start, end in [(2.0, 3.2), (3.5, None), (1.0, 1.0), (2.0, 1.0), (-0.5, 1.0), (3.02, 3.05)]:
        refused(utterance(path, start=start, end=end), "segment outside recording")


def test_nan_in_another_segment_does_no_harm(tmp_path):
    samples = tone(2.0)
    samples[30_000] = np.nan
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert isinstance(one(utterance(path, start=0.0, end=1.0)), Accepted)
    refused(utterance(path, start=1.0, end=2.0), "samples not finite")


@pytest.mark.parametrize("name", ["", "a b", "a\tb"])
def test_ids_that_would_break_tables(tmp_path, name):
    item = dataclasses.replace(utterance(write(tmp_path / "a.wav", tone())), id=name)
    refused(item, "bad id")


def test_jobs_change_nothing(tmp_path):
    rng = np.random.default_rng(1)
    paths = [write(tmp_path / f"{i}.flac", rng.normal(0, 0.1, 9000 + i), 11_025) for i in range(12)]
    cut_off(paths[3], 2000)
    items = [utterance(path) for path in paths]
    runs = [list(validate(items, Checks(), jobs)) for jobs in (1, 4)]
    assert [r.sha256 for r in runs[0] if isinstance(r, Accepted)] == [
        r.sha256 for r in runs[1] if isinstance(r, Accepted)
    ]
    assert [r.id for r in runs[1] if isinstance(r, SetAside)] == ["3"]


def test_digest_sees_one_sample(tmp_path):
    samples = tone()
    first = one(utterance(write(tmp_path / "a.wav", samples)))
    samples[5] += 0.01
    assert one(utterance(write(tmp_path / "a.wav", samples))).sha256 != first.sha256


def test_check_file_says_what_it_holds(tmp_path):
    header = check_file(write(tmp_path / "a.wav", 0.5 * np.ones((800, 2)), 8000))
    assert (header.rate, header.frames, header.channels, header.seconds) == (8000, 800, 2, 0.1)
    assert header.peak == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(AudioError, match="missing file"):
        check_file(tmp_path / "b.wav")


def test_relocated(tmp_path):
    path = write(tmp_path / "a.wav", tone())
    (tmp_path / "new").mkdir()
    shutil.move(path, tmp_path / "new" / "a.wav")
    cut = ready(path)
    moved = relocated(cut.append(cut).pad(3.0), lambda p: p.replace("a.wav", "new/a.wav"))
    assert moved.load_audio().shape == (1, 3 * RATE)


def test_most_common():
    assert most_common([]) == ""
    assert most_common(["silent", "too short", "too short"]) == "too short (2)"
    assert most_common(["b", "a"]) == "a (1)"


@pytest.mark.parametrize("kwargs", [{"min_seconds": 2, "max_seconds": 1}, {"channel": -1}, {"min_seconds": -1}])
def test_checks_refuse_nonsense(kwargs):
    with pytest.raises(ValueError, match=r"expected|must"):
        Checks(**kwargs)


def test_flac_without_a_length(tmp_path):
    """As a FLAC encoder leaves it that wrote to a pipe; Lhotse could not seek in it."""
    path = write(tmp_path / "a.flac", tone())
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of the total number of samples in STREAMINFO
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert "no length" in refused(utterance(path), "unreadable audio")
