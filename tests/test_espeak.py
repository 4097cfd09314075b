"""The synthetic corpus: reproducible samples, disjoint splits, requested signal-to-noise ratios, clear errors."""

import hashlib
import itertools
import json
import typing

import numpy as np
import pytest
import soundfile

from lowrank_speech.corpora import espeak, noise, registry, rendering, sentences, synthesis
from lowrank_speech.errors import UserError

SMALL = {
    "kind": "espeak",
    "languages": ["es", "pt"],
    "splits": {
        "pretrain": {"utterances": 6, "voices": ["m1", "f1"], "snr": None},
        "train": {"utterances": 6, "voices": ["m1", "f3"]},
        "test": {"utterances": 5, "voices": ["m7"], "snr": [0, 20]},
    },
}


def config(**changes) -> espeak.Config:
    return registry.read(json.loads(json.dumps(SMALL | changes)), "corpus")


def read(chosen, folder, seed: int, jobs: int = 1) -> list:
    """(split, cut) of all splits, each made by itself, as the stage does."""
    splits = chosen.splits
    return [(split, cut) for split in splits for cut in espeak.read(chosen, split, None, folder, seed, jobs)]


def planned(chosen, seed: int) -> list:
    """The prompts of all splits."""
    return [prompt for split in chosen.splits for prompt in espeak.plan(chosen, split, seed)]


def with_split(name: str, **changes) -> dict:
    return SMALL["splits"] | {name: SMALL["splits"].get(name, {}) | changes}


def digest(folder) -> str:
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.flac")):
        samples, rate = soundfile.read(path, dtype="int16")
        found.update(f"{path.name} {rate} {len(samples)}".encode() + samples.tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    return folder, read(config(), folder, seed=1)


def test_cuts_are_as_all_corpora_make_them(built):
    folder, cuts = built
    assert [split for split, _ in cuts] == ["pretrain"] * 12 + ["train"] * 12 + ["test"] * 10
    assert len({cut.id for _, cut in cuts}) == len(cuts) == len(list(folder.iterdir()))
    for split, cut in cuts:
        (supervision,) = cut.supervisions
        audio = cut.load_audio()
        assert cut.id == supervision.id == cut.recording.id and cut.sampling_rate == 16000
        assert audio.shape == (1, cut.num_samples) and supervision.duration == cut.duration
        assert supervision.language in ("es", "pt") and cut.id.startswith(f"{supervision.language}-{split}-")
        assert supervision.speaker == cut.custom["voice"]
        assert supervision.text[0].isupper() and supervision.text.endswith(".")
        assert 140 <= cut.custom["rate"] <= 200 and 30 <= cut.custom["pitch"] <= 70
        assert (cut.custom["snr"] is None) == (cut.custom["noise"] is None) == (split == "pretrain")


def test_audio_is_heard_short_and_never_clipped(built):
    for _, cut in built[1]:
        samples = cut.load_audio()[0]
        assert 0.8 < cut.duration < 5.0
        assert np.abs(samples).max() == pytest.approx(cut.custom["peak"], abs=1e-4)
        assert 0.3 <= cut.custom["peak"] <= 0.9
        active = noise.active(samples, 16000)
        assert active.sum() > 0.5 * 16000
        assert np.sqrt(np.mean(samples[active] ** 2)) > 0.01


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_second_build_has_the_same_samples(built, tmp_path, jobs):
    folder, cuts = built
    again = read(config(), tmp_path / "a", seed=1, jobs=jobs)
    assert digest(tmp_path / "a") == digest(folder)
    assert [(s, c.id, c.custom, c.supervisions) for s, c in again] == [
        (s, c.id, c.custom, c.supervisions) for s, c in cuts
    ]


def test_another_seed_gives_another_corpus_and_a_larger_one_begins_alike():
    plan = planned(config(), 1)
    assert plan == planned(config(), 1) != planned(config(), 2)
    larger = planned(config(splits=with_split("train", utterances=60), languages=["es", "pt", "de"]), 1)
    assert set(plan) <= set(larger)


def test_a_split_alone_with_the_shares_of_the_held_out_ones_is_the_same():
    """A job makes one split; of the others it knows only which are held out."""
    whole = config()
    assert whole.shares == {"test": 0.1}
    for name, section in SMALL["splits"].items():
        alone = config(splits={name: {**section, "share": 0.4}}, held_out=whole.shares)
        assert espeak.plan(alone, name, 1) == espeak.plan(whole, name, 1)
        babble = rendering.talkers(alone, 1)
        assert bool(babble) == (section.get("snr", True) is not None)
        assert all(map(np.array_equal, babble, rendering.talkers(whole, 1)))
    assert espeak.plan(config(held_out={"test": 0.5}), "train", 1) != espeak.plan(whole, "train", 1)


def test_kinds_of_noise_are_told_once():
    assert typing.get_args(espeak.Noise) == noise.KINDS


def test_held_out_splits_share_no_sentence_and_no_voice():
    splits = espeak.Config().splits
    plan = planned(espeak.Config(), 3)
    assert len(plan) == 6 * sum(split.utterances for split in splits.values())
    assert len({prompt.id for prompt in plan}) == len(plan)
    for held_out, other in itertools.product(("dev", "test"), splits):
        if held_out != other:
            for what in (lambda p: sentences.key(p.text), lambda p: p.voice, lambda p: p.voice.partition("+")[2]):
                one, rest = ({what(p) for p in plan if p.split == split} for split in (held_out, other))
                assert not one & rest
    assert not any(p.free for p in plan if p.split in ("dev", "test"))
    for language in espeak.Config().languages:
        known, tested = (
            {
                word
                for p in plan
                if p.language == language and p.split in which
                for word in sentences.key(p.text).split()
            }
            for which in (("pretrain", "train"), ("dev", "test"))
        )
        assert tested <= known


@pytest.mark.parametrize("kind", noise.KINDS)
def test_the_file_has_the_stated_ratio(kind, tmp_path):
    """Speech and noise are found back in the file by least squares, without the code that mixed them."""
    chosen = config(splits={"test": {"utterances": 2, "voices": ["m7"], "noises": [kind], "snr": [0, 20]}})
    babblers = rendering.talkers(chosen, 5)
    cuts = {cut.id: cut for _, cut in read(chosen, tmp_path, seed=5)}
    for prompt in planned(chosen, 5):
        speech, _ = rendering.mixture(prompt, babblers, 5, 16000)
        background = noise.make(kind, len(speech), noise.generator(5, prompt.id, "noise"), 16000, babblers)
        heard = cuts[prompt.id].load_audio()[0].astype(np.float64)
        parts = np.stack([speech, background], axis=1)
        weights, *_ = np.linalg.lstsq(parts, heard, rcond=None)
        assert np.abs(parts @ weights - heard).max() < 1e-4  # nothing else is in the file
        mask = noise.active(speech, 16000)
        power = [np.mean((weight * part[mask]) ** 2) for weight, part in zip(weights, parts.T, strict=True)]
        assert 10 * np.log10(power[0] / power[1]) == pytest.approx(cuts[prompt.id].custom["snr"], abs=0.1)


def test_silence_is_put_around_the_speech():
    clean = planned(config(), 1)[0]
    speech, mixed = rendering.mixture(clean, [], 1, 16000)
    before, after = (round(seconds * 16000) for seconds in clean.silence)
    assert not speech[:before].any() and not speech[-after:].any() and before > 0 < after
    trimmed = rendering.spoken(clean.voice, clean.text, clean.rate, clean.pitch, 16000)
    assert len(speech) == before + len(trimmed) + after
    assert np.allclose(mixed / np.abs(mixed).max(), speech / np.abs(speech).max())


def test_resampling_is_that_of_scipy():
    from scipy.signal import resample_poly

    samples = synthesis.say("de+m1", "Guten Tag.", 170, 50) / 32768
    expected = resample_poly(samples, 320, 441)
    found = rendering.spoken("de+m1", "Guten Tag.", 170, 50, 16000)
    heard = np.flatnonzero(noise.active(expected, 16000))
    assert np.allclose(found, expected[heard[0] : heard[-1] + 1], atol=1e-12)


def test_telephone_rate_is_resampled_on_loading(tmp_path):
    chosen = config(languages=["de"], sample_rate=8000, splits={"train": {"utterances": 1, "voices": ["m1"]}})
    ((_, cut),) = read(chosen, tmp_path, seed=1)
    assert soundfile.info(tmp_path / f"{cut.id}.flac").samplerate == 8000
    audio = cut.load_audio()
    assert cut.sampling_rate == 16000 and audio.shape == (1, cut.num_samples)


def test_babble_has_no_voice_of_a_split_and_all_languages():
    assert len(rendering.talkers(config(), 1)) == 4 * rendering.BABBLERS  # es, es-419, pt, pt-br
    assert (
        rendering.talkers(config(splits={"train": {"utterances": 1, "voices": ["m1"], "noises": ["white"]}}), 1) == []
    )


def test_synthesis_is_the_same_at_every_call():
    calls = [synthesis.say("nl+f2", "De kat slaapt.", 160, 40) for _ in range(3)]
    assert all(np.array_equal(calls[0], other) for other in calls[1:])
    slow = synthesis.say("nl+f2", "De kat slaapt.", 110, 40)
    assert len(slow) > 1.2 * len(calls[0])
    assert not np.array_equal(calls[0], synthesis.say("nl+f2", "De kat slaapt.", 160, 80))


@pytest.mark.parametrize("voice", ["en-us+f3", "en-us+f5", "es-419+f3"])  # these draw random numbers
def test_synthesis_does_not_depend_on_the_time_of_the_start(voice):
    said = []
    for seed in (11, 12):  # eSpeak itself seeds with the time in seconds
        synthesis._library().espeak_ng_SetRandSeed(seed)
        synthesis.LIBC.srand(seed)
        said.append(synthesis.say(voice, sentences.load("en").free[0], 170, 50))
    assert np.array_equal(*said)


@pytest.mark.parametrize("language", sentences.known())
def test_default_voices_speak_and_differ(language):
    grammar = sentences.load(language)
    said = [synthesis.say(f"{voice}+m1", grammar.free[0], 170, 50).tobytes() for voice in grammar.voices]
    assert len(set(said)) == len(said)
    for voice in grammar.voices:
        synthesis.check(voice, grammar.free[0])


def test_missing_and_silent_voices_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="'en-gb'"):
        synthesis.check("en-gb", "Hello.")
    with pytest.raises(UserError, match=r"'zzz'.*'de\+zzz'.*m1"):
        synthesis.check("de+zzz", "Hallo.")
    with pytest.raises(UserError, match=r"'de\+m1' is silent"):
        synthesis.check("de+m1", "")
    wrong = config(languages={"de": {"voices": ["fr-fr"]}})
    with pytest.raises(UserError, match="'fr-fr'"):
        read(wrong, tmp_path, seed=1)
    monkeypatch.setattr(synthesis, "say", lambda *_: np.zeros(22050, np.int16))
    with pytest.raises(UserError, match="voice 'es' is silent"):
        read(config(), tmp_path, seed=1)
    with pytest.raises(UserError, match=r"voice 'de\+m1' is silent on the text 'Hallo.'"):
        rendering.spoken("de+m1", "Hallo.", 170, 50, 16000)


def test_a_child_that_dies_or_hangs_is_an_error(monkeypatch):
    def dies(*_):
        raise RuntimeError("boom")

    monkeypatch.setattr(synthesis, "_speak", dies)
    with pytest.raises(UserError, match=r"failed on the voice 'de'.*exit code 4"):
        synthesis.say("de", "Hallo.", 170, 50)
    import time

    monkeypatch.setattr(synthesis, "_speak", lambda *_: time.sleep(60))
    monkeypatch.setattr(synthesis, "LONGEST", 0.2)
    with pytest.raises(UserError, match="exit code -9"):
        synthesis.say("de", "Hallo.", 170, 50)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languages": ["es", "tlh"]}, r"'tlh'.*known languages: de, en"),
        ({"languages": []}, "languages"),
        ({"languages": {"es": {"voices": ["es+m1"]}}}, "without a variant"),
        ({"splits": with_split("train", voices=["m7", "m1"])}, r"'m7'.*'test'.*'train'|'m7'.*'train'.*'test'"),
        ({"splits": with_split("train", snr=[20, 5])}, r"splits\.train.*snr"),
        ({"splits": with_split("train", rates=[100])}, "rates"),
        ({"splits": with_split("train", pitches=[0, 101])}, "pitches"),
        ({"splits": with_split("train", noises=["green"])}, "noises.*babble"),
        ({"splits": with_split("train", utterances=0)}, "utterances"),
        ({"splits": with_split("train", voices=[])}, "voices"),
        ({"splits": with_split("test", share=1.0)}, "share"),
        ({"held_out": ["tset"]}, "'tset' is not one of the splits"),
        ({"sample_rate": 44100}, "sample_rate"),
        ({"colour": 1}, "'colour'"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_held_out_is_a_choice_and_nothing_is_read_from_disk():
    shared = with_split("train", voices=["m7"])
    assert config(splits=shared, held_out=[]).shares == {}
    assert config().shares == {"test": 0.1}
    assert espeak.locate(config(), None) is None
    many = config(splits={"test": {"utterances": 4000, "voices": ["m7"]}})
    with pytest.raises(UserError, match=r"split test needs 4000"):
        planned(many, 1)
