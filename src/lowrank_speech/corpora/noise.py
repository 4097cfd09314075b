"""Background noise at a given signal-to-noise ratio, reproducible bit for bit.

Input: clean speech, a kind of noise and a generator. Output: the mixture. Kinds: white; pink (power falls with 1/f);
brown (1/f²); hum (mains, 50 or 60 Hz, with harmonics); babble (several talkers at once). The ratio compares mean powers
over the active part of the speech, so silence around the speech and pauses within it do not change the result.

    python -c "from lowrank_speech.corpora import noise; print(noise.make('pink', 9, noise.generator(1, 'a')))"

T samples. All arrays are float64, all ratios in dB. Source: ITU-T P.56 for the active speech level (here with a simple
relative threshold instead of its hangover scheme); the rest is written for this project.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

KINDS = ("white", "pink", "brown", "babble", "hum")
FRAME = 0.02  # seconds
ACTIVE_DB = 35.0  # a frame this far below the loudest one is a pause
LOWEST_HZ = 50.0  # the spectrum is flat below this; otherwise 1/f noise would have most of its power below the speech
TALKERS = 6  # that are mixed to one babble noise


def generator(seed: int, *names: str) -> np.random.Generator:
    """A Philox generator keyed by sha256 of ``seed`` and ``names``, so that draws depend on nothing else."""
    digest = hashlib.sha256("\0".join([str(seed), *names]).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16])))


def active(speech: np.ndarray, rate: int) -> np.ndarray:
    """Which samples of ``speech`` (T,) lie in frames within 35 dB of the loudest frame; returns bool (T,)."""
    frame = max(1, round(FRAME * rate))
    frames = -(-len(speech) // frame)
    squares = np.zeros(frames * frame)
    squares[: len(speech)] = np.square(speech, dtype=np.float64)
    power = squares.reshape(frames, frame).mean(axis=1)
    loud = (power > 0) & (power >= power.max(initial=0.0) * 10 ** (-ACTIVE_DB / 10))
    return np.repeat(loud, frame)[: len(speech)]


def ratio(speech: np.ndarray, noise: np.ndarray, rate: int) -> float:
    """Signal-to-noise ratio in dB over the active part of ``speech`` (both (T,), at ``rate`` Hz)."""
    mask = active(speech, rate)
    if not mask.any() or not np.any(noise[mask]):
        raise ValueError("the signal-to-noise ratio of silence is not defined")
    return float(10 * np.log10(np.mean(speech[mask] ** 2) / np.mean(noise[mask] ** 2)))


def mix(speech: np.ndarray, noise: np.ndarray, snr: float, rate: int) -> np.ndarray:
    """``speech`` (T,) plus ``noise`` (T,), which is scaled to the given ``snr`` (dB) over the active part."""
    return speech + noise * 10 ** ((ratio(speech, noise, rate) - snr) / 20)


def make(
    kind: str, samples: int, rng: np.random.Generator, rate: int = 16000, talkers: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Noise of ``kind`` (one of KINDS): (samples,), mean square 1.

    ``talkers``: recordings (T,) for babble, at ``rate`` Hz; each is repeated as long as needed, from a random position.
    ValueError: unknown kind, or babble without talkers.
    """
    if kind not in MAKERS:
        raise ValueError(f"unknown noise {kind!r}; known kinds: {', '.join(KINDS)}")
    noise = MAKERS[kind](samples, rng, rate, talkers)
    return noise / np.sqrt(np.mean(noise**2))


def _coloured(exponent: float) -> Callable[..., np.ndarray]:
    def coloured(samples: int, rng: np.random.Generator, rate: int, talkers: Sequence[np.ndarray]) -> np.ndarray:
        longer = next_fast_len(samples + 1, real=True)  # an FFT of prime length is slow
        spectrum = rfft(rng.standard_normal(longer))
        spectrum *= np.maximum(rfftfreq(longer, 1 / rate), LOWEST_HZ) ** (-exponent / 2)  # power falls with f^exponent
        spectrum[0] = 0.0  # no DC offset
        return irfft(spectrum, longer)[:samples]

    return coloured


def _hum(samples: int, rng: np.random.Generator, rate: int, talkers: Sequence[np.ndarray]) -> np.ndarray:
    mains = float(rng.choice([50.0, 60.0])) * (1 + rng.uniform(-0.002, 0.002))
    time = np.arange(samples) / rate
    noise = 0.01 * rng.standard_normal(samples)  # the amplifier's noise floor
    for harmonic in range(1, 21):
        level = rng.uniform(0.3, 1.0) / harmonic
        noise += level * np.sin(2 * np.pi * (mains * harmonic * time + rng.random()))
    return noise


def _babble(samples: int, rng: np.random.Generator, rate: int, talkers: Sequence[np.ndarray]) -> np.ndarray:
    if not talkers:
        raise ValueError("babble needs recordings of talkers")
    noise = np.zeros(samples)
    for index in rng.choice(len(talkers), size=min(TALKERS, len(talkers)), replace=False):
        voice = np.asarray(talkers[index], dtype=np.float64)
        start = int(rng.integers(len(voice)))
        looped = np.take(voice, np.arange(start, start + samples), mode="wrap")
        noise += looped / np.sqrt(np.mean(voice**2)) * 10 ** (rng.uniform(-3, 3) / 20)
    return noise


MAKERS = {"white": _coloured(0.0), "pink": _coloured(1.0), "brown": _coloured(2.0), "babble": _babble, "hum": _hum}
