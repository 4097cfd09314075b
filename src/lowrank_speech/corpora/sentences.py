"""Sentences of the synthetic corpus: a small grammar and some free sentences for each language.

Input: ``sentences/<language>.yaml`` in this package. Each file has slots, whose fillers are complete and correctly
inflected phrases, so that every combination is grammatical; templates, which are sequences of slots; free sentences,
written by hand; and the espeak-ng voices of the language. Output: sentences with a capital first letter and a full
stop.

A template sentence belongs to exactly one held-out split, or to the pool that all other splits share. Its sha256 and
the shares decide which, so no seed and no other setting can move a sentence from test to training. Free sentences
belong to the pool, so the held-out splits have a closed vocabulary.

    python -c "from lowrank_speech.corpora import sentences; print(sentences.load('de').words())"

Source: written for this project.
"""

import hashlib
import itertools
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank_speech.errors import UserError

if TYPE_CHECKING:
    import numpy as np

FOLDER = Path(__file__).with_name("sentences")
# Only a few per cent of the sentences belong to a held-out split, so most draws miss it. After this many misses in a
# row, no sentence is assumed to be left.
MISSES = 5000


@dataclass(frozen=True)
class Grammar:
    """One language: ``templates`` are tuples of slot names, ``slots`` gives each slot's phrases."""

    language: str
    name: str
    voices: tuple[str, ...]
    slots: Mapping[str, tuple[str, ...]]
    templates: tuple[tuple[str, ...], ...]
    free: tuple[str, ...]

    def made(self) -> Iterator[str]:
        """Yield every sentence that the templates can generate, in the order of the file."""
        for template in self.templates:
            for phrases in itertools.product(*(self.slots[slot] for slot in template)):
                yield written(phrases)

    def count(self) -> int:
        """Number of sentences that the templates can generate."""
        return sum(math.prod(len(self.slots[slot]) for slot in template) for template in self.templates)

    def words(self) -> set[str]:
        """The vocabulary of the templates, in lower case (without the free sentences)."""
        used = {slot for template in self.templates for slot in template}
        return {word for slot in used for phrase in self.slots[slot] for word in key(phrase).split()}


def known() -> list[str]:
    """Sorted codes of the languages with a sentence file."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load(language: str) -> Grammar:
    """Read the grammar of ``language`` (ISO code). UserError: it has no sentence file."""
    if language not in known():
        raise UserError(
            f"there is no sentence file for the language {language!r}; known languages: {', '.join(known())}"
        )
    return parse((FOLDER / f"{language}.yaml").read_text(encoding="utf-8"), language, str(FOLDER / f"{language}.yaml"))


def parse(text: str, language: str, where: str) -> Grammar:
    """Build a Grammar from the text of a sentence file. UserError names the file (``where``) and the mistake."""
    if not unicodedata.is_normalized("NFC", text):
        raise UserError(f"{where}: the text is not in Unicode normal form NFC; normalise the file")
    from lowrank_speech import yaml_files

    try:
        data = yaml_files.parse(text, where)
    except ValueError as error:
        raise UserError(str(error)) from error
    expected = {"name", "voices", "slots", "templates", "free"}
    if not isinstance(data, dict) or set(data) != expected:
        raise UserError(f"{where}: expected the keys {', '.join(sorted(expected))}")
    slots = {slot: tuple(phrases) for slot, phrases in data["slots"].items()}
    for slot, phrases in [*slots.items(), ("free", tuple(data["free"])), ("voices", tuple(data["voices"]))]:
        # An unquoted no, on or y is a boolean in YAML.
        wrong = [phrase for phrase in phrases if not isinstance(phrase, str) or not phrase.strip()]
        if wrong or not phrases:
            raise UserError(f"{where}: {slot} must be a list of texts, found {wrong[0] if wrong else 'nothing'!r}")
        if len(set(phrases)) < len(phrases):
            raise UserError(f"{where}: {slot} has {max(phrases, key=phrases.count)!r} twice; remove one")
    templates = tuple(tuple(re.findall(r"\{(\w+)\}", template)) for template in data["templates"])
    for template, line in zip(templates, data["templates"], strict=True):
        unknown = [slot for slot in template if slot not in slots]
        if unknown or line != " ".join(f"{{{slot}}}" for slot in template) or not template:
            raise UserError(
                f"{where}: the template {line!r} must consist of slots only; known slots: {', '.join(slots)}"
            )
    return Grammar(language, data["name"], tuple(data["voices"]), slots, templates, tuple(data["free"]))


def written(phrases: tuple[str, ...] | list[str]) -> str:
    """Join phrases to a sentence with a capital first letter and a full stop."""
    text = " ".join(phrases)
    return text[:1].upper() + text[1:] + "."


def key(text: str) -> str:
    """Canonical form for comparing sentences: NFC, lower case, no punctuation."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFC", text).lower()))


def owner(text: str, shares: Mapping[str, float]) -> str | None:
    """The held-out split that ``text`` belongs to, or None for the pool of all other splits.

    ``shares`` maps each held-out split to its share of all sentences (0..1, sum below 1). The shares divide the range
    0..1, in the order of the splits' names; the sentence's sha256, read as a number in 0..1, selects one.
    """
    number = int.from_bytes(hashlib.sha256(key(text).encode()).digest()[:8]) / 2**64
    edge = 0.0
    for split in sorted(shares):
        edge += shares[split]
        if number < edge:
            return split
    return None


def draw(
    grammar: Grammar,
    count: int,
    rng: "np.random.Generator",
    split: str,
    shares: Mapping[str, float],
    free: float = 0.0,
) -> list[tuple[str, bool]]:
    """Draw ``count`` different sentences that ``split`` may use; returns (sentence, whether it is a free one).

    All templates are equally likely, however many sentences they have. ``free`` is the probability of a free sentence,
    until all are used. Held-out splits (those in ``shares``) never get one. A longer draw starts with the shorter one.
    UserError: the split has fewer sentences than asked for.
    """
    home = split if split in shares else None
    left = list(grammar.free) if home is None else []
    seen: set[str] = set()
    result: list[tuple[str, bool]] = []
    misses = 0
    while len(result) < count:
        if rng.random() < free and left:
            result.append((left.pop(int(rng.integers(len(left)))), True))
            continue
        template = grammar.templates[int(rng.integers(len(grammar.templates)))]
        text = written([grammar.slots[slot][int(rng.integers(len(grammar.slots[slot])))] for slot in template])
        if text not in seen and owner(text, shares) == home:
            seen.add(text)
            result.append((text, False))
            misses = 0
            continue
        misses += 1
        if misses > MISSES:
            raise UserError(
                f"the split {split} needs {count} different sentences per language, but {grammar.name} has only about "
                f"{len(result)} for it; ask for fewer utterances, or give the split a larger share of the sentences"
            )
    return result
