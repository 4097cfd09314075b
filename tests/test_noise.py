"""Noise: exact signal-to-noise ratios, spectral slopes of the colours, draws that depend only on seed and names."""

import numpy as np
import pytest

from lowrank_speech.corpora import noise

RATE = 16000


def speech_like(seed: int = 0) -> np.ndarray:
    """Half a second of silence, a second of modulated noise with a pause in it, half a second of silence."""
    rng = np.random.default_rng(seed)
    burst = rng.standard_normal(RATE) * 0.1
    burst[RATE // 3 : RATE // 2] = 0
    return np.concatenate([np.zeros(RATE // 2), burst, np.zeros(RATE // 2)])


def talkers(count: int = 8) -> list[np.ndarray]:
    return [np.random.default_rng(i).standard_normal(3000 + 700 * i) * (i + 1) for i in range(count)]


@pytest.mark.parametrize("kind", noise.KINDS)
@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5, 30.0])
def test_mix_has_the_ratio_over_the_active_part(kind, snr):
    speech = speech_like()
    made = noise.make(kind, len(speech), noise.generator(1, kind), RATE, talkers())
    added = noise.mix(speech, made, snr, RATE) - speech
    mask = noise.active(speech, RATE)
    measured = 10 * np.log10(np.mean(speech[mask] ** 2) / np.mean(added[mask] ** 2))
    assert measured == pytest.approx(snr, abs=1e-6)


def test_silence_around_speech_does_not_change_the_ratio():
    speech, rng = speech_like(), np.random.default_rng(3)
    background = rng.standard_normal(len(speech))
    pad = 5 * RATE
    longer = np.pad(speech, pad)
    around = np.concatenate([rng.standard_normal(pad) * 9, background, rng.standard_normal(pad) * 9])
    assert noise.ratio(longer, around, RATE) == pytest.approx(noise.ratio(speech, background, RATE), abs=1e-9)


def test_active_is_the_burst_without_its_pause():
    mask = noise.active(speech_like(), RATE)
    frame = int(noise.FRAME * RATE)
    assert not mask[: RATE // 2 - frame].any()
    assert not mask[-(RATE // 2) + frame :].any()
    assert not mask[RATE // 2 + RATE // 3 + frame : RATE - frame].any()
    assert mask.mean() == pytest.approx(0.5 * (1 - 1 / 6), abs=0.02)
    assert not noise.active(np.zeros(1000), RATE).any()
    assert len(noise.active(np.ones(333), RATE)) == 333


@pytest.mark.parametrize(("kind", "slope"), [("white", 0.0), ("pink", -1.0), ("brown", -2.0)])
def test_colours_have_their_slope(kind, slope):
    made = noise.make(kind, 20 * RATE, noise.generator(5), RATE)
    power = np.abs(np.fft.rfft(made)) ** 2
    frequency = np.fft.rfftfreq(len(made), 1 / RATE)
    bands = [(low, 2 * low) for low in (100, 200, 400, 800, 1600, 3200)]
    levels = [np.log(power[(frequency >= a) & (frequency < b)].mean()) for a, b in bands]
    found = np.polyfit([np.log(a) for a, _ in bands], levels, 1)[0]
    assert found == pytest.approx(slope, abs=0.1)


def test_hum_stands_at_the_mains_and_its_harmonics():
    made = noise.make("hum", 4 * RATE, noise.generator(5), RATE)
    power = np.abs(np.fft.rfft(made)) ** 2
    frequency = np.fft.rfftfreq(len(made), 1 / RATE)
    mains = frequency[power.argmax()]
    mains = mains / max(1, round(mains / 55))
    nearest = np.abs(frequency / mains - np.round(frequency / mains)) * mains
    assert power[(nearest < 5) & (frequency < 1300)].sum() > 0.95 * power.sum()


def test_babble_mixes_several_talkers_whatever_their_level():
    rng = np.random.default_rng(0)
    tones = [
        np.sin(2 * np.pi * f * np.arange(RATE) / RATE) * rng.uniform(0.01, 9) for f in (200, 300, 400, 500, 600, 700)
    ]
    made = noise.make("babble", RATE, noise.generator(2), RATE, tones)
    power = np.abs(np.fft.rfft(made)) ** 2
    peaks = power[[200, 300, 400, 500, 600, 700]]
    assert peaks.max() / peaks.min() < 10**0.61  # at most 6 dB apart
    with pytest.raises(ValueError, match="talkers"):
        noise.make("babble", RATE, noise.generator(2), RATE)


@pytest.mark.parametrize("kind", noise.KINDS)
@pytest.mark.parametrize("samples", [320, 16001])
def test_same_generator_same_noise_of_unit_power(kind, samples):
    made = [noise.make(kind, samples, noise.generator(7, "a", kind), RATE, talkers()) for _ in range(2)]
    assert np.array_equal(*made)
    assert made[0].shape == (samples,)
    assert np.mean(made[0] ** 2) == pytest.approx(1)
    other = noise.make(kind, samples, noise.generator(7, "b", kind), RATE, talkers())
    assert not np.array_equal(made[0], other)


def test_generator_depends_on_every_name_and_their_borders():
    seeds = [(1, "a", "b"), (1, "ab"), (1, "b", "a"), (2, "a", "b"), (1,)]
    assert len({noise.generator(*s).integers(2**62) for s in seeds}) == len(seeds)


def test_unknown_kind_and_silence_are_refused():
    with pytest.raises(ValueError, match=r"'green'.*white"):
        noise.make("green", 100, noise.generator(1), RATE)
    with pytest.raises(ValueError, match="silence"):
        noise.mix(np.zeros(100), np.ones(100), 5.0, RATE)
    with pytest.raises(ValueError, match="silence"):
        noise.mix(np.ones(100), np.zeros(100), 5.0, RATE)
