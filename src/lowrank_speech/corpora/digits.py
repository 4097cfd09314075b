"""Digit strings joined from recordings of single digits: connected speech from a small corpus.

In: a folder with ``audio/{digit}_{speaker}_{index}.flac``, as in the Free Spoken Digit Dataset (Jakobovski et al.,
CC BY-SA 4.0; 6 speakers, 8 kHz). Out: English cuts of 3 to 6 digits by one speaker, with pauses in between and a text
such as ``zero three nine``. The manifest describes the joining (Lhotse's mixed cuts), so no audio is copied. The 8 kHz
files are resampled to 16 kHz on loading. The default folder below $SPEECH_DATA is ``digits``.

    corpora:
      digits: {kind: digits, splits: {
        train: {speakers: [george, jackson, lucas, nicolas], strings: 1500},
        dev: {speakers: [theo], strings: 200}, test: {speakers: [yweweler], strings: 200}}}

Each string depends only on the seed, the split and its number, so asking for more strings keeps the earlier ones.
"""

import itertools
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator

from lowrank_speech.corpora.common import SAMPLING_RATE, TRACK, Checks, SetAside, Track, find_folder
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, Count, CountOrZero, Range, key, settings

if TYPE_CHECKING:
    from lhotse.cut import Cut

    from lowrank_speech.corpora.audio import AudioError, Header

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_\s]+)_(?P<index>\d+)")
LANGUAGE = "en"


def _indices(pair: tuple[int, int] | None) -> tuple[int, int] | None:
    if pair is not None and pair[0] >= pair[1]:
        raise ValueError(f"is {list(pair)}; expected [from, to] with 0 <= from < to")
    return pair


@settings
class SplitConfig:
    """One split: which speakers, and how many strings."""

    speakers: tuple[str, ...] = key(REQUIRED, "speakers whose recordings are joined")
    strings: Count = key(REQUIRED, "number of digit strings")
    indices: Annotated[tuple[CountOrZero, CountOrZero] | None, AfterValidator(_indices)] = key(
        None,
        "use only recordings with an index in [from, to), so that two splits can share a speaker but no recording; "
        "null: use all",
    )

    def __post_init__(self) -> None:
        if not self.speakers or len(set(self.speakers)) < len(self.speakers):
            raise ValueError(f"speakers is {list(self.speakers)}; name at least one speaker, and each only once")


@settings
class Config:
    """A corpus of digit strings."""

    kind: Literal["digits"] = key(REQUIRED, "digit strings, joined from recordings of single digits")
    splits: dict[str, SplitConfig] = key(REQUIRED, "name -> speakers and number of strings")
    path: str | None = key(None, "folder that contains audio/; null: `folder` below $SPEECH_DATA")
    folder: str = key("digits", "folder below $SPEECH_DATA, used if `path` is null")
    min_digits: Count = key(3, "digits in the shortest string")
    max_digits: Count = key(6, "digits in the longest string")
    pause_seconds: Range = key((0.0, 0.2), "range of the pauses between digits, in seconds (uniform)")
    checks: Checks = key(None, "which audio is accepted", default_factory=Checks)
    track: Track = key("auto", TRACK, runtime=True)

    def __post_init__(self) -> None:
        if self.min_digits > self.max_digits:
            raise ValueError(
                f"min_digits is {self.min_digits} and max_digits is {self.max_digits}; min_digits must be the lower of "
                f"the two"
            )
        if self.pause_seconds[0] < 0:
            raise ValueError(f"pause_seconds is {list(self.pause_seconds)}; pauses must be at least 0")
        check_splits(self.splits)


def check_splits(splits: Mapping[str, SplitConfig]) -> None:
    """ValueError: there is no split, or two splits share recordings. Does not open any data."""
    if not splits:
        raise ValueError("splits: name at least one split")
    for (a, one), (b, other) in itertools.combinations(splits.items(), 2):
        shared = sorted(set(one.speakers) & set(other.speakers))
        if shared and not _apart(one.indices, other.indices):
            raise ValueError(
                f"splits: the speaker {shared[0]!r} is in both {a} and {b}, so they would share recordings; remove the "
                "speaker from one of them, or give both splits `indices` that do not overlap"
            )


def _apart(one: tuple[int, int] | None, other: tuple[int, int] | None) -> bool:
    return one is not None and other is not None and (one[1] <= other[0] or other[1] <= one[0])


@dataclass(frozen=True)
class Take:
    """A recording of one digit."""

    path: Path
    digit: int
    speaker: str
    index: int
    header: "Header"


def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder that contains ``audio/``. UserError: it does not exist."""
    holds = "audio/{digit}_{speaker}_{index}.flac, as in the Free Spoken Digit Dataset"
    root = find_folder(config.kind, config.path, data_root, config.folder, holds)
    if not (root / "audio").is_dir():
        raise UserError(
            f"corpus of kind digits: the folder {root / 'audio'} does not exist; {root} must contain {holds}"
        )
    return root


def sources(config: Config, root: Path) -> list[Path]:
    """Empty: there are no tables. New recordings are detected because ``listed`` names their folder."""
    return []


def listed(config: Config, root: Path) -> list[Path]:
    """Folders in which every file belongs to the corpus, so that a new file changes the corpus."""
    return [root / "audio"]


def looks_like(path: Path) -> dict | None:
    """The keys for ``path`` if it is like the Free Spoken Digit Dataset (``detect.py``)."""
    if not (path / "audio").is_dir():
        return None
    matches = [NAME.fullmatch(found.stem) for found in (path / "audio").iterdir() if not found.name.startswith(".")]
    if not any(matches) or sum(match is None for match in matches) > 0.1 * len(matches):
        return None
    speakers = sorted({match["speaker"] for match in matches if match})
    if len(speakers) < 3:
        return {"splits": None}
    *train, dev, test = speakers
    return {
        "splits": {
            "train": {"speakers": train, "strings": 1000},
            "dev": {"speakers": [dev], "strings": 200},
            "test": {"speakers": [test], "strings": 200},
        }
    }


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator["Cut | SetAside"]:
    """Yield first the unusable recordings of the split's speakers, then the cuts of the split.

    ``jobs`` threads decode the recordings. ``audio_dir`` is not used, because no audio is written. UserError: a speaker
    has no recording of some digit, or two files have the same digit, speaker and index.
    """
    part = config.splits[split]
    takes, refused = _takes(root, part, jobs)
    yield from refused
    grouped = _by_speaker_and_digit(takes, split, part, root)
    for number in range(part.strings):
        # A string seed is hashed with sha512, not with Python's salted hash, so draws are the same on every machine.
        draw = random.Random(f"{seed} {split} {number}")
        speaker = part.speakers[number % len(part.speakers)]  # in turn, so that all speak equally often
        digits = draw.choices(range(10), k=draw.randint(config.min_digits, config.max_digits))
        chosen = [draw.choice(grouped[speaker, digit]) for digit in digits]
        pauses = [draw.uniform(*config.pause_seconds) for _ in digits[1:]]
        yield join(f"{split}-{speaker}-{number:05d}", chosen, pauses)


def _takes(root: Path, split: SplitConfig, jobs: int) -> tuple[list[Take], list[SetAside]]:
    """The usable recordings of the split's speakers and indices, sorted by name, and the unusable ones."""
    from lowrank_speech.corpora.audio import AudioError

    low, high = split.indices or (0, math.inf)
    found: dict[tuple[int, str, int], Path] = {}
    refused = []
    for path in sorted(p for p in (root / "audio").iterdir() if not p.name.startswith(".")):
        match = NAME.fullmatch(path.stem)
        if match is None:
            detail = f"{path}: the name is not {{digit}}_{{speaker}}_{{index}}"
            refused.append(SetAside(path.name, "unknown name", detail))
        elif match["speaker"] in split.speakers and low <= int(match["index"]) < high:
            name = (int(match["digit"]), match["speaker"], int(match["index"]))
            if found.setdefault(name, path) is not path:
                raise UserError(
                    f"{found[name]} and {path.name} have the same digit, speaker and index; remove one of them or "
                    f"change its index"
                )
    takes = []
    with ThreadPoolExecutor(max_workers=max(1, jobs)) as pool:
        for (name, path), result in zip(found.items(), pool.map(_usable, found.values()), strict=True):
            if isinstance(result, AudioError):
                refused.append(SetAside(path.name, result.reason, result.detail))
            else:
                takes.append(Take(path, *name, result))
    return takes, refused


def _usable(path: Path) -> "Header | AudioError":
    """The header of a usable take. Later checks see only the whole string, so every take is checked here."""
    from lowrank_speech.corpora.audio import AudioError, open_once

    header = open_once(str(path))
    if isinstance(header, AudioError):
        return header
    if header.channels > 1:
        return AudioError("several channels", f"{path} has {header.channels} channels")
    if not math.isfinite(header.peak):
        return AudioError("samples not finite", f"{path} has samples that are NaN or infinite")
    if header.peak == 0:
        return AudioError("silent", f"{path}: all {header.frames} samples are zero")
    return header


def _by_speaker_and_digit(
    takes: list[Take], name: str, split: SplitConfig, root: Path
) -> dict[tuple[str, int], list[Take]]:
    """(speaker, digit) -> the split's takes, sorted by index."""
    grouped = defaultdict(list)
    for take in takes:
        grouped[take.speaker, take.digit].append(take)
    for speaker, digit in itertools.product(split.speakers, range(10)):
        if not grouped[speaker, digit]:
            raise UserError(
                f"split {name}: {root / 'audio'} has no usable recording of the digit {digit} by {speaker!r}"
                + (f" with an index in {list(split.indices)}" if split.indices else "")
            )
        grouped[speaker, digit].sort(key=lambda take: (take.index, take.path.name))
    return grouped


def join(utterance: str, takes: list[Take], pauses: list[float]) -> "Cut":
    """Join ``takes`` to one cut, with ``pauses`` of silence in between (seconds, one fewer than takes)."""
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    joined = None
    for take, pause in zip(takes, [*pauses, 0.0], strict=True):
        recording = Recording(
            id=take.path.stem,
            sources=[AudioSource("file", [0], str(take.path))],
            sampling_rate=take.header.rate,
            num_samples=take.header.frames,
            duration=take.header.seconds,
        ).resample(SAMPLING_RATE)
        cut = MonoCut(recording.id, 0.0, recording.duration, 0, supervisions=[], recording=recording)
        joined = cut if joined is None else joined.append(cut)
        samples = round(pause * SAMPLING_RATE)
        if samples:  # whole samples, so that the offsets add up without rounding
            joined = joined.pad(duration=joined.duration + samples / SAMPLING_RATE)
    supervision = SupervisionSegment(
        id=utterance,
        recording_id=utterance,
        start=0.0,
        duration=joined.duration,
        channel=0,
        text=" ".join(WORDS[take.digit] for take in takes),
        language=LANGUAGE,
        speaker=takes[0].speaker,
    )
    first = joined.tracks[0].cut if hasattr(joined, "tracks") else joined
    first.supervisions.append(supervision)  # where lhotse's merge_supervisions() puts it as well
    for number, track in enumerate(getattr(joined, "tracks", [])):
        track.cut.id = f"{utterance}-{number}"  # Lhotse gives padding random ids, which differ from run to run
    joined.id = utterance
    return joined
