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
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lowrank_speech.corpora.common import SetAside, Utterance
from lowrank_speech.settings import REQUIRED, Large, Positive, Share, key, settings


def _stretch(part: tuple[float, float]) -> tuple[float, float]:
    if part[0] >= part[1]:
        raise ValueError(f"is {list(part)}; expected [from, to] with 0 <= from < to <= 1")
    return part


@settings
class SplitConfig:
    """One split: a part of a source of the corpus."""

    source: Annotated[str, Field(min_length=1)] = key(
        REQUIRED, "where it comes from, below the corpus's folder: a data directory (kaldi) or a table (tsv)"
    )
    part: Annotated[tuple[Share, Share], AfterValidator(_stretch)] = key(
        (0.0, 1.0), "which stretch of the speakers (utterances) of each language, as fractions [from, to)"
    )
    by: Literal["speaker", "utterance"] = key("speaker", "what is put in order and cut into parts")
    max_utterances: Large | None = key(None, "at most so many utterances in the split; null: all")
    max_seconds_per_language: Positive | None = key(None, "at most so many seconds of each language; null: all")


def check_splits(splits: Mapping[str, SplitConfig]) -> None:
    """ValueError if there is no split, or if two splits take overlapping parts of one source. Looks at no data."""
    if not splits:
        raise ValueError("splits: name at least one split")
    for (a, one), (b, other) in itertools.combinations(splits.items(), 2):
        if os.path.normpath(one.source) != os.path.normpath(other.source):
            continue
        if one.by != other.by:
            raise ValueError(
                f"splits {a} and {b} cut {one.source} by {one.by} and by {other.by}: they would overlap; use one `by`"
            )
        if one.part[0] < other.part[1] and other.part[0] < one.part[1]:
            raise ValueError(
                f"splits {a} and {b} overlap: parts {list(one.part)} and {list(other.part)} of {one.source}; choose "
                f"parts that do not overlap"
            )


def items_of_split(
    items: Iterable[Utterance | SetAside], split: SplitConfig, seed: int
) -> Iterator[Utterance | SetAside]:
    """Of all items of a source: what could not be read, which belongs to no part, then the utterances of one split.

    Of several utterances with one id the first of the source counts, whatever split it is in; the others become
    SetAside.
    """
    first: dict[str, Utterance] = {}
    utterances: list[Utterance] = []
    for item in items:
        if isinstance(item, SetAside):
            yield item
            continue
        utterances.append(item)
        first.setdefault(item.id, item)
    for item in select(utterances, split, seed):
        known = first[item.id]
        if known is item:
            yield item
        else:
            yield SetAside(item.id, "duplicate id", f"{item.place}; first in {known.place}")


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
    limit = split.max_seconds_per_language
    total: dict[str | None, float] = defaultdict(float)
    kept: set[int] = set()
    for i in sorted(range(len(utterances)), key=lambda i: (rank(seed, utterances[i].id), i)):
        if len(kept) == split.max_utterances:
            break
        if limit is not None:
            # The first that does not fit closes its language: a larger limit then gives a superset.
            code = utterances[i].language
            if total[code] <= limit:
                total[code] += _seconds(utterances[i])
            if total[code] > limit:
                continue
        kept.add(i)
    return [utterance for i, utterance in enumerate(utterances) if i in kept]


def _seconds(utterance: Utterance) -> float:
    """Duration: of the segment, as declared, or decoded, since headers lie; 0 for a broken file (set aside later)."""
    from lowrank_speech.corpora.audio import AudioError, open_once

    if utterance.end is not None:
        return utterance.end - utterance.start
    if utterance.seconds is not None:
        return utterance.seconds - utterance.start
    found = open_once(utterance.audio)
    return 0.0 if isinstance(found, AudioError) else found.seconds - utterance.start
