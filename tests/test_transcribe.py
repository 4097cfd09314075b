"""The command transcribe: what it reads, what it writes, long recordings, errors."""

import io
import json
import math
import re
import shutil
import sys
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from lowrank_speech.decoding.ctc import greedy
from lowrank_speech.decoding.whisper.decoder import Decoder
from lowrank_speech.errors import UserError
from lowrank_speech.features.inputs import inputs_of
from lowrank_speech.features.logmel import log_mel
from lowrank_speech.inference import ctc, formats
from lowrank_speech.inference.decoders import Request, recogniser
from lowrank_speech.inference.loaded import load
from lowrank_speech.inference.naming import find
from lowrank_speech.inference.network import open_network
from lowrank_speech.inference.resampling import resampled
from lowrank_speech.inference.results import Segment, Transcript, Word
from lowrank_speech.inference.sound import SILENT, open_sound, samples_of
from lowrank_speech.inference.streaming import Mel, Samples, scan
from lowrank_speech.stages import graph
from lowrank_speech.stages import lm as lm_stage
from stage_world import done
from tiny_models import plain
from using import RATE, call, ctc_folder, experiment, language_folder, local, noise, objects, whisper_folder
from whisper_models import TOKENS

__all__ = ["call"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Models and recordings."""
    root = tmp_path_factory.mktemp("use")
    names = SimpleNamespace(root=root, whisper=whisper_folder(root / "whisper"), ctc=ctc_folder(root / "ctc"))
    names.lid = language_folder(root / "lid")
    names.a = noise(root / "a.wav", 1.3)
    names.b = noise(root / "b.flac", 0.7, 44_100, channels=2)
    return names


def network(folder):
    return open_network(find(folder))


# -- reading


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100])
def test_resampling_in_blocks_is_that_of_the_whole(rate):
    wave = torch.randn(rate + 137, generator=torch.Generator().manual_seed(rate))
    whole = torchaudio.functional.resample(wave, rate, RATE)
    for size in (100, 4096, 10**6):
        found = torch.cat(list(resampled(wave.split(size), rate, RATE)))
        assert found.shape == whole.shape and torch.allclose(found, whole, atol=1e-5)


def test_odd_rates_are_resampled_by_ffmpeg():
    """The filter of torchaudio would take a gigabyte for a rate without a common divisor."""
    time = np.arange(3 * 16_001) / 16_001
    wave = torch.from_numpy(np.sin(2 * np.pi * 440 * time)).float()
    found = torch.cat(list(resampled(wave.split(5000), 16_001, RATE))).numpy()
    wanted = np.sin(2 * np.pi * 440 * np.arange(len(found)) / RATE)
    assert abs(len(found) - 3 * RATE) < 50 and np.abs(found - wanted)[500:-500].max() < 0.01


@pytest.mark.parametrize("samples", [1, 200, 201, 400, 401, 16_001, 50_000])
def test_log_mels_in_blocks_are_those_of_the_whole(samples):
    wave = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(1))
    whole = log_mel(wave, 20)
    for size in (50, 7000):
        sound = SimpleNamespace(blocks=lambda size=size: iter(wave.split(size)))
        found = scan(sound, 20)
        assert found.samples == samples and found.mean == pytest.approx(float(wave.mean()), abs=1e-6)
        mel, pieces = Mel(sound, 20, found.loudest), Samples(sound)
        for start, end in ((0, 3), (2, 30), (30, 31), (200, 10_000)):
            assert torch.allclose(mel.read(start, end), whole[start:end], atol=1e-4)
            assert torch.equal(pieces.read(9 * start, 9 * end), wave[9 * start : 9 * end])
        assert mel.floor == pytest.approx(max(float(whole.max()) - 2, -1.5), abs=1e-5)


def video(path, wave=None, picture=True, codec="aac"):
    """A container with a picture, a sound, or both."""
    with av.open(str(path), "w") as container:
        if picture:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        if wave is not None:
            sound = container.add_stream(codec, rate=RATE)
            sound.layout = "mono"
        if picture:
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux([*stream.encode(frame), *stream.encode()])
        if wave is not None:
            frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate = RATE
            fifo = av.AudioFifo()
            fifo.write(frame)
            while (part := fifo.read(1024, partial=True)) is not None:
                container.mux(sound.encode(part))
            container.mux(sound.encode())
    return path


def test_channels_are_averaged_and_videos_are_heard(tmp_path):
    time = np.arange(RATE) / RATE
    wave = 0.3 * np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "two.wav", np.stack([wave, np.zeros(RATE)], 1).astype(np.float32), RATE, "FLOAT")
    assert np.allclose(samples_of(open_sound(tmp_path / "two.wav")), wave / 2, atol=1e-6)
    heard = samples_of(open_sound(video(tmp_path / "v.mp4", wave))).numpy()
    spectrum = np.abs(np.fft.rfft(heard[2000:14_000]))
    assert abs(int(spectrum.argmax()) * RATE / 12_000 - 440) < 3 and abs(len(heard) - RATE) < 2500


def test_every_kind_of_file_or_its_fault(made, tmp_path, call):
    good, data = noise(tmp_path / "good.wav", 0.5), made.a.read_bytes()
    (tmp_path / "text.wav").write_text("this is a text\n" * 99)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    (tmp_path / "head.wav").write_bytes(data[:44])
    soundfile.write(tmp_path / "short.wav", np.zeros(160), RATE)
    video(tmp_path / "silent.mp4")
    video(tmp_path / "v.mkv", 0.1 * np.random.default_rng(0).standard_normal(RATE))
    code, out, err = call("transcribe", made.ctc, tmp_path, tmp_path / "absent.wav", "--format", "json")
    found = {name.rpartition("/")[2]: one for name, one in objects(out).items()}
    assert code == 1
    faults = {
        "text.wav": "is not audio",
        "empty.wav": "is empty: it has 0 bytes",
        "head.wav": "has no samples",
        "silent.mp4": "has no sound",
        "absent.wav": "does not exist",
    }
    for name, fault in faults.items():
        one = found.pop(name)
        assert one["text"] is None and fault in one["error"] and name in one["error"]
        assert f"error: {one['error']}" in err
    assert set(found) == {"good.wav", "cut.wav", "short.wav", "v.mkv"}
    for name in found:
        assert list(found[name]) == ["audio", "text", "language", "seconds", "words"]
    assert "cut.wav: truncated audio" in err and "short.wav: silent" in err and str(good) in out
    assert "5 of 9 recordings have no result" in err


def test_a_recording_too_short_for_a_frame(made, tmp_path, call):
    soundfile.write(tmp_path / "tiny.wav", np.ones(20) * 0.1, RATE)
    code, out, err = call("transcribe", made.ctc, tmp_path / "tiny.wav")
    assert code == 1 and not out and "tiny.wav: it has only 0.001 s, but the model needs at least" in err
    code, _, err = call("transcribe", made.whisper, tmp_path / "tiny.wav")
    assert code == 0 and "tiny.wav: it has only 0.001 s, too little for a word" in err
    noise(tmp_path / "word.wav", 0.2)
    assert "too little" not in call("transcribe", made.whisper, tmp_path / "word.wav")[2]


def test_silence_is_named_in_every_container(tmp_path):
    soundfile.write(tmp_path / "zeros.wav", np.zeros(RATE), 8000)
    soundfile.write(tmp_path / "end.wav", np.r_[np.zeros(RATE), 0.1], RATE)
    soundfile.write(tmp_path / "hiss.flac", 2e-4 * np.random.default_rng(0).standard_normal(RATE).clip(-4, 4), RATE)
    names = "zeros.wav", "zeros.mp4", "end.wav", "hiss.flac"
    video(tmp_path / "zeros.mp4", np.zeros(RATE))
    sounds = [open_sound(tmp_path / name) for name in names]
    for sound in sounds:
        samples_of(sound)
    zeros, encoded, end, hiss = (sound.notes for sound in sounds)
    assert zeros == encoded == [SILENT] and end == [] and hiss[0].startswith("almost silent")


def test_arguments(made, tmp_path, call, monkeypatch):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("in/x.wav", "in/deep/y.WAV", "in/z.txt"):
        (tmp_path / name).write_bytes(made.a.read_bytes())
    monkeypatch.chdir(tmp_path)
    names = lambda *argv: sorted(objects(call("transcribe", made.ctc, *argv, "--format", "json")[1]))  # noqa: E731
    assert names("in") == ["in/deep/y.WAV", "in/x.wav"]
    assert names("in/*.wav") == ["in/x.wav"] and names("in/**/*.[wW]*") == ["in/deep/y.WAV", "in/x.wav"]
    assert names("in/z.txt") == ["in/z.txt"]
    code, out, err = call("transcribe", made.ctc, "in/x.wav", "in", "in/x.wav", "--format", "json")
    assert code == 0 and len(objects(out)) == len(out.splitlines()) == 2 and "in/x.wav is given twice" in err
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(made.a.read_bytes()), isatty=lambda: False))
    assert names("-") == ["-"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{ctc}", "{empty}"], "has no audio files"),
        (["{ctc}", "{empty}/*.wav"], "matches no file"),
        (["{lid}", "{a}"], "use `lowrank-speech identify`"),
        (["{whisper}", "{a}", "--language", "xx"], "expected one of: de, en"),
        (["{ctc}", "{a}", "--language", "9"], "language is '9'"),
        (["{ctc}", "{a}", "--task", "translate"], "only Whisper translates"),
        (["{ctc}", "{a}", "--decoder", "bean"], "expected one of: align, beam, greedy"),
        (["{ctc}", "{a}", "--decoder", "align"], "does not transcribe; expected one of: greedy, beam, hlg"),
        (["{ctc}", "{a}", "--decoder", "hlg"], "give the folder of the stage graph as --graph"),
        (["{ctc}", "{a}", "--lm", "{a}"], "the decoder greedy reads no lm"),
        (["{ctc}", "{a}", "--decoder", "beam", "--lm", "{empty}"], "has no lm.json"),
        (["{ctc}", "{a}", "--decoder-options", "{{"], "--decoder-options is not valid JSON"),
        (["{ctc}", "{a}", "--decoder", "beam", "--decoder-options", '{{"bean": 1}}'], "unknown key 'bean'"),
        (["{ctc}", "{a}", "--dtype", "int8"], "expected fp32 or bf16"),
        (["{ctc}", "{a}", "{b}", "--format", "srt"], "give --output FOLDER"),
        (["{ctc}", "{a}", "--output", "{a}"], "--output"),
        (["{empty}", "{a}"], "config.json is missing"),
        (["{ctc}", "{a}", "--format", "xml"], "xml"),
    ],
)
def test_wrong_arguments(made, tmp_path, call, argv, message):
    (tmp_path / "empty").mkdir()
    code, out, err = call("transcribe", *(text.format(**vars(made), empty=tmp_path / "empty") for text in argv))
    assert code == 2 and not out and message in err
    if "xml" not in message:
        assert err.startswith("error: ") and len(err.strip().splitlines()) == 1


# -- writing


def test_text_of_one_and_of_several(made, call):
    code, one, err = call("transcribe", made.ctc, made.a)
    assert code == 0 and not err and one.count("\n") == 1 and "\t" not in one
    _, both, _ = call("transcribe", made.ctc, made.a, made.b)
    assert f"{made.a}\t{one}" in both and len(both.splitlines()) == 2


def test_a_file_for_each_recording(made, tmp_path, call):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("x.wav", "deep/x.wav"):
        (tmp_path / "in" / name).write_bytes(made.a.read_bytes())
    (tmp_path / "bad.wav").write_text("no audio")
    out = tmp_path / "out"
    code, shown, _ = call(
        "transcribe", made.ctc, tmp_path / "in", tmp_path / "bad.wav", "--format", "json", "--output", out
    )
    assert code == 1 and not shown
    written = {path.relative_to(out).as_posix(): json.loads(path.read_text()) for path in out.rglob("*.json")}
    assert set(written) == {"x.json", "deep/x.json", "bad.json"}
    assert written["x.json"]["text"] == written["deep/x.json"]["text"] and written["bad.json"]["text"] is None
    code, _, err = call(
        "transcribe", made.ctc, tmp_path / "in/x.wav", tmp_path / "in/deep/x.wav", "--output", out / "x"
    )
    assert code == 2 and "would both be written to" in err and not (out / "x").exists()
    code, _, _ = call("transcribe", made.ctc, made.a, made.root / "b.flac", "--format", "ctm", "--output", out)
    assert code == 0 and (out / "a.ctm").is_file() and (out / "b.ctm").is_file()


def test_an_interrupt_keeps_what_is_done(made, tmp_path, call, monkeypatch):
    (tmp_path / "c.wav").write_bytes(made.a.read_bytes())
    calls, short = [], ctc.CtcRecogniser.short

    def interrupted(self, *batch):
        calls.append(batch)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return short(self, *batch)

    monkeypatch.setattr(ctc.CtcRecogniser, "short", interrupted)
    argv = ("transcribe", made.ctc, made.a, tmp_path / "c.wav", "--batch-seconds", 1, "--format", "json")
    code, out, err = call(*argv)
    assert code == 130 and len(objects(out)) == 1 and "interrupted: 1 of 2" in err


WORDS = [
    ("Hello", 0.5, 0.9),
    ("world.", 1.0, 1.4),
    ("It", 4.0, 4.2),
    *((f"word{i}", 5 + i, 5.5 + i) for i in range(30)),
]


def test_subtitles():
    words = tuple(Word(text, start, end, -0.1) for text, start, end in WORDS)
    found = Transcript(" ".join(word.text for word in words), "en", 40.0, words)
    shown = formats.cues(found)
    assert shown[0] == (0.5, 1.4, "Hello world.")
    assert " ".join(text.replace("\n", " ") for _, _, text in shown) == found.text
    for (start, end, text), following in zip(shown, [*shown[1:], (99, 99, "")], strict=True):
        assert start < end <= following[0] and end - start <= formats.LONGEST
        assert len(text.splitlines()) <= 2 and all(len(line) <= formats.LINE for line in text.splitlines())
    srt = formats.written(found, "a.wav", "srt", False)
    assert srt.startswith("1\n00:00:00,500 --> 00:00:01,400\nHello world.\n\n2\n")
    vtt = formats.written(found, "a.wav", "vtt", False)
    assert vtt.startswith("WEBVTT\n\n00:00:00.500 --> 00:00:01.400\nHello world.\n\n")
    escaped = formats.written(Transcript("", None, 1.0, (Word("<b>&", 0, 1),)), "a", "vtt", False)
    assert "&lt;b&gt;&amp;" in escaped
    ctm = formats.written(found, formats.ctm_names(["in/a b.wav"])["in/a b.wav"], "ctm", False).splitlines()
    assert ctm[0] == "a_b 1 0.500 0.400 Hello 0.9048" and len(ctm) == len(words)


def test_names_of_recordings_in_a_ctm_are_different():
    names = formats.ctm_names(["x/a.wav", "y z/a.wav", "y/a b.wav", "-"])
    assert names == {"x/a.wav": "x/a.wav", "y z/a.wav": "y_z/a.wav", "y/a b.wav": "a_b", "-": "stdin"}
    with pytest.raises(UserError, match="would both be called"):
        formats.ctm_names(["x/a b.wav", "x/a_b.wav"])


def test_recordings_of_the_same_name_do_not_mix_in_a_ctm(made, tmp_path, call):
    for name in ("x/a.wav", "y/a.wav"):
        (tmp_path / name).parent.mkdir()
        noise(tmp_path / name, 0.8)
    code, out, _ = call("transcribe", made.whisper, tmp_path / "x", tmp_path / "y", "--format", "ctm")
    found = {line.split()[0] for line in out.splitlines()}
    assert code == 0 and found <= {str(tmp_path / "x/a.wav"), str(tmp_path / "y/a.wav")} and found


def test_subtitles_of_segments_and_of_scripts_without_blanks():
    text = "one two three four five six seven eight nine ten " * 4
    shown = formats.cues(Transcript(text, "en", 10.0, None, (Segment(text.strip(), 2.0, 9.0),)))
    assert shown[0][0] == 2.0 and shown[-1][1] == pytest.approx(9.0) and len(shown) > 1
    assert " ".join(" ".join(t.split()) for _, _, t in shown) == text.strip()
    words = tuple(Word("字", i / 10, i / 10 + 0.1) for i in range(60))
    shown = formats.cues(Transcript("字" * 60, "zh", 6.0, words))
    assert "".join(text.replace("\n", "") for _, _, text in shown) == "字" * 60
    assert all(len(line) <= formats.LINE // 2 for _, _, text in shown for line in text.splitlines())


# -- CTC


def test_the_blank_may_have_any_number(tmp_path, made):
    """The text is that of transformers' own tokenizer on the best path of transformers' own model."""
    transformers = pytest.importorskip("transformers")
    for blank in (0, 4):
        folder = ctc_folder(tmp_path / str(blank), blank)
        hf = transformers.AutoModelForCTC.from_pretrained(folder).eval()
        tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder)
        samples = samples_of(open_sound(made.a))
        with torch.inference_mode():
            path = hf(inputs_of(folder).of(samples)[None]).logits[0].argmax(-1)
        wanted = tokenizer.decode(path.tolist())
        for symbol in ("<s>", "</s>"):
            wanted = wanted.replace(symbol, "")
        found = load(folder).transcribe(made.a).text
        assert found == " ".join(wanted.replace("<unk>", "\ufffd").split()) and found


def test_greedy_is_the_decoder_of_the_pipeline(made):
    net = network(made.ctc)
    samples = [samples_of(open_sound(path)) for path in (made.a, made.b)]
    features, lengths = net.batch([net.input(x) for x in samples])
    with torch.inference_mode():
        wanted = greedy.open(net, net.lang, greedy.Settings())({"features": features, "lengths": lengths})
        found = recogniser(net, Request()).short([net.input(x) for x in samples], [1.3, 0.7])
    assert [one.text for one in found] == [one.text for one in wanted]
    for one in found:
        assert one.text.split() == [word.text for word in one.words]
        assert all(a.end <= b.start for a, b in zip(one.words, one.words[1:], strict=False))


@pytest.fixture(scope="module")
def near(tmp_path_factory):
    """A CTC model that hears only what is near."""
    folder = ctc_folder(tmp_path_factory.mktemp("near") / "ctc")
    hf = local(plain("wav2vec2", vocab_size=13, pad_token_id=0))
    hf.save_pretrained(folder)
    return folder


@torch.inference_mode()
@pytest.mark.parametrize("seconds", [4.0, 7.013, 9.99, 20.0])
def test_chunks_have_the_frames_of_the_whole(near, tmp_path, seconds):
    net = network(near)
    made = ctc.CtcRecogniser(net, greedy.Settings(), chunk=4.0)
    sound = open_sound(noise(tmp_path / "long.wav", seconds))
    whole = made.emissions([made.input(samples_of(sound))])[0]
    chunks = list(made.streamed(sound, scan(sound)))
    assert torch.allclose(torch.cat(chunks), whole, atol=1e-3) and len(chunks) == math.ceil((seconds - 1) / 3)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["greedy", "beam"])
def test_a_long_recording_is_stitched(near, tmp_path, kind, monkeypatch):
    """Stretches have the text and the words of the whole, except where a search was pruned."""
    monkeypatch.setattr(ctc, "STRETCH", 3.0)
    length = 14.0 if kind == "greedy" else 7.0
    sound = open_sound(noise(tmp_path / "long.wav", length))
    request = Request(decoder=kind, options={"beam": 2} if kind == "beam" else {})
    made = recogniser(network(near), request)
    whole = made.short([made.input(samples_of(sound))], [length])[0]
    made.longest = 4.0
    seen = []
    found = made.long(sound, lambda *seconds: seen.append(seconds))
    assert seen[-1][0] == pytest.approx(length, abs=0.1) and found.seconds == length
    if kind == "greedy":
        assert found.text == whole.text and len(found.words) == len(whole.words) > 5
        for one, other in zip(found.words, whole.words, strict=True):
            assert (one.text, one.start, one.end) == (other.text, pytest.approx(other.start), pytest.approx(other.end))
    else:
        assert found.text.split()[:2] == whole.text.split()[:2] and found.words[-1].end > 4


def test_stretches_end_in_pauses():
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(100, 5, generator=generator).log()
    rows[70:80] = torch.tensor([0.0, -9, -9, -9, -9])
    found = list(ctc.stretches(rows.split(30), 90))
    assert [len(one) for one in found] == [75, 25] and torch.equal(torch.cat(found), rows)


def test_a_system_of_an_experiment(tmp_path, call):
    """By its name, by its folder, and copied away from its experiment, where it has its tokenizer files."""
    made = experiment(tmp_path)
    audio = noise(tmp_path / "a.wav", 1.0)
    outputs = {call("transcribe", name, audio)[1] for name in (f"{made.folder}:m/asr/full", made.model)}
    copied = tmp_path / "copied"
    made.model.rename(copied)
    outputs.add(call("transcribe", copied, audio)[1])
    assert len(outputs) == 1 and outputs.pop().strip()
    (copied / "vocab.json").unlink()
    code, _, err = call("transcribe", copied, audio)
    assert code == 2 and "has no tokenizer" in err


def test_a_graph_and_a_language_model_of_the_stages(tmp_path, call):
    """The graph H, of the tokens alone, hears what greedy decoding hears; with words it hears words of the model."""
    pytest.importorskip("kaldifst")
    made = experiment(tmp_path)
    audio, name = noise(tmp_path / "a.wav", 1.0), f"{made.folder}:m/asr/full"
    h, lm = tmp_path / "h", tmp_path / "lm"
    done(graph, {"graph": "h", "lm": None}, h / "graph.json", lang=made.lang, out=h)
    code, out, err = call("transcribe", name, audio, "--decoder", "hlg", "--graph", h)
    assert code == 0 and out == call("transcribe", name, audio)[1], err
    done(lm_stage, {"lm": {"order": 1, "arpa": None}}, lm / "lm.json", lang=made.lang, cuts=made.cuts, out=lm)
    argv = ("transcribe", name, audio, "--decoder", "beam", "--lm", lm, "--decoder-options")
    code, out, err = call(*argv, '{"beam": 10, "vocabulary": "closed"}')
    words = set((lm / "words.txt").read_text().split())
    assert code == 0 and out.strip() and set(out.split()) <= words, err
    code, _, err = call("transcribe", name, audio, "--graph", h)
    assert code == 2 and "the decoder greedy reads no graph" in err


def test_an_arpa_file(made, tmp_path, call):
    arpa = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1 <s>\n-1 </s>\n-1 <unk>\n-0.5 A\n\n\\end\\\n"
    (tmp_path / "words.arpa").write_text(arpa)
    argv = ("transcribe", made.ctc, made.a, "--decoder", "beam", "--decoder-options", '{"beam": 5, "lm_weight": 3}')
    code, plain_text, _ = call(*argv)
    fused_code, fused, _ = call(*argv, "--lm", tmp_path / "words.arpa")
    assert code == fused_code == 0 and fused != plain_text
    code, _, err = call(*argv[:-1], '{"lm": "words"}')
    assert code == 2 and "give it as --lm" in err


# -- Whisper


OPTIONS = {"max_new_tokens": 8}


@torch.inference_mode()
@pytest.mark.parametrize("long", ["sequential", "chunks"])
def test_long_recordings_are_decoded_as_a_whole(made, tmp_path, long):
    """Piece by piece there is the same as from the whole log-mel: text, times of words, language."""
    sound = open_sound(noise(tmp_path / "long.wav", 13.3))
    net = network(made.whisper)
    options = OPTIONS | {"long": long, "temperatures": [0.0]}
    recognise = recogniser(net, Request(options=options, words=True))
    found = recognise.long(sound)
    mel = log_mel(samples_of(sound), 20)
    cut = SimpleNamespace(id="", supervisions=[SimpleNamespace(language=None)])
    batch = {"cuts": [cut], "features": mel[None], "lengths": torch.tensor([len(mel)])}
    (wanted,) = Decoder(net, net.lang, recognise.settings)(batch)
    assert found.text == wanted.text.strip() and found.language == wanted.language and found.segments == wanted.segments
    assert [word.text for word in found.words] == [word.text for word in wanted.words] and found.words
    for one, other in zip(found.words, wanted.words, strict=True):
        assert one.start == pytest.approx(other.start) and one.score == pytest.approx(other.score, abs=1e-3)


def test_long_recordings_get_guards(made):
    net = network(made.whisper)
    for options, guarded in (({}, True), ({"temperatures": [0.0]}, False)):
        made_with = recogniser(net, Request(options=options))
        assert (made_with._guarded().compression_ratio_threshold == 2.4) is guarded
    assert made_with.settings.long == "sequential"


def test_the_language_is_given_or_detected(made, call):
    argv = ("transcribe", made.whisper, made.a, "--format", "json", "--decoder-options", json.dumps(OPTIONS))
    detected = json.loads(call(*argv)[1])
    assert detected["language"] in ("de", "en") and detected["words"] is None and detected["seconds"] == 1.3
    for given, code in (("de", "de"), ("German", "de"), ("en-GB", "en")):
        assert json.loads(call(*argv, "--language", given)[1])["language"] == code
    words = json.loads(call(*argv, "--words")[1])["words"]
    assert words and all(set(word) == {"word", "start", "end", "score"} for word in words)


def test_batches_do_not_change_results(made, tmp_path):
    paths = [noise(tmp_path / f"{i}.wav", seconds, seed=i) for i, seconds in enumerate((0.5, 2.1, 1.0, 6.2, 3.0))]
    for folder in (made.whisper, made.ctc):
        model = load(folder)
        options = {**OPTIONS, "temperatures": [0.0]} if folder == made.whisper else {}
        together = model.transcribe(paths, options=options)
        alone = [model.transcribe(path, options=options) for path in paths]
        assert [one.text for one in together] == [one.text for one in alone]
        assert [one.audio for one in together] == [str(path) for path in paths]


def test_bf16(made):
    for folder in (made.whisper, made.ctc):
        found = load(folder, dtype="bf16").transcribe(
            made.a, words=True, options=OPTIONS if folder == made.whisper else {}
        )
        assert found.text and found.words


def test_english_only(tmp_path, call):
    """An English-only model takes no other language, does not translate, and recognises no languages."""
    special = tuple(token for token in TOKENS if token != "<|transcribe|>")
    folder = whisper_folder(tmp_path / "en", special)
    argv = (folder, noise(tmp_path / "a.wav", 0.5))
    code, out, err = call("transcribe", *argv, "--format", "json", "--language", "en")
    assert code == 0 and json.loads(out)["language"] == "en", err
    for more, message in ((("--language", "fr"), "knows only English"), (("--task", "translate"), "not translate")):
        code, _, err = call("transcribe", *argv, *more)
        assert code == 2 and message in err
    code, _, err = call("identify", *argv)
    assert code == 2 and "English-only Whisper, which knows no languages" in err


def test_damaged_and_incomplete_models(made, tmp_path, call):
    for name in ("whisper", "ctc"):
        shutil.copytree(getattr(made, name), tmp_path / name)
    weights = (tmp_path / "ctc/model.safetensors").read_bytes()
    (tmp_path / "ctc/model.safetensors").write_bytes(weights[: len(weights) // 2])
    (tmp_path / "whisper/tokenizer.json").unlink()
    for name, message in (("ctc", "cannot be loaded"), ("whisper", "tokenizer files")):
        code, _, err = call("transcribe", tmp_path / name, made.a)
        assert code == 2 and message in err and err.startswith("error: ") and len(err.strip().splitlines()) == 1


# -- real speech


@pytest.mark.slow
def test_published_models_on_real_speech(speech_models, speech_data, call):
    wav = {line.split()[0]: line.split()[1] for line in (speech_data / "speechocean762/dev/wav.scp").open()}
    text = {line.split()[0]: line.split()[1:] for line in (speech_data / "speechocean762/dev/text").open()}
    names = [name for name in sorted(wav) if len(text[name]) > 6][:3]
    paths = [speech_data / "speechocean762" / wav[name] for name in names]
    code, out, _ = call("transcribe", speech_models / "whisper-tiny.en", *paths, "--format", "json")
    assert code == 0
    right = total = 0
    for name, path in zip(names, paths, strict=True):
        said = re.sub(r"[^A-Z' ]", " ", objects(out)[str(path)]["text"].upper()).split()
        right, total = right + len(set(said) & set(text[name])), total + len(set(text[name]))
    assert right / total > 0.5
