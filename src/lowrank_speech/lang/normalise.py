"""Raw transcripts -> the form that recognition learns and is scored in; the same function on both sides.

In that order: control and format characters go, any white space becomes a blank, Unicode's canonical composition (NFC),
case (with the rules of the language), tags, replacements, punctuation, single blanks. Normalising twice changes nothing
more.

Kept are letters, marks and numbers of every script (Unicode categories L, Mn, Mc, N), so the vowel signs of Devanagari
or Arabic stay on their letters. Digits are never touched: whether "5" is read "five" is not known here. Only canonical
composition is done, no compatibility form: fullwidth letters, ligatures and superscripts stay what they are.

    Normaliser(NormaliseConfig())("Don’t STOP—it’s 5\u00a0%!", "en")  ->  "don't stop it's 5"

Source: Unicode Standard Annexes 15 (normalisation) and 44 (categories); SpecialCasing.txt for Turkish and Azerbaijani.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal

from lowrank_speech.lang import tags
from lowrank_speech.settings import key, settings

UNKNOWN = "\ufffd"
"""Stands for what a token set cannot write. Never stripped: it has to count as an error."""

RESERVED = "|\u2581\u2585"
"""Word boundary of character tables, and two signs of sentencepiece: they always become a blank."""

APOSTROPHES = "'\u2018\u2019\u201b\u02bc\u2032\uff07`\u00b4"
"""Unified to ' inside words: typographic, modifier letter, prime, fullwidth, grave and acute accent."""

HYPHENS = "-\u2010\u2011\u05be\u2212\ufe63\uff0d"
"""Unified to - where hyphens are kept: with non-breaking, Hebrew maqaf, minus, small and fullwidth ones. No dashes."""

DOTLESS = ("tr", "az", "crh", "gag")
"""Languages that write i and ı, İ and I."""


Case = Literal["lower", "upper", "keep"]
CASE = "lower, upper or keep; Turkish and Azerbaijani have their own i, German ß is ẞ in upper case"
PUNCTUATION = (
    "strip: punctuation and symbols become blanks, apostrophes stay inside words as '; keep: all of it stays as it is"
)
HYPHENATION = "with punctuation: strip, what becomes of hyphens inside words: space or keep"
KEEP = "characters that count as letters, such as %"
TAGS = "pattern -> text, null: nothing; <*> and [*] are all tags in such brackets, <hes> is one (docs/your-data.md)"
REPLACE = "character -> text, looked up after casing"


@settings
class Rules:
    """How one language is normalised; null: as for all languages."""

    case: Case | None = key(None, CASE)
    punctuation: Literal["strip", "keep"] | None = key(None, PUNCTUATION)
    hyphens: Literal["space", "keep"] | None = key(None, HYPHENATION)
    keep: str | None = key(None, KEEP)
    tags: dict[str, str | None] | None = key(None, TAGS)
    replace: dict[str, str] | None = key(None, REPLACE)


# Written inside words: Catalan's col·lecció. A config's own rules of the language win.
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
    languages: dict[str, Rules] = key(
        None, "code -> what differs there; en-GB looks for itself, then for en", default_factory=dict
    )

    def __post_init__(self) -> None:
        for code in (None, *self.languages):
            _check(self.rules(code), code)

    def rules(self, language: str | None) -> Rules:
        """The rules of one language (None: of an unknown one), with a value for every key."""
        names = [field.name for field in fields(Rules)]
        values = {name: getattr(self, name) for name in names}
        for code in reversed(_codes(language)):
            for table in (BUILT_IN, self.languages):
                if code in table:
                    values |= {name: v for name in names if (v := getattr(table[code], name)) is not None}
        return Rules(**values)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; ``from_dict`` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "NormaliseConfig":
        """From what ``to_dict`` gave. TypeError or ValueError for anything else."""
        languages = {code: Rules(**given) for code, given in values.get("languages", {}).items()}
        return cls(**{**values, "languages": languages})


class Normaliser:
    """``normaliser(text, language)`` gives the normalised text; "" where nothing is left.

    ``language``: code of the text's language, None where it is not known.
    """

    def __init__(self, config: NormaliseConfig | None = None):
        self.config = config or NormaliseConfig()
        self._steps: dict[str | None, _Steps] = {}

    def __call__(self, text: str, language: str | None = None) -> str:
        return self._of(language)(text)

    def holds_tags(self, text: str, language: str | None = None) -> bool:
        """Whether ``text`` holds a tag for which there is a pattern."""
        return self._of(language).holds_tags(text)

    def unknown_tags(self, text: str, language: str | None = None) -> list[str]:
        """What looks like tags in ``text`` and has no pattern, so that it becomes words or vanishes by chance."""
        return [tag for tag in tags.found_tags(text) if not self._of(language).holds_tags(tag)]

    def _of(self, language: str | None) -> "_Steps":
        if language not in self._steps:
            self._steps[language] = _Steps(self.config.rules(language), language)
        return self._steps[language]


class _Steps:
    """The steps for one language."""

    def __init__(self, rules: Rules, language: str | None):
        self._rules, self._language = rules, language
        self._clean, self._strip = _Cleaning(), _Stripping(rules.hyphens, rules.keep)
        # Tags and characters are looked up in cased text; what they become takes the same case.
        replacements = {character: self._cased(value) for character, value in rules.replace.items()}
        self._replace = str.maketrans(replacements)
        patterns = {self._cased(pattern): text and self._cased(text) for pattern, text in rules.tags.items()}
        self._tags = tags.Tags(patterns)

    def __call__(self, text: str) -> str:
        before = None
        # What a replacement gives may compose with a mark behind it to another character that is to be replaced, and
        # what is left around a tag may be one.
        while text != before:
            before, text = text, self._once(text)
            if not self._replace and not self._tags:
                break
        return text

    def holds_tags(self, text: str) -> bool:
        """Whether a pattern finds something."""
        cased = self._cased(text)
        return bool(self._tags) and self._tags(cased) != cased

    def _cased(self, text: str) -> str:
        return _cased(unicodedata.normalize("NFC", text.translate(self._clean)), self._rules.case, self._language)

    def _once(self, text: str) -> str:
        text = self._tags(self._cased(text)).translate(self._replace)
        if self._rules.punctuation == "strip":
            text = _inside_words(text.translate(self._strip))
        return unicodedata.normalize("NFC", " ".join(text.split()))


def _codes(language: str | None) -> list[str]:
    """``pt-BR`` -> itself, then ``pt``."""
    return [] if language is None else list(dict.fromkeys((language, re.split("[-_]", language)[0])))


def _check(rules: Rules, language: str | None) -> None:
    where = "" if language is None else f"languages.{language}."
    for character in rules.keep:
        if character in RESERVED or character in "'-" or character.isspace():
            raise ValueError(
                f"{where}keep: {character!r} cannot be kept: blanks, | and sentencepiece's signs mean something "
                f"else; for ' and - see `hyphens` and `punctuation: keep`"
            )
    try:
        tags.check(rules.tags)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    texts: dict[str, str | None] = {}
    for pattern, text in rules.tags.items():
        if texts.setdefault(_cased(pattern, rules.case, language), text) != text:
            raise ValueError(f"{where}tags: {pattern!r} stands twice in different case, with different texts; keep one")
    strip = _Stripping(rules.hyphens, rules.keep)
    for name, value in rules.replace.items():
        if len(name) != 1 or name.isspace() or name in RESERVED or unicodedata.category(name)[0] in "MC":
            raise ValueError(f"{where}replace: {name!r} is not one character to look for (a letter, a sign, a digit)")
        cased = _cased(name, rules.case, language)
        if cased != name:
            raise ValueError(f"{where}replace: {name!r} is never found: case comes first, and makes it {cased!r}")
        # Otherwise what comes out would be replaced again, without end.
        value = _cased(value, rules.case, language)
        made = value + unicodedata.normalize("NFC", value.translate(strip))
        again = next((other for other in rules.replace if other in made), None)
        if again is not None:
            raise ValueError(
                f"{where}replace: {name!r} becomes {value!r}, which holds {again!r}, itself to be replaced"
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
    """For str.translate: white space -> blank; controls, format characters, variation selectors, surrogates go."""

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
    """Joiners (' and -) that are not between two letters become blanks; marks that lost their letter go."""
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
