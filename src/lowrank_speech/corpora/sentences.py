"""Written sentences of the synthetic corpus: a small grammar and some free sentences per language.

Input: ``sentences/<language>.yaml`` of this package. Each holds slots whose fillers are whole, correctly inflected
phrases, so that every combination is grammatical; templates that put slots in order; free sentences, written by hand;
and the espeak-ng voices that speak the language. Output: sentences with a capital first letter and a full stop.

A sentence made from a template belongs to exactly one held-out split, or to the pool that the other splits share. Its
sha256 decides which: no draw, no seed and no other setting but the shares can move a sentence from test to training.
Free sentences belong to the pool, so the words of the held-out splits are a closed set.

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

from lowrank_speech import yaml_files
from lowrank_speech.errors import UserError

if TYPE_CHECKING:
    import numpy as np

FOLDER = Path(__file__).with_name("sentences")
# A held-out split owns a few per cent of the sentences, so most draws miss it; so many misses in a row mean that
# nothing is left to draw.
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
        """Every sentence that the templates can make, in the file's order."""
        for template in self.templates:
            for phrases in itertools.product(*(self.slots[slot] for slot in template)):
                yield written(phrases)

    def count(self) -> int:
        """How many sentences the templates make."""
        return sum(math.prod(len(self.slots[slot]) for slot in template) for template in self.templates)

    def words(self) -> set[str]:
        """The distinct words of the templates, in lower case (free sentences have further ones)."""
        used = {slot for template in self.templates for slot in template}
        return {word for slot in used for phrase in self.slots[slot] for word in key(phrase).split()}


def known() -> list[str]:
    """Codes of the languages that have a sentence file, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load(language: str) -> Grammar:
    """Read the grammar of ``language`` (ISO code); UserError lists the known ones where there is none."""
    if language not in known():
        raise UserError(
            f"no sentences are written for the language {language!r}; known languages: {', '.join(known())}"
        )
    return parse((FOLDER / f"{language}.yaml").read_text(encoding="utf-8"), language, str(FOLDER / f"{language}.yaml"))


def parse(text: str, language: str, where: str) -> Grammar:
    """Build a Grammar from the text of a sentence file; UserError names ``where`` and what is wrong there."""
    if not unicodedata.is_normalized("NFC", text):
        raise UserError(f"{where}: the text is not in Unicode normal form NFC; normalise the file")
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
            raise UserError(f"{where}: {slot} holds {max(phrases, key=phrases.count)!r} twice")
    templates = tuple(tuple(re.findall(r"\{(\w+)\}", template)) for template in data["templates"])
    for template, line in zip(templates, data["templates"], strict=True):
        unknown = [slot for slot in template if slot not in slots]
        if unknown or line != " ".join(f"{{{slot}}}" for slot in template) or not template:
            raise UserError(
                f"{where}: the template {line!r} must be made of slots only: it may hold {', '.join(slots)}"
            )
    return Grammar(language, data["name"], tuple(data["voices"]), slots, templates, tuple(data["free"]))


def written(phrases: tuple[str, ...] | list[str]) -> str:
    """Join phrases to a sentence: capital first letter, full stop."""
    text = " ".join(phrases)
    return text[:1].upper() + text[1:] + "."


def key(text: str) -> str:
    """What makes two sentences the same: lower-case words without punctuation, NFC."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFC", text).lower()))


def owner(text: str, shares: Mapping[str, float]) -> str | None:
    """The held-out split that ``text`` belongs to, or None for the pool of all other splits.

    ``shares`` maps each held-out split to its share of all sentences (0..1, sum below 1). The sentence's sha256 is read
    as a number in 0..1, on which the splits lie side by side in the order of their names.
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

    Templates are equally likely, whatever the number of their sentences. ``free`` is the probability of a free sentence
    (until all are used; never in a held-out split, that is a split named in ``shares``). The first n of a longer draw
    are the draw of n. UserError when the split owns fewer sentences than asked for.
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
                f"the split {split} asks for {count} different sentences a language and {grammar.name} has about "
                f"{len(result)} for it: ask for fewer utterances, or give the split a larger share of the sentences"
            )
    return result
