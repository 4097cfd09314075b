"""Augment the samples of a training utterance: first speed, then reverberation, then noise.

Random draws depend only on the seed, the epoch and the utterance's id, but not on the order of the utterances or on the
process that reads them, so a resumed run, or one with more workers, draws the same. (``training.data.masks`` has the
masks on features.)

T samples. Sources: speed perturbation, Ko et al. 2015; the room's tail is exponentially decaying noise after the direct
sound (Polack 1988).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lhotse.augmentation import Speed
from torch import Tensor
from torchaudio.functional import resample

from lowrank_speech.corpora import audio, noise
from lowrank_speech.errors import UserError

RATE = 16_000
THREADS = 4  # that check the recordings; decoding releases the interpreter
FOLDER = "recordings"  # name for the kind of noise that comes from a folder


class Augmentation:
    """Samples -> changed samples.

    speed         factors to draw from: 1.1 is 10 % faster, with a higher pitch; empty: no change
    noise         ``snr`` (lowest, highest, dB), ``kinds`` (of ``corpora.noise``), ``recordings()`` of a ``folder``,
                  ``probability``; None: no noise
    reverberation ``rt60`` (shortest, longest time of decay by 60 dB, seconds), ``direct`` (lowest, highest
                  direct-to-reverberant ratio, dB), ``probability``; None: no reverberation
    """

    def __init__(self, speed: Sequence[float] = (), noise: Any = None, reverberation: Any = None):
        self.speed, self.noise, self.reverberation = tuple(speed), noise, reverberation
        self.recordings = _recordings(noise) if noise is not None and noise.folder is not None else []

    def __call__(self, samples: Tensor, seed: int, epoch: int, name: str) -> Tensor:
        """Samples (T,) float32 at 16 kHz of the utterance ``name`` -> (T',) float32; T' depends on the speed."""
        rng = noise.generator(seed, "augment", str(epoch), name)
        changed = samples.numpy()
        if self.speed:
            changed = _at_speed(changed, self.speed[rng.integers(len(self.speed))])
        if self.reverberation is not None and rng.random() < self.reverberation.probability:
            rt60, direct = rng.uniform(*self.reverberation.rt60), rng.uniform(*self.reverberation.direct)
            changed = _through(changed, room(rt60, direct, rng))
        if self.noise is not None and rng.random() < self.noise.probability:
            changed = self._noisy(changed, rng)
        return torch.from_numpy(np.ascontiguousarray(changed, dtype=np.float32))

    def at_the_slowest(self) -> "Augmentation":
        """A copy with only the lowest speed, which makes the longest utterances."""
        slowest = copy(self)
        slowest.speed = (min(self.speed),) if self.speed else ()
        return slowest

    def _noisy(self, speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        kinds = [*self.noise.kinds, *([FOLDER] if self.recordings else [])]
        kind, snr = kinds[rng.integers(len(kinds))], rng.uniform(*self.noise.snr)
        if kind == FOLDER:
            added = excerpt(self.recordings[rng.integers(len(self.recordings))], len(speech), rng)
        else:
            added = noise.make(kind, len(speech), rng, RATE)
        active = noise.active(speech, RATE)
        # Silence has no signal-to-noise ratio, so it stays as it is.
        return noise.mix(speech, added, snr, RATE) if active.any() and np.any(added[active]) else speech


def _at_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    return samples if factor == 1.0 else Speed(factor=factor)(samples[None], RATE)[0]


def room(rt60: float, direct: float, rng: np.random.Generator) -> np.ndarray:
    """A room's impulse response (T,) float64: 1 at sample 0, then noise that decays by 60 dB in ``rt60`` seconds.

    ``direct``: ratio of the direct sound's energy to the tail's, dB.
    """
    time = np.arange(1, max(2, round(rt60 * RATE))) / RATE
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / rt60)
    tail *= 10 ** (-direct / 20) / np.sqrt(np.sum(tail**2))
    return np.concatenate([[1.0], tail])


def _through(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """``samples`` (T,) in the room, with the same length and power; the tail after their end is cut off."""
    # Imported here: it takes half a second, and trainings without augmentation import this module too.
    from scipy.signal import fftconvolve

    wet = fftconvolve(samples.astype(np.float64), response)[: len(samples)]
    power = np.mean(wet**2)
    return wet * np.sqrt(np.mean(samples.astype(np.float64) ** 2) / power) if power > 0 else samples


def excerpt(path: Path, samples: int, rng: np.random.Generator) -> np.ndarray:
    """``samples`` samples of a recording (first channel, 16 kHz) at a random position; repeats short recordings."""
    header = _complete(path)
    wanted = -(-samples * header.rate // RATE)
    start = int(rng.integers(max(1, header.frames - wanted + 1)))
    read = soundfile.read(path, frames=wanted, start=start, dtype="float32", always_2d=True)[0][:, 0]
    if header.rate != RATE:
        read = resample(torch.from_numpy(np.ascontiguousarray(read)), header.rate, RATE).numpy()
    return np.resize(read, samples).astype(np.float64)


def _recordings(noise: Any) -> list[Path]:
    """The recordings of the noise settings. Raises UserError if there are none, or if one of them is not complete.

    Every recording is decoded here, so that a broken one ends the training before the first step.
    """
    found = list(noise.recordings().values())
    if not found:
        raise UserError(f"noise.folder: {noise.folder} has no *.wav, *.flac, *.ogg files; give a folder of recordings")
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(_complete, found):
            pass
    return found


def _complete(path: Path) -> audio.Header:
    """The decoded length and rate of a recording; the container's header is not trusted."""
    found = audio.open_once(str(path))
    if isinstance(found, audio.AudioError):
        raise UserError(f"noise.folder: {found.reason}: {found.detail}; replace or remove the file")
    if not np.isfinite(found.peak):
        raise UserError(f"noise.folder: samples not finite: {path}; replace or remove the file")
    return found
