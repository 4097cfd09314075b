"""Augmentation of samples: speed, reverberation, noise, and their random draws."""

import numpy as np
import pytest
import soundfile
import torch

from lowrank_speech.corpora.noise import generator, ratio
from lowrank_speech.errors import UserError
from lowrank_speech.features.augment import RATE, Augmentation, excerpt, room
from lowrank_speech.training.config import CtcConfig, FactorSgd, Noise, Reverberation, Runtime, TrainConfig


def tone(hertz=400.0, seconds=1.0):
    return torch.from_numpy(
        (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)
    )


def pitch(samples):
    spectrum = np.abs(np.fft.rfft(samples.numpy() * np.hanning(len(samples))))
    return np.argmax(spectrum) * RATE / len(samples)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_changes_length_and_pitch(factor):
    found = Augmentation(speed=[factor])(tone(), 1, 0, "a")
    assert len(found) == pytest.approx(RATE / factor, abs=1) and found.dtype == torch.float32
    assert pitch(found) == pytest.approx(400 * factor, abs=2)


def test_speed_one_leaves_every_sample():
    assert torch.equal(Augmentation(speed=[1.0])(tone(), 1, 0, "a"), tone())


def test_all_speeds_are_drawn():
    augmentation = Augmentation(speed=[0.9, 1.0, 1.1])
    lengths = [len(augmentation(tone(seconds=0.1), 1, 0, f"u{i}")) for i in range(300)]
    counts = {n: lengths.count(n) for n in set(lengths)}
    assert len(counts) == 3 and min(counts.values()) > 60


@pytest.mark.parametrize("kind", ["white", "pink", "brown", "hum"])
def test_noise_has_the_ratio_that_was_drawn(kind):
    speech, augmentation = tone(), Augmentation(noise=Noise((7.0, 12.0), (kind,), None, 1.0))
    found = [augmentation(speech, 1, epoch, "a") - speech for epoch in range(5)]
    ratios = [ratio(speech.double().numpy(), added.double().numpy(), RATE) for added in found]
    assert all(6.999 <= r <= 12.001 for r in ratios) and max(ratios) - min(ratios) > 0.5


def test_silence_stays_silence():
    augmentation = Augmentation(noise=Noise(probability=1.0), reverberation=Reverberation(probability=1.0))
    assert not augmentation(torch.zeros(4000), 1, 0, "a").any()


def test_a_share_of_the_utterances_is_changed():
    augmentation = Augmentation(noise=Noise(probability=0.25))
    short = tone(seconds=0.05)
    changed = sum(not torch.equal(augmentation(short, 1, 0, f"u{i}"), short) for i in range(400))
    assert 70 <= changed <= 130


def test_a_room_decays_as_it_was_asked_to():
    for rt60 in (0.2, 0.6):
        response = room(rt60, 3.0, generator(1, "room"))
        assert response[0] == 1.0 and np.argmax(np.abs(response)) == 0
        assert 10 * np.log10(1.0 / np.sum(response[1:] ** 2)) == pytest.approx(3.0)
        # Schroeder's integral of the tail falls by 30 dB in half of rt60; the last part sees where it was cut.
        energy = 10 * np.log10(np.cumsum(response[:0:-1] ** 2)[::-1])
        slope = np.polyfit(np.arange(len(energy) // 2) / RATE, energy[: len(energy) // 2], 1)[0]
        assert -60 / slope == pytest.approx(rt60, rel=0.1)


def test_reverberation_keeps_length_power_and_onset():
    speech = torch.cat([torch.zeros(1600), tone(seconds=0.5)])
    found = Augmentation(reverberation=Reverberation(probability=1.0))(speech, 1, 0, "a")
    assert len(found) == len(speech) and not torch.allclose(found, speech, atol=1e-3)
    assert found.square().mean().item() == pytest.approx(speech.square().mean().item(), rel=1e-4)
    assert found[:1600].abs().max() < 1e-6 < found[1601:1610].abs().max()  # the direct sound comes when it came


def test_draws_follow_seed_epoch_and_id_alone():
    augmentation = Augmentation((0.9, 1.0, 1.1), Noise(), Reverberation())
    names = [f"u{i}" for i in range(20)]
    forth = {name: augmentation(tone(), 1, 2, name) for name in names}
    torch.manual_seed(3)
    np.random.seed(3)
    back = {name: Augmentation((0.9, 1.0, 1.1), Noise(), Reverberation())(tone(), 1, 2, name) for name in names[::-1]}
    assert all(torch.equal(forth[name], back[name]) for name in names)
    for seed, epoch in ((1, 3), (2, 2)):
        assert sum(not torch.equal(augmentation(tone(), seed, epoch, name), forth[name]) for name in names) > 15


def test_the_given_samples_stay():
    speech = tone()
    Augmentation((0.9, 1.1), Noise(probability=1.0), Reverberation(probability=1.0))(speech, 1, 0, "a")
    assert torch.equal(speech, tone())


def test_recordings_of_a_folder_are_mixed_in(tmp_path):
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "hum.wav", tone(1000, 0.2).numpy(), RATE)
    noise = Noise(snr=(3.0, 3.0), kinds=(), folder=str(tmp_path), probability=1.0)
    added = Augmentation(noise=noise)(tone(), 1, 0, "a") - tone()
    assert pitch(added) == pytest.approx(1000, abs=5)
    assert ratio(tone().double().numpy(), added.double().numpy(), RATE) == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100])
def test_excerpts_are_at_16_khz_and_from_drawn_places(tmp_path, rate):
    time = np.arange(3 * rate) / rate
    stereo = np.stack([np.sin(2 * np.pi * (200 + 300 * time) * time), np.zeros(len(time))], 1)
    soundfile.write(tmp_path / "sweep.flac", 0.5 * stereo, rate)
    found = [excerpt(tmp_path / "sweep.flac", 8000, generator(i, "x")) for i in range(6)]
    assert all(len(x) == 8000 and np.abs(x).max() > 0.4 for x in found)
    pitches = [pitch(torch.from_numpy(x)) for x in found]
    assert min(pitches) >= 190 and max(pitches) < 2050 and max(pitches) - min(pitches) > 200


def test_a_folder_without_recordings_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"noise\.folder: .* has no \*\.wav, .* files; give a folder of recordings"):
        Augmentation(noise=Noise(folder=str(tmp_path)))


def test_a_recording_whose_header_lies_ends_the_training_before_its_first_step(tmp_path):
    whole = tmp_path / "n.wav"
    soundfile.write(whole, tone(1000, 1.0).numpy(), RATE)
    content = whole.read_bytes()
    for name, broken, reason in (
        ("cut.wav", content[: len(content) // 2], "truncated audio"),
        ("joined.wav", content * 2, "more audio than declared"),
        ("empty.wav", b"", "unreadable audio"),
    ):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(UserError, match=rf"noise\.folder: {reason}: .*{name}.*; replace or remove the file"):
            Augmentation(noise=Noise(folder=str(tmp_path)))
        (tmp_path / name).unlink()
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), RATE, subtype="FLOAT")
    with pytest.raises(UserError, match=r"samples not finite: .*nan\.wav"):
        Augmentation(noise=Noise(folder=str(tmp_path)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(snr=(20.0, 5.0)), r"snr is \[20\.0, 5\.0\]; give the lowest value first"),
        (lambda: Noise(snr=(5.0,)), "snr"),
        (lambda: Noise(kinds=()), "neither kinds nor a folder"),
        (lambda: Noise(kinds=("hum", "hum")), "names a kind twice"),
        (lambda: Reverberation(rt60=(0.0, 0.5)), r"rt60 is \[0\.0, 0\.5\]; both values must be above 0"),
        (lambda: TrainConfig(speed=(0.9, 0.0)), r"speed\[1\] is 0\.0; it must be above 0"),
        (lambda: Runtime(workers=-1), "workers is -1"),
        (lambda: TrainConfig(quadratic_seconds=0.0), "quadratic_seconds is 0.0"),
        (lambda: Noise(probability=2.0), r"probability is 2\.0; it must be at most 1"),
        (lambda: Noise(snr=(float("nan"), 5.0)), r"snr\[0\] is nan"),
        (lambda: Reverberation(probability=-1.0), r"probability is -1\.0"),
        (lambda: Reverberation(rt60=(0.1, float("inf"))), r"rt60\[1\] is inf"),
        (lambda: TrainConfig(speed=(float("inf"),)), r"speed\[0\] is inf"),
        (lambda: Runtime(workers=100_000), "workers is 100000; it must be at most 256"),
        (lambda: TrainConfig(accumulate=10**30), "accumulate is 1000000000000000000000000000000; it must be at most"),
        (lambda: TrainConfig(average=10**30), "average is"),
        (lambda: CtcConfig(output_beam=float("nan")), "output_beam is nan; it must be finite"),
        (lambda: FactorSgd(lr=float("inf")), r"lr is inf; it must be finite"),
        (lambda: FactorSgd(momentum=1.0), r"momentum is 1\.0; it must be below 1"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
