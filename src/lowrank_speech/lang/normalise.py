"""Normalise transcripts for recognition, with the same function in training and in scoring.

The steps, in order: remove control and format characters, turn any white space into a blank, compose (Unicode NFC),
change the case (by the rules of the language), replace tags and characters, strip punctuation, merge blanks; for text
like Whisper's, write a sentence (``lang.sentence``). Normalising twice gives the same result as normalising once.

Letters, marks and numbers of every script are kept (Unicode categories L, Mn, Mc, N), so the vowel signs of Devanagari
or Arabic stay on their letters. Digits are never changed, because it is not known whether "5" is read "five". Only
canonical composition is applied: fullwidth letters, ligatures and superscripts stay as they are.

    Normaliser(NormaliseConfig())("Don’t STOP—it’s 5\u00a0%!", "en")  ->  "don't stop it's 5"

Source: Unicode Standard Annexes 15 (normalisation) and 44 (categories); SpecialCasing.txt for Turkish and Azerbaijani.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal

from lowrank_speech.lang import sentence, tags
from lowrank_speech.settings import key, settings

UNKNOWN = "\ufffd"
"""Stands for text that a token set cannot represent. Never stripped, so that it counts as an error."""

RESERVED = "|\u2581\u2585"
"""Word boundary of character tables, and two symbols of sentencepiece. They always become a blank."""

APOSTROPHES = "'\u2018\u2019\u201b\u02bc\u2032\uff07`\u00b4"
"""Characters that become ' inside words: typographic, modifier letter, prime, fullwidth, grave and acute accent."""

HYPHENS = "-\u2010\u2011\u05be\u2212\ufe63\uff0d"
"""Characters that become - if hyphens are kept: non-breaking, Hebrew maqaf, minus, small, fullwidth. No dashes."""

DOTLESS = ("tr", "az", "crh", "gag")
"""Languages that write i and ı, İ and I."""


Case = Literal["lower", "upper", "keep", "sentence"]
CASE = (
    "lower, upper or keep, with the dotless i of Turkish and Azerbaijani; upper-case German ß is ẞ; sentence: text "
    "that is all upper or all lower case gets a capital at its start and in `capitals`, other text stays"
)
FINAL_STOP = "end text that has no final punctuation with a full stop; needs punctuation: keep"
CAPITALS = "case: sentence: words with capitals anywhere, such as Beijing; English I, weekdays and months are known"
PUNCTUATION = (
    "strip: punctuation and symbols become blanks, except apostrophes inside words; keep: leave them unchanged"
)
HYPHENATION = "hyphens inside words, with punctuation: strip: replace by a space, or keep"
KEEP = "characters to treat as letters, such as %"
TAGS = "pattern -> text, or null to remove the tag; <*> matches all tags in angle brackets (docs/your-data.md)"
REPLACE = "character -> text, applied after the change of case"


@settings
class Rules:
    """Rules of one language; null: as for all languages."""

    case: Case | None = key(None, CASE)
    punctuation: Literal["strip", "keep"] | None = key(None, PUNCTUATION)
    hyphens: Literal["space", "keep"] | None = key(None, HYPHENATION)
    keep: str | None = key(None, KEEP)
    tags: dict[str, str | None] | None = key(None, TAGS)
    replace: dict[str, str] | None = key(None, REPLACE)
    final_stop: bool | None = key(None, FINAL_STOP)
    capitals: tuple[str, ...] | None = key(None, CAPITALS)


# The Catalan middle dot is part of words (col·lecció). Rules in the config override these.
BUILT_IN = {"ca": Rules(keep="·")}


@settings
class NormaliseConfig:
    """How transcripts are normalised, in training and in scoring."""

    case: Case = key("lower", CASE)
    punctuation: Literal["strip", "keep"] = key("strip", PUNCTUATION)
    hyphens: Literal["space", "keep"] = key("space", HYPHENATION)
    keep: str = key("", KEEP)
    tags: dict[str, str | None] = key(None, TAGS, default_factory=dict)
    replace: dict[str, str] = key(None, REPLACE, default_factory=dict)
    final_stop: bool = key(False, FINAL_STOP)
    capitals: tuple[str, ...] = key((), CAPITALS)
    languages: dict[str, Rules] = key(
        None, "language code -> rules that differ; en-GB also uses those of en", default_factory=dict
    )

    def __post_init__(self) -> None:
        every = {code: self.rules(code) for code in (None, *self.languages)}
        for code, rules in every.items():
            _check(rules, code)
        words = next((rules.capitals for rules in every.values() if rules.capitals), ())
        if words and not any(rules.case == "sentence" for rules in every.values()):
            raise ValueError(
                f"capitals: {words[0]!r} has an effect only with case: sentence; set it, or remove the key"
            )

    def rules(self, language: str | None) -> Rules:
        """The rules of one language (None: unknown language), with a value for each key."""
        names = [field.name for field in fields(Rules)]
        values = {name: getattr(self, name) for name in names}
        for code in reversed(_codes(language)):
            for table in (BUILT_IN, self.languages):
                if code in table:
                    values |= {name: v for name in names if (v := getattr(table[code], name)) is not None}
        return Rules(**values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON; see ``from_dict``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NormaliseConfig":
        """Read the result of ``to_dict``. TypeError or ValueError: not a result of it."""
        languages = {code: Rules(**given) for code, given in values.get("languages", {}).items()}
        return cls(**{**values, "languages": languages})


class Normaliser:
    """``normaliser(text, language)`` returns the normalised text; "" if nothing is left.

    ``language``: language code of the text; None: unknown.
    """

    def __init__(self, config: NormaliseConfig | None = None):
        self.config = config or NormaliseConfig()
        self._steps: dict[str | None, _Steps] = {}

    def __call__(self, text: str, language: str | None = None) -> str:
        return self._steps_for(language)(text)

    def with_tags(self, text: str, language: str | None = None) -> str:
        """``text`` as it is, except that tags are replaced, control characters removed and blanks merged."""
        return self._steps_for(language).with_tags(text)

    def holds_tags(self, text: str, language: str | None = None) -> bool:
        """Whether ``text`` has a tag that matches a pattern."""
        return self._steps_for(language).holds_tags(text)

    def unknown_tags(self, text: str, language: str | None = None) -> list[str]:
        """Parts of ``text`` that look like tags but match no pattern, so they would become words or vanish."""
        return [tag for tag in tags.found_tags(text) if not self._steps_for(language).holds_tags(tag)]

    def _steps_for(self, language: str | None) -> "_Steps":
        if language not in self._steps:
            self._steps[language] = _Steps(self.config.rules(language), language)
        return self._steps[language]


class _Steps:
    """The steps for one language."""

    def __init__(self, rules: Rules, language: str | None):
        self._rules, self._language = rules, language
        self._clean, self._strip = _Cleaning(), _Stripping(rules.hyphens, rules.keep)
        primary = _codes(language)[-1] if language else None
        how = (primary, rules.capitals, primary in DOTLESS)
        self._sentence = sentence.Sentence(*how) if rules.case == "sentence" else None
        self._primary = primary
        # Tags and characters are looked up after the change of case, so keys and replacements change their case, too.
        replacements = {character: self._cased(value) for character, value in rules.replace.items()}
        self._replace = str.maketrans(replacements)
        patterns = {self._cased(pattern): text and self._cased(text) for pattern, text in rules.tags.items()}
        self._tags = tags.Tags(patterns, ignore_case=rules.case == "sentence")
        self._written_tags = tags.Tags(rules.tags, ignore_case=rules.case != "keep")

    def __call__(self, text: str) -> str:
        before = None
        # A replacement may compose with a following mark to a character that has to be replaced as well, and removing
        # a tag may join its surroundings to a new tag.
        while text != before:
            before, text = text, self._once(text)
            if not self._replace and not self._tags:
                break
        return text

    def with_tags(self, text: str) -> str:
        """``text`` with its tags replaced."""
        return " ".join(self._written_tags(unicodedata.normalize("NFC", text.translate(self._clean))).split())

    def holds_tags(self, text: str) -> bool:
        """Whether ``text`` matches a pattern."""
        cased = self._cased(text)
        return bool(self._tags) and self._tags(cased) != cased

    def _cased(self, text: str) -> str:
        return _cased(unicodedata.normalize("NFC", text.translate(self._clean)), self._rules.case, self._language)

    def _once(self, text: str) -> str:
        text = self._tags(self._cased(text)).translate(self._replace)
        if self._rules.punctuation == "strip":
            text = _inside_words(text.translate(self._strip))
        text = unicodedata.normalize("NFC", " ".join(text.split()))
        if self._sentence is not None:
            text = self._sentence(text, _cased(text, "lower", self._language))
        if self._rules.final_stop:
            text = sentence.ended(text, self._primary)
        return unicodedata.normalize("NFC", text)


def _codes(language: str | None) -> list[str]:
    """``pt-BR`` -> itself, then ``pt``."""
    return [] if language is None else list(dict.fromkeys((language, re.split("[-_]", language)[0])))


def _check(rules: Rules, language: str | None) -> None:
    where = "" if language is None else f"languages.{language}."
    for character in rules.keep:
        if character in RESERVED or character in "'-" or character.isspace():
            raise ValueError(
                f"{where}keep: {character!r} cannot be kept, because it has a special meaning (as blanks, |, ▁ and ▅ "
                f"have); remove it. For ' and - see `hyphens` and `punctuation: keep`"
            )
    if rules.final_stop and rules.punctuation == "strip":
        raise ValueError(f"{where}final_stop: punctuation: strip would remove the full stop; set punctuation: keep")
    try:
        tags.check(rules.tags)
        sentence.check(rules.capitals)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    texts: dict[str, str | None] = {}
    for pattern, text in rules.tags.items():
        case = "lower" if rules.case == "sentence" else rules.case
        if texts.setdefault(_cased(pattern, case, language), text) != text:
            raise ValueError(f"{where}tags: {pattern!r} occurs twice in different case, with different texts; keep one")
    strip = _Stripping(rules.hyphens, rules.keep)
    for name, value in rules.replace.items():
        if len(name) != 1 or name.isspace() or name in RESERVED or unicodedata.category(name)[0] in "MC":
            raise ValueError(f"{where}replace: {name!r} is not a single letter, digit or symbol; give one character")
        cased = _cased(name, rules.case, language)
        if cased != name:
            raise ValueError(
                f"{where}replace: {name!r} never matches, because case is changed first; write {cased!r} instead"
            )
        # The result must not be replaced again, else this would not end.
        value = _cased(value, rules.case, language)
        made = value + unicodedata.normalize("NFC", value.translate(strip))
        again = next((other for other in rules.replace if other in made), None)
        if again is not None:
            raise ValueError(
                f"{where}replace: {name!r} becomes {value!r}, which contains {again!r}, another key; change one of them"
            )


def _cased(text: str, case: str, language: str | None) -> str:
    primary = _codes(language)[-1] if language else None
    if case == "lower":
        if primary in DOTLESS:
            text = text.replace("İ", "i").replace("I", "ı")
        text = text.lower()
    elif case == "upper":
        if primary in DOTLESS:
            text = text.replace("i", "İ")
        if primary == "de":  # SS would make "Maße" and "Masse" one word; ẞ is the official capital since 2017
            text = text.replace("ß", "ẞ")
        text = text.upper()
    return unicodedata.normalize("NFC", text)


class _Cleaning(dict):
    """For str.translate: white space to blanks; drops control and format characters, variation selectors, and
    surrogates."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        result: str | None = character
        if character.isspace() or character in RESERVED:
            result = " "
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs") or _is_variation_selector(code):
            result = None
        self[code] = result
        return result


class _Stripping(dict):
    """For str.translate: apostrophes -> ', hyphens -> - or blank, punctuation and symbols -> blank."""

    def __init__(self, hyphens: str, keep: str):
        super().__init__()
        self._hyphen, self._keep = "-" if hyphens == "keep" else " ", {*keep, UNKNOWN}

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        result = character
        if character in self._keep:
            pass
        elif character in APOSTROPHES:
            result = "'"
        elif character in HYPHENS:
            result = self._hyphen
        elif category[0] in "PS" or category == "Me":
            result = " "
        self[code] = result
        return result


def _is_variation_selector(code: int) -> bool:
    return 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or 0x180B <= code <= 0x180F


def _inside_words(text: str) -> str:
    """Turn ' and - into blanks unless they are between two letters; remove marks that lost their letter."""
    if "'" not in text and "-" not in text and text.isascii():
        return text
    parts = re.split("([ '-])", text)
    parts[::2] = [_without_leading_marks(part) for part in parts[::2]]
    return re.sub("(?<![^ '-])['-]|['-](?![^ '-])", " ", "".join(parts))


def _without_leading_marks(part: str) -> str:
    for i, character in enumerate(part):
        if unicodedata.category(character)[0] != "M":
            return part[i:]
    return ""
