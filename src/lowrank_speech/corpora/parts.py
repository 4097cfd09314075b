"""Splits that are parts of a source: disjoint by speaker or by utterance, the same on every machine.

Speakers (or utterances) of each language are put in the order of sha256(seed, name), and a split takes the stretch
``part: [from, to)`` of that order. Another utterance of a known speaker therefore moves nobody, and two splits with
stretches that do not overlap share no speaker. Small runs limit a split likewise: a larger limit gives a superset.

    splits:
      train: {source: train, part: [0.0, 0.9], by: speaker}
      dev:   {source: train, part: [0.9, 1.0], by: speaker}
      test:  {source: dev, max_utterances: 100}
"""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lowrank_speech.corpora.common import Utterance


@dataclass(frozen=True)
class SplitConfig:
    """One split: a part of a source of the corpus."""

    source: str
    """Kaldi: the data directory; tsv: the file. Below the corpus's folder."""
    part: tuple[float, ...] = (0.0, 1.0)
    """Which stretch of the speakers (utterances) of each language, as fractions [from, to)."""
    by: Literal["speaker", "utterance"] = "speaker"
    max_utterances: int | None = None
    """At most so many utterances in the split."""
    max_seconds_per_language: float | None = None
    """At most so many seconds of each language."""

    def __post_init__(self):
        if len(self.part) != 2 or not 0 <= self.part[0] < self.part[1] <= 1:
            raise ValueError(f"part: expected [from, to] with 0 <= from < to <= 1, got {list(self.part)}")
        if self.max_utterances is not None and self.max_utterances < 1:
            raise ValueError(f"max_utterances: must be at least 1, got {self.max_utterances}")
        if self.max_seconds_per_language is not None and self.max_seconds_per_language <= 0:
            raise ValueError(f"max_seconds_per_language: must be above 0, got {self.max_seconds_per_language}")


def check_splits(splits: Mapping[str, SplitConfig]) -> None:
    """ValueError if there is no split, or if two splits take overlapping parts of one source."""
    if not splits:
        raise ValueError("splits: name at least one split")
    for (a, one), (b, other) in itertools.combinations(splits.items(), 2):
        if one.source != other.source:
            continue
        if one.by != other.by:
            raise ValueError(
                f"splits {a} and {b} cut {one.source} by {one.by} and by {other.by}: they would overlap; use one `by`"
            )
        if one.part[0] < other.part[1] and other.part[0] < one.part[1]:
            raise ValueError(
                f"splits {a} and {b} overlap: parts {list(one.part)} and {list(other.part)} of {one.source}"
            )


def rank(seed: int, name: str) -> str:
    """The key that orders names: hex sha256 of seed and name."""
    return hashlib.sha256(f"{seed}\t{name}".encode()).hexdigest()


def select(utterances: Sequence[Utterance], split: SplitConfig, seed: int) -> list[Utterance]:
    """The utterances of one split of a source, in the order in which they came.

    A speaker of several languages counts with the alphabetically first, so that nobody stands in two parts.
    """

    def unit(utterance: Utterance) -> str:
        return (utterance.speaker if split.by == "speaker" else utterance.id) or utterance.id

    language: dict[str, str] = {}
    for utterance in utterances:
        name, code = unit(utterance), utterance.language or ""
        language[name] = min(code, language.get(name, code))
    units = defaultdict(list)
    for name, code in language.items():
        units[code].append(name)
    chosen = set()
    for names in units.values():
        names.sort(key=lambda name: rank(seed, name))
        # The same rounding for the end of one part and the start of the next: no gap, no overlap.
        first, last = (round(bound * len(names)) for bound in split.part)
        chosen.update(names[first:last])
    return _limit([u for u in utterances if unit(u) in chosen], split, seed)


def _limit(utterances: list[Utterance], split: SplitConfig, seed: int) -> list[Utterance]:
    if split.max_utterances is None and split.max_seconds_per_language is None:
        return utterances
    total: dict[str | None, float] = defaultdict(float)
    kept: set[int] = set()
    for i in sorted(range(len(utterances)), key=lambda i: (rank(seed, utterances[i].id), i)):
        if len(kept) == split.max_utterances:
            break
        if split.max_seconds_per_language is not None:
            # The first that does not fit closes its language: a larger limit then gives a superset.
            code = utterances[i].language
            total[code] += _seconds(utterances[i])
            if total[code] > split.max_seconds_per_language:
                continue
        kept.add(i)
    return [utterance for i, utterance in enumerate(utterances) if i in kept]


def _seconds(utterance: Utterance) -> float:
    """Duration without decoding: segment, declared, or the file's header; 0 for a broken file (set aside later)."""
    import soundfile

    from lowrank_speech.corpora.audio import LENGTHLESS

    if utterance.end is not None:
        return utterance.end - utterance.start
    if utterance.seconds is not None:
        return utterance.seconds - utterance.start
    try:
        info = soundfile.info(utterance.audio)
        return info.duration - utterance.start if info.frames < LENGTHLESS else 0.0
    except (soundfile.SoundFileError, OSError):
        return 0.0
