"""The reported length of an audio file equals its decoded length in every container of libsndfile, or it is an error.

The tests write misleading files: headers with wrong sizes, streams without the first frame, files joined by `cat`.
"""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from lowrank_speech.corpora.audio import AudioError, check_file
from lowrank_speech.corpora.common import Utterance
from lowrank_speech.corpora.containers import mpeg, ogg
from lowrank_speech.corpora.parts import SplitConfig, select
from lowrank_speech.stages import corpus

RATE = 16_000
MORE = "more audio than declared"


def speech(seconds: float = 2.0, rate: int = RATE) -> np.ndarray:
    """Tones with a quiet start and end, so that an encoder with a variable bit rate varies it."""
    time = np.arange(round(seconds * rate)) / rate
    found = sum(0.05 * np.sin(2 * np.pi * f * time) for f in range(200, 7000, 300))
    found[: rate // 4] = 0
    return found.astype(np.float32)


LOUD = speech()[::-1].copy()
"""Starts loud: a guess from the first frame's bit rate is too short."""
QUIET = speech()
"""Starts quiet: the guess is too long."""


def encoded(path: Path, samples: np.ndarray = LOUD, rate: int = RATE, **options) -> bytes:
    soundfile.write(path, samples, rate, **options)
    return path.read_bytes()


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refused(path: Path) -> str:
    with pytest.raises(AudioError) as caught:
        check_file(path)
    assert str(path) in caught.value.detail and "\n" not in caught.value.detail
    return caught.value.reason


def patched(content: bytes, at: int, form: str, value: int) -> bytes:
    return content[:at] + struct.pack(form, value) + content[at + struct.calcsize(form) :]


# --- every container: whole, cut off, joined


def formats() -> list[tuple[str, str]]:
    written = []
    for form in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(form):
            if form != "RAW" and not (form == "MP3" and subtype != "MPEG_LAYER_III"):
                written.append((form, subtype))
    return written


# Without a length in the header: a file that ends early is a shorter file.
OPEN = ("IRCAM", "PAF", "PVF", "XI", "SD2")
ENDINGS = {"NIST": "nist", "IRCAM": "sf", "WAVEX": "wav", "SVX": "iff"}


@pytest.mark.parametrize(("form", "subtype"), formats())
def test_every_container(tmp_path, form, subtype):
    path = tmp_path / f"a.{ENDINGS.get(form, form.lower())}"
    rate = {"WVE": 8000}.get(form, RATE)
    try:
        soundfile.write(path, LOUD, rate, format=form, subtype=subtype)
        expected, _ = soundfile.read(path, dtype="float32")
    except soundfile.SoundFileError as error:
        pytest.skip(f"libsndfile cannot write and read it: {error}")
    content = path.read_bytes()
    assert check_file(path).frames == len(expected)
    put(path, content[:-1000])
    assert form in OPEN or refused(path) in ("truncated audio", "unreadable audio")
    if form != "SD2":  # whose header is a file of its own, without a length
        assert refused(put(path, content + content)) in (MORE, "unreadable audio")
    if form not in ("FLAC", "MP3", "OGG", *OPEN):  # of these, noise is not audio, or cannot be told from it
        put(path, content + np.random.default_rng(0).bytes(200_000))
        assert refused(path) in (MORE, "unreadable audio")


@pytest.mark.parametrize("form", ["WAV", "AIFF", "FLAC", "MP3", "OGG"])
@pytest.mark.parametrize("tag", [b"TAG" + bytes(125), b"ID3\x04\0\0\0\0\x02\0" + bytes(256), bytes(70_000)])
def test_tags_and_padding_behind_the_samples_are_no_audio(tmp_path, form, tag):
    path = tmp_path / f"a.{form.lower()}"
    content = encoded(path, format=form)
    frames = check_file(path).frames
    assert check_file(put(path, content + tag)).frames == frames


@pytest.mark.parametrize("form", ["WAV", "FLAC", "MP3"])
def test_a_tag_before_the_header(tmp_path, form):
    path = tmp_path / f"a.{form.lower()}"
    content = encoded(path, format=form)
    frames = check_file(path).frames
    tag = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)
    assert check_file(put(path, tag + content)).frames == frames
    assert refused(put(path, tag + content[: len(content) // 2])) in ("truncated audio", "unreadable audio")


# --- headers that say something else


@pytest.mark.parametrize("declared", [0, 100, 32_000])
@pytest.mark.parametrize(
    ("form", "name", "at", "coded"),
    [
        ("WAV", b"data", 4, "<I"),
        ("WAVEX", b"data", 4, "<I"),
        ("RF64", b"ds64", 16, "<Q"),
        ("W64", b"data", 16, "<Q"),
        ("AIFF", b"SSND", 4, ">I"),
        ("SVX", b"BODY", 4, ">I"),
        ("CAF", b"data", 4, ">q"),
        ("AU", b".snd", 8, ">I"),
    ],
)
def test_sizes_that_are_too_small(tmp_path, form, name, at, coded, declared):
    """libsndfile believes some of these, and takes others up to the end of the file."""
    path = tmp_path / f"a.{ENDINGS.get(form, form.lower())}"
    content = encoded(path, format=form, subtype="PCM_16")
    place = content.index(name) + at
    assert refused(put(path, patched(content, place, coded, declared))) in (MORE, "unreadable audio")


@pytest.mark.parametrize(("form", "name", "at"), [("AIFF", b"SSND", 4), ("AU", b".snd", 8), ("CAF", b"data", 4)])
def test_sizes_that_are_too_large(tmp_path, form, name, at):
    path = tmp_path / f"a.{form.lower()}"
    content = encoded(path, format=form, subtype="PCM_16")
    coded, size = (">q", 128_000) if form == "CAF" else (">I", 128_000)
    content = patched(content, content.index(name) + at, coded, size)
    assert refused(put(path, content)) in ("truncated audio", "unreadable audio")


def test_a_length_of_au_that_is_left_open(tmp_path):
    path = tmp_path / "a.au"
    content = encoded(path, subtype="PCM_16")
    assert check_file(put(path, patched(content, 8, ">I", 0xFFFFFFFF))).frames == len(LOUD)


def test_nist_headers_count(tmp_path):
    path = tmp_path / "a.nist"
    content = encoded(path, format="NIST", subtype="PCM_16")
    assert b"sample_count -i 32000" in content
    assert refused(put(path, content.replace(b"count -i 32000", b"count -i 16000"))) == MORE
    assert refused(put(path, content.replace(b"count -i 32000", b"count -i 64000"))) == "truncated audio"


def test_a_chunk_behind_the_samples_that_libsndfile_takes_for_samples(tmp_path):
    path = tmp_path / "a.w64"
    content = encoded(path, format="W64", subtype="PCM_16")
    name = b"levl" + bytes.fromhex("f3acd3118cd100c04f8edb8a")
    assert check_file(put(path, content + name + struct.pack("<Q", 24 + 64) + bytes(64))).frames > len(LOUD)
    assert refused(put(path, content + name + struct.pack("<Q", 24 + 9000) + b"x" * 9000)) == MORE


@pytest.mark.parametrize("name", [b"fmt ", b"data"])
@pytest.mark.parametrize("length", [0, 1 << 63, (1 << 64) - 1])
def test_a_chunk_whose_size_leads_nowhere(tmp_path, name, length):
    """Of Wave64, whose sizes have 64 bits and count the head of the chunk: some lead back, and made a loop."""
    path = tmp_path / "a.w64"
    content = encoded(path, format="W64", subtype="PCM_16")
    put(path, patched(content, content.index(name) + 16, "<Q", length))
    try:
        assert check_file(path).frames == len(LOUD)
    except AudioError as error:
        assert error.reason in (MORE, "truncated audio", "unreadable audio")


def test_two_chunks_of_samples(tmp_path):
    path = tmp_path / "a.wav"
    content = encoded(path, subtype="PCM_16")
    assert refused(put(path, content + b"data" + struct.pack("<I", 4000) + bytes(4000))) == MORE


def test_flac_that_goes_on_behind_its_declared_end(tmp_path):
    path = tmp_path / "a.flac"
    content = encoded(path)
    assert soundfile.info(put(path, patched(content, 22, ">I", 20_000))).frames == 20_000
    assert refused(path) == MORE


def test_raw_files_have_no_header(tmp_path):
    path = put(tmp_path / "a.raw", b"\1\2" * 8000)
    assert refused(path) == "unreadable audio"


# --- Ogg


def with_position(content: bytes, position: int) -> bytes:
    """The last page with another length, and its checksum right."""
    last = ogg.pages(content, Path("x"))[-1]
    page = bytearray(content[last.start : last.start + last.length])
    page[6:14], page[22:26] = struct.pack("<q", position), bytes(4)
    page[22:26] = struct.pack("<I", ogg.checksum(bytes(page)))
    return content[: last.start] + bytes(page)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("seconds", [0.1, 0.4, 0.99, 1.0, 1.01, 2.0])
def test_short_ogg_files_are_read(tmp_path, subtype, seconds):
    """Opus of one page, up to a second, counted as malformed."""
    path = tmp_path / "short.ogg"
    samples = np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds))
    soundfile.write(path, samples, 16_000, format="OGG", subtype=subtype)
    assert check_file(path).frames == len(samples) == len(soundfile.read(path)[0])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_the_last_page_of_ogg_may_lie(tmp_path, subtype):
    path = tmp_path / "a.ogg"
    content = encoded(path, format="OGG", subtype=subtype)
    last = ogg.pages(content, path)[-1].position
    assert with_position(content, last) == content  # the checksum is Ogg's
    assert check_file(path).frames == len(LOUD)
    assert soundfile.info(put(path, with_position(content, last // 2))).frames < 0.6 * len(LOUD)
    assert refused(path) == MORE
    if subtype == "OPUS":  # libsndfile corrects a length that is too large for Vorbis
        assert refused(put(path, with_position(content, 2 * last))) == "truncated audio"


def test_a_page_that_is_missing(tmp_path):
    path = tmp_path / "a.ogg"
    content = encoded(path, np.tile(LOUD, 4), format="OGG", subtype="OPUS")
    found = ogg.pages(content, path)
    gone = found[len(found) // 2]
    assert len(found) > 4
    assert refused(put(path, content[: gone.start] + content[gone.start + gone.length :])) == "truncated audio"


# --- MP3


def mp3(path: Path, samples: np.ndarray, mode: str) -> tuple[bytes, bytes]:
    """A file with the tag of its encoder (Xing or Info), and the same without it."""
    with soundfile.SoundFile(
        path, "w", RATE, 1, "MPEG_LAYER_III", format="MP3", compression_level=0.3, bitrate_mode=mode
    ) as file:
        file.write(samples)
    content = path.read_bytes()
    return content, content[mpeg._frame(content, 0).length :]


def test_mp3_with_a_tag_has_the_encoded_length(tmp_path):
    for mode in ("CONSTANT", "VARIABLE", "AVERAGE"):
        mp3(tmp_path / "a.mp3", LOUD, mode)
        assert check_file(tmp_path / "a.mp3").frames == len(LOUD)


def test_mp3_whose_length_libsndfile_guesses_too_short_is_refused(tmp_path):
    """It would be heard as half of itself, with its whole transcript."""
    path = tmp_path / "a.mp3"
    _, bare = mp3(path, LOUD, "VARIABLE")
    assert soundfile.info(put(path, bare)).frames < 0.7 * len(LOUD)
    assert refused(path) == MORE
    with pytest.raises(AudioError, match=r"has 2\.\d+ s, but its first frame declares no length, .* convert it"):
        check_file(path)


def test_mp3_whose_length_libsndfile_guesses_too_long_is_whole(tmp_path):
    path = tmp_path / "a.mp3"
    _, bare = mp3(path, QUIET, "VARIABLE")
    assert soundfile.info(put(path, bare)).frames > 1.5 * len(QUIET)
    frames = check_file(path).frames
    assert frames == mpeg.count(bare, path).samples
    assert 0 < frames - len(QUIET) < 2000  # what the encoder added: no tag says how much


def test_mp3_with_a_constant_rate_and_no_tag_is_whole(tmp_path):
    path = tmp_path / "a.mp3"
    _, bare = mp3(path, LOUD, "CONSTANT")
    for content in (bare, bare + b"TAG" + bytes(125), b"ID3\x04\0\0\0\0\x02\0" + bytes(256) + bare):
        assert check_file(put(path, content)).frames == mpeg.count(bare, path).samples


def test_joined_mp3(tmp_path):
    path = tmp_path / "a.mp3"
    tagged, bare = mp3(path, LOUD, "CONSTANT")
    assert soundfile.info(put(path, tagged + tagged)).frames == len(LOUD)
    assert refused(path) == MORE
    assert refused(put(path, tagged + bare)) == MORE
    # Without a tag the guess takes in both, and so does decoding.
    assert check_file(put(path, bare + bare)).frames == 2 * mpeg.count(bare, path).samples
    tag = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)
    assert check_file(put(path, bare + tag + bare)).frames == 2 * mpeg.count(bare, path).samples


def test_joined_mp3_of_two_rates(tmp_path):
    _, bare = mp3(tmp_path / "a.mp3", LOUD, "CONSTANT")
    other = encoded(tmp_path / "b.mp3", LOUD, 24_000)
    assert refused(put(tmp_path / "c.mp3", bare + other)) in (MORE, "unreadable audio")


def test_truncated_mp3(tmp_path):
    path = tmp_path / "a.mp3"
    tagged, bare = mp3(path, LOUD, "CONSTANT")
    frame = mpeg._frame(bare, 0).length
    assert refused(put(path, tagged[:-100])) == "truncated audio"
    assert refused(put(path, tagged[:-frame])) == "truncated audio"  # between two frames
    assert refused(put(path, bare[:-100])) == "truncated audio"


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_mp3_in_a_wav_file(tmp_path, mode):
    _, bare = mp3(tmp_path / "a.mp3", LOUD, mode)
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 144, 1, 1393)
    fact = b"fact" + struct.pack("<II", 4, len(LOUD))
    body = b"WAVEfmt " + struct.pack("<I", len(form)) + form + fact + b"data" + struct.pack("<I", len(bare)) + bare
    path = put(tmp_path / "a.wav", b"RIFF" + struct.pack("<I", len(body)) + body)
    expected, _ = soundfile.read(path, dtype="float32")
    held = mpeg.count(bare, path).samples
    if len(expected) < held - 2000:
        assert refused(path) == MORE
    else:
        assert check_file(path).frames == len(expected)
    assert refused(put(path, path.read_bytes()[:-500])) == "truncated audio"


@pytest.mark.parametrize("lie", [1.0, 0.5, 2.0])
def test_mp3_with_a_tag_of_fraunhofer(tmp_path, lie):
    path = tmp_path / "a.mp3"
    tagged, bare = mp3(path, LOUD, "CONSTANT")
    first = mpeg._frame(tagged, 0).length
    count = mpeg.count(bare, path)
    tag = bytearray(tagged[:4] + bytes(first - 4))
    tag[36:58] = b"VBRI" + struct.pack(">HHHIIHH", 1, 0, 0, len(bare), round(count.frames * lie), 1, 1)
    put(path, bytes(tag) + bare)
    if lie == 2.0:
        assert refused(path) == "truncated audio"
    else:
        assert abs(check_file(path).frames - count.samples) <= count.frame


def test_frames_of_the_older_layers_are_counted():
    """ISO 11172-3: 384 samples a frame in layer I, 1152 in layer II; lengths by hand."""
    first = bytes([0xFF, 0xFF, 0xC4, 0xC0]) + bytes(4 * (12_000 * 384 // 48_000) - 4)  # 384 kbit/s, 48 kHz, mono
    found = mpeg.count(first * 3, Path("x"))
    assert (found.frames, found.samples, found.declared) == (3, 3 * 384, None)
    second = bytes([0xFF, 0xFD, 0x90, 0xC0]) + bytes(144_000 * 160 // 44_100 - 4)  # 160 kbit/s, 44.1 kHz
    assert mpeg.count(second * 5, Path("x")).samples == 5 * 1152
    assert mpeg.count(b"no frames at all" * 99, Path("x")) is None


# --- through the stage: what later stages load


def test_later_stages_load_what_the_manifest_says(tmp_path):
    """One file of every kind that people bring: set aside, or loaded with exactly its samples."""
    wanted = {}
    tagged, bare = mp3(tmp_path / "x.mp3", LOUD, "VARIABLE")
    _, quiet = mp3(tmp_path / "x.mp3", QUIET, "VARIABLE")
    _, constant = mp3(tmp_path / "x.mp3", LOUD, "CONSTANT")
    for name, content in (("tagged", tagged), ("bare", bare), ("quiet", quiet), ("twice", tagged * 2)):
        put(tmp_path / f"{name}.mp3", content)
    put(tmp_path / "constant.mp3", constant)
    for ending in ("wav", "flac", "ogg", "aiff", "au", "caf"):
        encoded(tmp_path / f"{ending}.{ending}")
        wanted[ending] = len(LOUD)
    encoded(tmp_path / "opus.opus", format="OGG", subtype="OPUS")
    wanted |= {"opus": len(LOUD), "tagged": len(LOUD)}
    wanted |= {name: mpeg.count(c, tmp_path).samples for name, c in (("quiet", quiet), ("constant", constant))}
    files = [path for path in sorted(tmp_path.iterdir()) if path.stem != "x"]
    rows = "".join(f"{path.stem}\t{path.name}\ten\tme\n" for path in files)
    (tmp_path / "train.tsv").write_text("id\taudio\tlanguage\tspeaker\n" + rows)
    section = {
        "kind": "tsv",
        "path": str(tmp_path),
        "columns": {"text": None},
        "splits": {"t": {"source": "train.tsv"}},
    }
    out = tmp_path / "out"
    where = ["--split", "t", "--out", str(out), "--manifest", str(out / "t.json")]
    assert corpus.main(["--cfg", json.dumps({"seed": 1, "corpus": section}), *where]) == 0
    found = {cut.id: cut for cut in CutSet.from_file(out / "t.jsonl.gz")}
    assert {name: cut.recording.num_samples for name, cut in found.items()} == wanted
    for cut in found.values():
        assert cut.load_audio().shape == (1, cut.recording.num_samples)
    listed = (out / "t.set_aside.tsv").read_text()
    assert {line.split("\t")[0]: line.split("\t")[1] for line in listed.splitlines()[1:]} == {
        "bare": MORE,
        "twice": MORE,
    }
    assert gzip.decompress((out / "t.jsonl.gz").read_bytes()).count(b"\n") == len(wanted)


def test_a_limit_in_seconds_counts_decoded_seconds(tmp_path):
    """Without declared durations; libsndfile says that this file has four times its length."""
    _, quiet = mp3(tmp_path / "a.mp3", QUIET, "VARIABLE")
    put(tmp_path / "a.mp3", quiet)
    utterances = [Utterance(f"u{i}", str(tmp_path / "a.mp3"), "en", "s") for i in range(3)]
    assert soundfile.info(tmp_path / "a.mp3").duration > 3
    assert len(select(utterances, SplitConfig("x", max_seconds_per_language=4.5), 1)) == 2
