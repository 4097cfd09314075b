"""Lexicon: words -> token sequences, by spelling in the token set or from a pronunciation dictionary.

A dictionary is Kaldi's lexicon.txt (``word symbol symbol ...``) or lexiconp.txt (``word probability symbol ...``), with
one line for each pronunciation. Its symbols are tokens of the set.

In a character set ``|`` separates words. Pronunciations do not include it; the graph puts it between words.

    >>> lexicon, missing = spelled(["cab", "xyz"], tokens)  # a set with the characters a, b, c
    >>> lexicon.entries
    (Pronunciation(word='cab', tokens=(5, 3, 4), cost=0.0),)
    >>> missing
    {'xyz': 'the token set lacks x y z'}
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_speech.errors import UserError
from lowrank_speech.lang.tokens import BOUNDARY, Tokens

NOT_LISTED = "not in the dictionary"
LEFT_OUT = ("<s>", "</s>", "<unk>", "<eps>", "#0")
"""Entries of vocabularies that are not words, and symbols of the graph."""


@dataclass(frozen=True)
class Pronunciation:
    """A way to say a word: token ids, and its cost (minus the natural log of its probability)."""

    word: str
    tokens: tuple[int, ...]
    cost: float = 0.0


@dataclass(frozen=True)
class Lexicon:
    """Pronunciations, sorted by word.

    boundary   id of the token that separates words; None: the tokens show where words begin
    """

    entries: tuple[Pronunciation, ...]
    boundary: int | None = None

    @functools.cached_property
    def words(self) -> tuple[str, ...]:
        """The words, sorted, each once."""
        return tuple(dict.fromkeys(entry.word for entry in self.entries))

    @functools.cached_property
    def pronunciations(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Word -> its token sequences."""
        found: dict[str, list[tuple[int, ...]]] = {}
        for entry in self.entries:
            found.setdefault(entry.word, []).append(entry.tokens)
        return {word: tuple(sequences) for word, sequences in found.items()}

    def only(self, words: Iterable[str]) -> "Lexicon":
        """The lexicon of those of its words that are among ``words``."""
        wanted = set(words)
        return Lexicon(tuple(entry for entry in self.entries if entry.word in wanted), self.boundary)


def boundary_of(tokens: Tokens) -> int | None:
    """The id of the word boundary of a token set; None: the set has none, because its pieces begin words."""
    return tokens.symbols.index(BOUNDARY) if BOUNDARY in tokens.symbols[:3] else None


def real_words(words: Iterable[str]) -> list[str]:
    """``words`` sorted, each once, without sentence marks and the unknown word."""
    return sorted(set(words) - set(LEFT_OUT))


def spelled(words: Iterable[str], tokens: Tokens) -> tuple[Lexicon, dict[str, str]]:
    """Spell ``words`` in the token set; returns the lexicon, and word -> reason for those that cannot be written."""
    entries, missing = [], {}
    for word in real_words(words):
        unseen, ids = tokens.unseen(word), tuple(tokens.encode(word))
        if unseen or not ids or tokens.unk in ids:
            missing[word] = f"the token set lacks {' '.join(sorted(unseen)) or 'a token for it'}"
        else:
            entries.append(Pronunciation(word, ids))
    return Lexicon(tuple(entries), boundary_of(tokens)), missing


def read(path: str | Path, tokens: Tokens) -> Lexicon:
    """Read a pronunciation dictionary.

    A second field such as 0.25 is a probability, if it is not a token itself. UserError with file and line: a symbol
    that the tokens lack, a word without a pronunciation, a probability that is not above 0 and at most 1, or that only
    some lines have.
    """
    path = Path(path)
    ids = {symbol: i for i, symbol in enumerate(tokens.symbols) if i not in (tokens.blank, tokens.unk)}
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"lexicon: {path} cannot be read ({error.strerror}); correct the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"lexicon: {path}: byte {error.start} is not UTF-8; convert the file") from error
    found: dict[tuple[str, tuple[int, ...]], float] = {}
    first = 0  # the first line with a word; whether it has a probability decides for all
    for number, line in enumerate(text.split("\n"), start=1):
        fields, where = line.split(), f"lexicon: {path}, line {number}"
        if not fields:
            continue
        word, symbols = fields[0], fields[1:]
        weighted = bool(symbols) and symbols[0] not in ids and _number(symbols[0]) is not None
        if not first:
            first, expected = number, weighted
        if weighted != expected:
            raise UserError(
                f"{where}: {word!r} has {'a' if weighted else 'no'} probability, unlike line {first}; give all "
                f"pronunciations one, or none"
            )
        cost = _cost(symbols.pop(0), where) if weighted else 0.0
        sequence = _checked(word, symbols, ids, where)
        # A pronunciation that is listed twice counts once, with its higher probability.
        found[word, sequence] = min(cost, found.get((word, sequence), math.inf))
    if not found:
        raise UserError(f"lexicon: {path} has no words; give lines with a word and its symbols")
    entries = (Pronunciation(word, sequence, cost) for (word, sequence), cost in sorted(found.items()))
    return Lexicon(tuple(entries), boundary_of(tokens))


def _number(text: str) -> float | None:
    """``text`` as a number, if it looks like a probability: with a decimal point, or 1."""
    if "." not in text and text != "1":
        return None
    try:
        return float(text)
    except ValueError:
        return None


def _cost(text: str, where: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise UserError(f"{where}: the probability {text} is not above 0 and at most 1; correct it")
    return -math.log(value) + 0.0  # 0.0 instead of -0.0


def _checked(word: str, symbols: Sequence[str], ids: dict[str, int], where: str) -> tuple[int, ...]:
    if word in LEFT_OUT:
        raise UserError(f"{where}: {word!r} is a symbol of the graph and not a word; remove the line")
    if not symbols:
        raise UserError(f"{where}: {word!r} has no pronunciation; add its symbols, or remove the line")
    unknown = [symbol for symbol in symbols if symbol not in ids]
    if unknown:
        raise UserError(
            f"{where}: the token set lacks {' '.join(dict.fromkeys(unknown))} of {word!r}; write pronunciations in the "
            f"tokens of the system"
        )
    if BOUNDARY in (symbols[0], symbols[-1]):
        raise UserError(
            f"{where}: {word!r} begins or ends with {BOUNDARY}, which the graph puts between words; remove it"
        )
    return tuple(ids[symbol] for symbol in symbols)


def disambiguated(lexicon: Lexicon) -> tuple[list[int], int]:
    """Number the pronunciations that need a disambiguation symbol: 0 needs none, k needs #k at its end.

    Returns a number for each entry, and the highest number. A pronunciation needs a symbol if other entries share it,
    or if it is the beginning of another one. Source: Kaldi, utils/add_lex_disambig.pl.
    """
    count = Counter(entry.tokens for entry in lexicon.entries)
    beginnings = {sequence[:end] for sequence in count for end in range(1, len(sequence))}
    used: Counter[tuple[int, ...]] = Counter()
    numbers = []
    for entry in lexicon.entries:
        if count[entry.tokens] > 1 or entry.tokens in beginnings:
            used[entry.tokens] += 1
        numbers.append(used[entry.tokens])
    return numbers, max(numbers, default=0)
