"""A synthetic corpus in several languages, made with eSpeak NG at build time: no download, no licence to accept.

In: the config alone (languages, and per split the number of utterances, voices, rates, pitches, noise). Out: 16-bit
FLAC files and Lhotse cuts with text, language and speaker. Sentences come from ``corpora/sentences``. Held-out splits
share neither sentences nor voices with any other split. The same config and seed give the same samples, whatever the
number of processes, and the first n utterances of a language stay the same when more are asked for.

Use it to see the pipeline run, never as evidence: synthetic languages are far too easy to tell apart.

    corpora: {babel: {kind: espeak, languages: [de, nl], splits: {train: {utterances: 100, voices: [m1, f2]}}}}

Source: written for this project; eSpeak NG (GPL-3.0) is loaded at run time from the package espeakng-loader.
"""

import functools
import itertools
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import soundfile
from scipy.signal import firwin, resample_poly
from tqdm import tqdm

from lowrank_speech.corpora import noise, sentences, synthesis
from lowrank_speech.corpora.common import SAMPLING_RATE
from lowrank_speech.errors import UserError

if TYPE_CHECKING:
    from lhotse import MonoCut

log = logging.getLogger("lowrank_speech")
BABBLERS = 4  # talkers for babble, of every language's voices


@dataclass(frozen=True)
class LanguageConfig:
    """``voices``: eSpeak NG voices (accents) of the language; none given: those of its sentence file."""

    voices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any("+" in voice or not voice for voice in self.voices) or len(set(self.voices)) < len(self.voices):
            raise ValueError(f"voices must be different ones, without variant (+m1, say), not {list(self.voices)}")


@dataclass(frozen=True)
class SplitConfig:
    """One split. Pairs are ranges, both ends included, from which every utterance draws its own value.

    ``utterances``: per language. ``voices``: eSpeak voice variants (m1, f2, ...). ``rates``: words per minute.
    ``pitches``: 0..100. ``snr``: dB over the active speech, or null for clean speech; ``noises``: kinds to draw from.
    ``silence``: seconds before and after the speech. ``peak``: loudest sample, of full scale 1. ``free``: share of
    hand-written free sentences (none in held-out splits). ``share``: of all sentences, what a held-out split owns.
    """

    utterances: int
    voices: tuple[str, ...]
    rates: tuple[int, ...] = (140, 200)
    pitches: tuple[int, ...] = (30, 70)
    snr: tuple[float, ...] | None = (5.0, 20.0)
    noises: tuple[str, ...] = noise.KINDS
    silence: tuple[float, ...] = (0.05, 0.3)
    peak: tuple[float, ...] = (0.3, 0.9)
    free: float = 0.1
    share: float = 0.1

    def __post_init__(self) -> None:
        limits = {"rates": (80, 450), "pitches": (0, 100), "snr": (-30, 80), "silence": (0, 10), "peak": (0.01, 0.99)}
        for name, (low, high) in limits.items():
            pair = getattr(self, name)
            if pair is not None and (len(pair) != 2 or not low <= pair[0] <= pair[1] <= high):
                raise ValueError(f"{name} must be [lowest, highest] within {low}..{high}, not {list(pair)}")
        if self.utterances < 1 or not self.voices:
            raise ValueError("utterances must be at least 1, and voices name at least one variant, such as m1 or f2")
        bad = [voice for voice in self.voices if not voice or set(voice) & set(" +/\\")]
        if bad or len(set(self.voices)) < len(self.voices):
            raise ValueError(f"voices must be different variants without blank or +, not {list(self.voices)}")
        unknown = set(self.noises) - set(noise.KINDS)
        if unknown or not self.noises:
            raise ValueError(f"noises must be some of {', '.join(noise.KINDS)}, not {list(self.noises)}")
        if not 0 <= self.free <= 1 or not 0 < self.share < 1:
            raise ValueError(f"free must lie in 0..1 and share between 0 and 1, not {self.free} and {self.share}")


def _splits() -> dict[str, SplitConfig]:
    return {
        "pretrain": SplitConfig(250, ("m1", "m3", "m4", "m5", "f1", "f2"), snr=None),
        "train": SplitConfig(120, ("m2", "m6", "f3")),
        "dev": SplitConfig(20, ("m8", "f5")),
        "test": SplitConfig(50, ("m7", "f4")),
    }


@dataclass(frozen=True)
class Config:
    """``languages``: a list of codes, or code -> {voices}. ``sample_rate`` is that of the files; cuts load at 16 kHz
    whatever it is (8000 gives telephone bandwidth). ``held_out``: splits whose sentences and voices stand in no other
    split; null: dev and test, where there are such.
    """

    kind: Literal["espeak"] = "espeak"
    languages: tuple[str, ...] | dict[str, LanguageConfig] = ("de", "en", "es", "nl", "pl", "pt")
    splits: dict[str, SplitConfig] = field(default_factory=_splits)
    held_out: tuple[str, ...] | None = None
    sample_rate: int = SAMPLING_RATE

    def __post_init__(self) -> None:
        for language in self.languages:
            sentences.load(language)
        if not self.languages or len(set(self.languages)) < len(self.languages) or not self.splits:
            raise ValueError("languages must be different ones, and at least one; splits must not be empty")
        if not 8000 <= self.sample_rate <= synthesis.RATE:
            raise ValueError(f"sample_rate must lie in 8000..{synthesis.RATE} Hz, not {self.sample_rate}")
        unknown = set(self.held_out or ()) - set(self.splits)
        if unknown:
            raise ValueError(f"held_out: {min(unknown)!r} is none of the splits {', '.join(self.splits)}")
        if sum(self.shares.values()) >= 1:
            raise ValueError("the shares of the held-out splits must sum to less than 1: nothing is left to train on")
        for split, other in itertools.permutations(self.splits, 2):
            common = sorted(set(self.splits[split].voices) & set(self.splits[other].voices))
            if split in self.shares and common:
                raise UserError(
                    f"the voice {common[0]!r} stands in the held-out split {split!r} and in {other!r}: give them "
                    f"different voices, or take {split!r} out of held_out"
                )

    @property
    def shares(self) -> dict[str, float]:
        """Held-out split -> its share of the sentences."""
        held_out = ("dev", "test") if self.held_out is None else self.held_out
        return {name: split.share for name, split in self.splits.items() if name in held_out}

    def accents(self, language: str) -> tuple[str, ...]:
        """The eSpeak voices of ``language``."""
        chosen = self.languages[language].voices if isinstance(self.languages, dict) else ()
        return chosen or sentences.load(language).voices


@dataclass(frozen=True)
class Prompt:
    """All that decides one utterance's samples (with the seed and the talkers of the babble)."""

    id: str
    split: str
    language: str
    voice: str  # with its variant: es-419+f3
    text: str
    free: bool
    rate: int
    pitch: int
    silence: tuple[float, float]
    peak: float
    snr: float | None
    noise: str | None


def locate(config: Config, data_root: Path | None) -> Path | None:
    """This corpus needs no data folder."""
    return None


def read(
    config: Config, root: Path | None, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[tuple[str, "MonoCut"]]:
    """Synthesise the corpus into ``audio_dir`` with ``jobs`` processes; yields (split, cut) in the config's order.

    ``root`` is not used. The id of a cut is also the name of its FLAC file. ``cut.custom`` holds voice, rate, pitch,
    snr (dB over the active speech; None when clean), noise, peak and free. UserError for a voice that is missing or
    silent.
    """
    prompts = plan(config, seed)
    for language in config.languages:
        variants = {variant for split in config.splits.values() for variant in split.voices}
        for accent in config.accents(language):
            for voice in [accent, *(f"{accent}+{variant}" for variant in sorted(variants))]:
                synthesis.check(voice, sentences.load(language).free[0])
    audio_dir.mkdir(parents=True, exist_ok=True)
    work = (talkers(config, seed), audio_dir, seed, config.sample_rate)
    progress = {"total": len(prompts), "desc": "synthesis", "unit": "utt", "disable": None}
    # All is spoken before Lhotse (hence torch) is imported: forking a large process takes longer.
    if jobs > 1:
        with multiprocessing.get_context("spawn").Pool(jobs, _start, work) as pool:
            lengths = list(tqdm(pool.imap(_render, prompts, chunksize=8), **progress))
    else:
        lengths = [render(prompt, *work) for prompt in tqdm(prompts, **progress)]
    log.info("synthesised %d utterances, %.1f min", len(prompts), sum(lengths) / config.sample_rate / 60)
    for prompt, samples in zip(prompts, lengths, strict=True):
        yield prompt.split, _cut(prompt, audio_dir, samples, config.sample_rate)


def plan(config: Config, seed: int) -> list[Prompt]:
    """Draw every utterance of the corpus, without speaking any. UserError when a split's sentences do not suffice."""
    result = []
    for name, split in config.splits.items():
        for language in config.languages:
            rng = noise.generator(seed, name, language)
            texts = sentences.draw(
                sentences.load(language), split.utterances, rng, name, config.shares, free=split.free
            )
            for number, (text, free) in enumerate(texts):
                result.append(_prompt(f"{language}-{name}-{number:05d}", name, language, text, free, config, seed))
    return result


def _prompt(identity: str, name: str, language: str, text: str, free: bool, config: Config, seed: int) -> Prompt:
    split = config.splits[name]
    rng = noise.generator(seed, identity)
    voices = [f"{accent}+{variant}" for accent in config.accents(language) for variant in split.voices]
    return Prompt(
        id=identity,
        split=name,
        language=language,
        voice=voices[int(rng.integers(len(voices)))],
        text=text,
        free=free,
        rate=int(rng.integers(*split.rates, endpoint=True)),
        pitch=int(rng.integers(*split.pitches, endpoint=True)),
        silence=(round(rng.uniform(*split.silence), 3), round(rng.uniform(*split.silence), 3)),
        peak=round(rng.uniform(*split.peak), 4),
        snr=None if split.snr is None else round(rng.uniform(*split.snr), 2),
        noise=None if split.snr is None else split.noises[int(rng.integers(len(split.noises)))],
    )


def talkers(config: Config, seed: int) -> list[np.ndarray]:
    """What babble is made of: free sentences of all languages, by the plain voices, which no split uses.

    Returns float64 (T,) arrays at the config's sample rate; empty when no split has babble. All languages together, so
    that the noise does not give the language away.
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
    """The clean speech, float64 (T,) in -1..1 at ``sample_rate``, without the silence that eSpeak puts around it."""
    samples = synthesis.say(voice, text, rate, pitch) / 32768
    up, down = Fraction(sample_rate, synthesis.RATE).as_integer_ratio()
    samples = resample_poly(samples, up, down, window=_low_pass(up, down))
    heard = np.flatnonzero(noise.active(samples, sample_rate))
    if len(heard) == 0:
        raise UserError(
            f"eSpeak NG was silent: voice {voice}, text {text!r}; choose another voice in the corpus's config"
        )
    return samples[heard[0] : heard[-1] + 1]


@functools.cache
def _low_pass(up: int, down: int) -> np.ndarray:
    """The filter that resample_poly would design anew for every utterance."""
    most = max(up, down)
    return firwin(20 * most + 1, 1 / most, window=("kaiser", 5.0))


def mixture(
    prompt: Prompt, babblers: Sequence[np.ndarray], seed: int, sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """One utterance's padded clean speech and its mixture with noise, both float64 (T,); the mixture peaks as drawn."""
    speech = spoken(prompt.voice, prompt.text, prompt.rate, prompt.pitch, sample_rate)
    speech = np.pad(speech, [round(seconds * sample_rate) for seconds in prompt.silence])
    mixed = speech
    if prompt.noise is not None and prompt.snr is not None:
        rng = noise.generator(seed, prompt.id, "noise")
        background = noise.make(prompt.noise, len(speech), rng, sample_rate, babblers)
        mixed = noise.mix(speech, background, prompt.snr, sample_rate)
    return speech, mixed * (prompt.peak / np.abs(mixed).max())


def render(prompt: Prompt, babblers: Sequence[np.ndarray], audio_dir: Path, seed: int, sample_rate: int) -> int:
    """Write one utterance's FLAC file; returns its number of samples."""
    _, mixed = mixture(prompt, babblers, seed, sample_rate)
    soundfile.write(audio_dir / f"{prompt.id}.flac", np.round(mixed * 32768).astype(np.int16), sample_rate)
    return len(mixed)


_WORK: list = []  # a worker's babblers, folder, seed and sample rate: sent once, not with every utterance


def _start(*work: object) -> None:
    _WORK[:] = work


def _render(prompt: Prompt) -> int:
    return render(prompt, *_WORK)


def _cut(prompt: Prompt, audio_dir: Path, samples: int, rate: int) -> "MonoCut":
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    path = str(audio_dir / f"{prompt.id}.flac")
    source = AudioSource(type="file", channels=[0], source=path)
    seconds = samples / rate
    recording = Recording(prompt.id, [source], rate, samples, seconds, channel_ids=[0])
    supervision = SupervisionSegment(
        id=prompt.id,
        recording_id=prompt.id,
        start=0.0,
        duration=seconds,
        channel=0,
        text=prompt.text,
        language=prompt.language,
        speaker=prompt.voice,
    )
    custom = {
        k: v for k, v in asdict(prompt).items() if k in ("voice", "rate", "pitch", "snr", "noise", "peak", "free")
    }
    cut = MonoCut(prompt.id, 0.0, seconds, 0, supervisions=[supervision], recording=recording, custom=custom)
    return cut if rate == SAMPLING_RATE else cut.resample(SAMPLING_RATE)
