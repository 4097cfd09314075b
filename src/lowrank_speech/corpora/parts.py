"""Splits as parts of a source: disjoint by speaker or by utterance, and the same on every machine.

The speakers (or utterances) of each language are sorted by sha256(seed, name), and a split takes the range
``part: [from, to)`` of that order. So a new utterance of a known speaker does not move other utterances, and two splits
whose ranges do not overlap share no speaker. Limits use a hash order too: a larger limit gives a superset.

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


def _range(part: tuple[float, float]) -> tuple[float, float]:
    if part[0] >= part[1]:
        raise ValueError(f"is {list(part)}; expected [from, to] with 0 <= from < to <= 1")
    return part


@settings
class SplitConfig:
    """One split: a part of a source of the corpus."""

    source: Annotated[str, Field(min_length=1)] = key(
        REQUIRED, "data directory (kaldi) or table (tsv), relative to the corpus's folder"
    )
    part: Annotated[tuple[Share, Share], AfterValidator(_range)] = key(
        (0.0, 1.0), "which part of each language's speakers (or utterances), as fractions [from, to)"
    )
    by: Literal["speaker", "utterance"] = key("speaker", "whether the parts divide the speakers or the utterances")
    max_utterances: Large | None = key(None, "maximum number of utterances in the split; null: no limit")
    max_seconds_per_language: Positive | None = key(None, "maximum seconds of each language; null: no limit")


def check_splits(splits: Mapping[str, SplitConfig]) -> None:
    """ValueError: there is no split, or two splits take overlapping parts of one source. Does not open any data."""
    if not splits:
        raise ValueError("splits: name at least one split")
    for (a, one), (b, other) in itertools.combinations(splits.items(), 2):
        if os.path.normpath(one.source) != os.path.normpath(other.source):
            continue
        if one.by != other.by:
            raise ValueError(
                f"splits {a} and {b} divide {one.source} by {one.by} and by {other.by}, so they would overlap; give "
                f"both the same `by`"
            )
        if one.part[0] < other.part[1] and other.part[0] < one.part[1]:
            raise ValueError(
                f"splits {a} and {b} overlap: parts {list(one.part)} and {list(other.part)} of {one.source}; choose "
                f"parts that do not overlap"
            )


def items_of_split(
    items: Iterable[Utterance | SetAside], split: SplitConfig, seed: int
) -> Iterator[Utterance | SetAside]:
    """Yield all unreadable items of a source (they belong to no part), then the utterances of one split.

    If several utterances share an id, the first one of the source counts, even if it is in another split. The others
    become SetAside.
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
    """Sort key of a name: hex sha256 of seed and name."""
    return hashlib.sha256(f"{seed}\t{name}".encode()).hexdigest()


def select(utterances: Sequence[Utterance], split: SplitConfig, seed: int) -> list[Utterance]:
    """The utterances of one split of a source, in the given order.

    A speaker of several languages counts under the alphabetically first one, so that no speaker is in two parts.
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
        # The end of one part and the start of the next are rounded alike, so there is no gap and no overlap.
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
            # The first utterance that does not fit ends its language, so that a larger limit gives a superset.
            code = utterances[i].language
            if total[code] <= limit:
                total[code] += _seconds(utterances[i])
            if total[code] > limit:
                continue
        kept.add(i)
    return [utterance for i, utterance in enumerate(utterances) if i in kept]


def _seconds(utterance: Utterance) -> float:
    """Duration of the segment, else as declared, else as decoded (headers lie); 0 for a broken file."""
    from lowrank_speech.corpora.audio import AudioError, open_once

    if utterance.end is not None:
        return utterance.end - utterance.start
    if utterance.seconds is not None:
        return utterance.seconds - utterance.start
    found = open_once(utterance.audio)
    return 0.0 if isinstance(found, AudioError) else found.seconds - utterance.start
