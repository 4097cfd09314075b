"""Render the audio of the synthetic corpus: eSpeak NG's speech, mixed with noise, as FLAC files.

In: prompts from espeak.py. Out: 16-bit FLAC files. The samples depend only on the prompt and the seed, not on the
number of processes or on other prompts.

    python -c "from lowrank_speech.corpora import rendering; print(rendering.spoken('de+m3', 'Hallo.', 170, 50, 16000))"

Source: written for this project.
"""

import functools
import multiprocessing
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from scipy.signal import firwin, resample_poly
from tqdm import tqdm

from lowrank_speech.corpora import noise, sentences, synthesis
from lowrank_speech.errors import UserError

if TYPE_CHECKING:
    from lowrank_speech.corpora.espeak import Config, Prompt

BABBLERS = 4  # talkers for babble noise, for each voice of each language


def render_all(prompts: "Sequence[Prompt]", config: "Config", audio_dir: Path, seed: int, jobs: int) -> list[int]:
    """Write a FLAC file for each prompt into ``audio_dir`` with ``jobs`` processes; return their numbers of samples.

    UserError: a voice does not exist or is silent.
    """
    audio_dir.mkdir(parents=True, exist_ok=True)
    work = (talkers(config, seed), audio_dir, seed, config.sample_rate)
    progress = {"total": len(prompts), "desc": "synthesis", "unit": "utt", "disable": None}
    if jobs > 1:
        with multiprocessing.get_context("spawn").Pool(jobs, _start, work) as pool:
            return list(tqdm(pool.imap(_render, prompts, chunksize=8), **progress))
    return [render(prompt, *work) for prompt in tqdm(prompts, **progress)]


def talkers(config: "Config", seed: int) -> list[np.ndarray]:
    """Speech for babble noise: free sentences in all languages, spoken by the plain voices, which no split uses.

    Returns float64 (T,) arrays at the config's sample rate, or nothing if no split has babble. All languages are mixed,
    so that the noise does not reveal the language.
    """
    if not any(split.snr is not None and "babble" in split.noises for split in config.splits.values()):
        return []
    result = []
    for language in config.languages:
        for accent in config.accents(language):
            rng = noise.generator(seed, "babble", accent)
            for text in rng.choice(sentences.load(language).free, size=BABBLERS, replace=False):
                rate, pitch = int(rng.integers(140, 200)), int(rng.integers(10, 90))
                result.append(spoken(accent, str(text), rate, pitch, config.sample_rate))
    return result


def spoken(voice: str, text: str, rate: int, pitch: int, sample_rate: int) -> np.ndarray:
    """Clean speech, float64 (T,) in -1..1 at ``sample_rate``, without leading and trailing silence."""
    samples = synthesis.say(voice, text, rate, pitch) / 32768
    up, down = Fraction(sample_rate, synthesis.RATE).as_integer_ratio()
    samples = resample_poly(samples, up, down, window=_low_pass(up, down))
    heard = np.flatnonzero(noise.active(samples, sample_rate))
    if len(heard) == 0:
        raise UserError(
            f"the eSpeak NG voice {voice!r} is silent on the text {text!r}; choose another voice in the corpus's config"
        )
    return samples[heard[0] : heard[-1] + 1]


@functools.cache
def _low_pass(up: int, down: int) -> np.ndarray:
    """The low-pass filter that resample_poly would otherwise design again for each utterance."""
    most = max(up, down)
    return firwin(20 * most + 1, 1 / most, window=("kaiser", 5.0))


def mixture(
    prompt: "Prompt", babblers: Sequence[np.ndarray], seed: int, sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Padded clean speech of an utterance, and its mixture with noise scaled to the drawn peak; both float64 (T,)."""
    speech = spoken(prompt.voice, prompt.text, prompt.rate, prompt.pitch, sample_rate)
    speech = np.pad(speech, [round(seconds * sample_rate) for seconds in prompt.silence])
    mixed = speech
    if prompt.noise is not None and prompt.snr is not None:
        rng = noise.generator(seed, prompt.id, "noise")
        background = noise.make(prompt.noise, len(speech), rng, sample_rate, babblers)
        mixed = noise.mix(speech, background, prompt.snr, sample_rate)
    return speech, mixed * (prompt.peak / np.abs(mixed).max())


def render(prompt: "Prompt", babblers: Sequence[np.ndarray], audio_dir: Path, seed: int, sample_rate: int) -> int:
    """Write one utterance's FLAC file; returns its number of samples."""
    _, mixed = mixture(prompt, babblers, seed, sample_rate)
    soundfile.write(audio_dir / f"{prompt.id}.flac", np.round(mixed * 32768).astype(np.int16), sample_rate)
    return len(mixed)


_WORK: list = []  # babblers, folder, seed and sample rate, sent to each worker only once


def _start(*work: object) -> None:
    _WORK[:] = work


def _render(prompt: "Prompt") -> int:
    return render(prompt, *_WORK)
