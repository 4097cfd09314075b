"""A synthetic corpus in several languages, spoken by eSpeak NG: nothing to download, no licence to accept.

In: only the config (languages, and for each split the number of utterances, voices, rates, pitches, noise). Out: 16-bit
FLAC files, and Lhotse cuts with text, language and speaker. Sentences come from ``corpora/sentences``. Held-out splits
share neither sentences nor voices with any other split. The same config and seed give the same samples for any number
of processes, and asking for more utterances keeps the first ones of each language. To make one split, only the names
and shares of the held-out splits are needed from the others (``held_out``).

Use it to try out the pipeline, not as evidence: synthetic languages are far too easy to tell apart.

    corpora: {babel: {kind: espeak, languages: [de, nl], splits: {train: {utterances: 100, voices: [m1, f2]}}}}

Source: written for this project; eSpeak NG (GPL-3.0) is loaded at run time from the package espeakng-loader.
"""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from lowrank_speech.corpora import sentences
from lowrank_speech.corpora.common import SAMPLING_RATE
from lowrank_speech.settings import REQUIRED, Count, Share, key, settings

if TYPE_CHECKING:
    from lhotse import MonoCut

log = logging.getLogger("lowrank_speech")


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"is {list(pair)}; give the lowest value first, then the highest")
    return pair


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError(f"is {list(names)}; give each name once")
    return names


Noise = Literal["white", "pink", "brown", "babble", "hum"]  # noise.KINDS, which needs NumPy
Rate = Annotated[int, Field(ge=80, le=450)]
Pitch = Annotated[int, Field(ge=0, le=100)]
Decibels = Annotated[float, Field(ge=-30, le=80)]
Silence = Annotated[float, Field(ge=0, le=10)]
Peak = Annotated[float, Field(ge=0.01, le=0.99)]
Some = Annotated[float, Field(gt=0, lt=1)]
Several = Annotated[tuple[str, ...], AfterValidator(_different)]


@settings
class LanguageConfig:
    """The voices of one language."""

    voices: Several = key((), "eSpeak NG voices (accents) of the language; empty: those in its sentence file")

    def __post_init__(self) -> None:
        if any("+" in voice or not voice for voice in self.voices):
            raise ValueError(f"voices is {list(self.voices)}; name voices without a variant (without +m1, for example)")


@settings
class SplitConfig:
    """One split. Pairs are ranges, both ends included, from which a value is drawn for each utterance."""

    utterances: Count = key(REQUIRED, "number of utterances per language")
    voices: Annotated[Several, Field(min_length=1)] = key(
        REQUIRED, "eSpeak voice variants (m1, f2 ...); a held-out split shares none of them with another split"
    )
    rates: Annotated[tuple[Rate, Rate], AfterValidator(_ordered)] = key((140, 200), "speaking rate, words per minute")
    pitches: Annotated[tuple[Pitch, Pitch], AfterValidator(_ordered)] = key((30, 70), "pitch, 0 to 100")
    snr: Annotated[tuple[Decibels, Decibels], AfterValidator(_ordered)] | None = key(
        (5.0, 20.0), "signal-to-noise ratio over the active speech, in dB; null: clean speech"
    )
    noises: Annotated[tuple[Noise, ...], AfterValidator(_different), Field(min_length=1)] = key(
        ("white", "pink", "brown", "babble", "hum"), "kinds of noise to draw from"
    )
    silence: Annotated[tuple[Silence, Silence], AfterValidator(_ordered)] = key(
        (0.05, 0.3), "silence before and after the speech, in seconds"
    )
    peak: Annotated[tuple[Peak, Peak], AfterValidator(_ordered)] = key(
        (0.3, 0.9), "magnitude of the loudest sample; full scale is 1"
    )
    free: Share = key(0.1, "share of free sentences, the others come from a grammar; held-out splits have none")
    share: Some = key(0.1, "held-out splits: share of all sentences that is reserved for this split")

    def __post_init__(self) -> None:
        if any(not voice or set(voice) & set(" +/\\") for voice in self.voices):
            raise ValueError(f"voices is {list(self.voices)}; name variants without blanks or +, such as m1 or f2")


def _splits() -> dict[str, SplitConfig]:
    return {
        "pretrain": SplitConfig(250, ("m1", "m3", "m4", "m5", "f1", "f2"), snr=None),
        "train": SplitConfig(120, ("m2", "m6", "f3")),
        "dev": SplitConfig(20, ("m8", "f5")),
        "test": SplitConfig(50, ("m7", "f4")),
    }


@settings
class Config:
    """A synthesised corpus."""

    kind: Literal["espeak"] = key("espeak", "speech synthesised by eSpeak NG")
    languages: Several | dict[str, LanguageConfig] = key(
        ("de", "en", "es", "nl", "pl", "pt"), "languages with a sentence file: a list, or language code -> voices"
    )
    splits: dict[str, SplitConfig] = key(None, "name -> what to synthesise", default_factory=_splits)
    held_out: Several | dict[str, Some] | None = key(
        None,
        "splits that share no sentence and no voice with any other split: a list, or name -> share of the sentences; "
        "null: dev and test, if they exist",
    )
    sample_rate: Annotated[int, Field(ge=8000, le=22_050)] = key(
        SAMPLING_RATE, "sampling rate of the files in Hz; 8000 gives telephone bandwidth. Cuts always load at 16000"
    )

    def __post_init__(self) -> None:
        known = sentences.known()
        for language in self.languages:
            if language not in known:
                raise ValueError(
                    f"languages: there is no sentence file for {language!r}; known languages: {', '.join(known)}"
                )
        if not self.languages or not self.splits:
            raise ValueError(f"{'splits' if self.languages else 'languages'} is empty; name at least one")
        unknown = set(self.held_out or ()) - set(self.splits)
        if unknown and not isinstance(self.held_out, dict):
            raise ValueError(f"held_out: {min(unknown)!r} is not one of the splits {', '.join(self.splits)}")
        if sum(self.shares.values()) >= 1:
            raise ValueError(
                "the shares of the held-out splits sum to 1 or more, so no sentence is left to train on; lower them"
            )
        for split, other in itertools.permutations(self.splits, 2):
            common = sorted(set(self.splits[split].voices) & set(self.splits[other].voices))
            if split in self.shares and common:
                raise ValueError(
                    f"the voice {common[0]!r} is in the held-out split {split!r} and in {other!r}; give them different "
                    f"voices, or remove {split!r} from held_out"
                )

    @property
    def shares(self) -> dict[str, float]:
        """Held-out split -> its share of the sentences."""
        if isinstance(self.held_out, dict):
            return dict(self.held_out)
        held_out = ("dev", "test") if self.held_out is None else self.held_out
        return {name: split.share for name, split in self.splits.items() if name in held_out}

    def accents(self, language: str) -> tuple[str, ...]:
        """The eSpeak voices of ``language``."""
        chosen = self.languages[language].voices if isinstance(self.languages, dict) else ()
        return chosen or sentences.load(language).voices


@dataclass(frozen=True)
class Prompt:
    """Everything that determines the samples of one utterance, apart from the seed and the talkers of the babble."""

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


def sources(config: Config, root: Path | None) -> list[Path]:
    """Empty: the sentences are part of the program."""
    return []


def read(
    config: Config, split: str, root: Path | None, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator["MonoCut"]:
    """Synthesise one split into ``audio_dir`` with ``jobs`` processes, and yield its cuts, language by language.

    ``root`` is not used. A cut's id is the name of its FLAC file. ``cut.custom`` has voice, rate, pitch, snr (dB over
    the active speech; None if clean), noise, peak and free. UserError: a voice does not exist or is silent.
    """
    from lowrank_speech.corpora import synthesis
    from lowrank_speech.corpora.rendering import render_all

    prompts = plan(config, split, seed)
    for language in config.languages:
        for accent in config.accents(language):
            for voice in [accent, *(f"{accent}+{variant}" for variant in sorted(config.splits[split].voices))]:
                synthesis.check(voice, sentences.load(language).free[0])
    # Synthesise before importing Lhotse (and so torch), because forking a large process takes longer.
    lengths = render_all(prompts, config, audio_dir, seed, jobs)
    log.info("synthesised %d utterances, %.1f min", len(prompts), sum(lengths) / config.sample_rate / 60)
    for prompt, samples in zip(prompts, lengths, strict=True):
        yield _cut(prompt, audio_dir, samples, config.sample_rate)


def plan(config: Config, split: str, seed: int) -> list[Prompt]:
    """Draw the prompts of a split, without synthesising them. UserError: the split has too few sentences."""
    from lowrank_speech.corpora import noise

    result = []
    own = config.splits[split]
    for language in config.languages:
        rng = noise.generator(seed, split, language)
        texts = sentences.draw(sentences.load(language), own.utterances, rng, split, config.shares, free=own.free)
        for number, (text, free) in enumerate(texts):
            result.append(_prompt(f"{language}-{split}-{number:05d}", split, language, text, free, config, seed))
    return result


def _prompt(identity: str, name: str, language: str, text: str, free: bool, config: Config, seed: int) -> Prompt:
    from lowrank_speech.corpora import noise

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
