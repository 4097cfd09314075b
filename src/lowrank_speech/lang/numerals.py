"""Spell out numbers that are written with digits, by the rules of the language; the package num2words has the words.

    spelt("I have 25 bags, the 3rd of May 1999", "en")
    ->  "I have twenty-five bags, the third of May nineteen ninety-nine"

A number is a run of digits that touches no letter (so not MP3 or B12), with separators of thousands and decimals as
the language writes them. Four digits from 1100 to 1999 and from 2010 to 2099 are read as a year if the language reads
years in its own way; a number with a leading zero, or with more than 15 digits, is read digit by digit. Only English
ordinals (3rd) are known. Signs such as % and $ stay as they are.

A number may be read in several ways (105 as "one hundred five", 1500 as "fifteen hundred"), of which this chooses one.
"""

import functools
import re

from lowrank_speech.errors import UserError

DECIMAL_POINT = ("en", "he", "ja", "ko", "th", "fa", "bn", "te", "kn")
"""Languages that write 1,000.5; the others write 1.000,5."""
LONGEST = 15
_ORDINAL = re.compile(r"(?<![\w.,])(\d{1,15})(?:st|nd|rd|th)\b", re.IGNORECASE)


def has_numbers(text: str, language: str) -> bool:
    """Whether ``text`` has a number; after ``spelt``, only one that num2words has no words for."""
    return _pattern(language.replace("_", "-").partition("-")[0].lower()).search(text) is not None


def spelt(text: str, language: str) -> str:
    """``text`` with its numbers in words, if the language has them. UserError: num2words is not installed."""
    code = _code(language)
    if code is None or not any(character.isdecimal() for character in text):
        return text
    primary = code.partition("_")[0]
    if primary == "en":
        text = _ORDINAL.sub(lambda found: _words(int(found[1]), code, "ordinal"), text)
    return _pattern(primary).sub(lambda found: _number(found[0], primary, code), text)


@functools.cache
def _pattern(primary: str) -> re.Pattern:
    point = primary in DECIMAL_POINT
    thousands, decimal = (",", r"\.") if point else (r"[.\u00a0\u202f']", ",")
    return re.compile(rf"(?<![^\W\d_])(?<!\d)(?:[1-9]\d{{0,2}}(?:{thousands}\d{{3}})+|\d+)(?:{decimal}\d+)?(?![^\W_])")


def _number(written: str, primary: str, code: str) -> str:
    point = "." if primary in DECIMAL_POINT else ","
    whole, _, decimals = written.partition(point)
    plain = "".join(str(int(character)) for character in whole if character.isdecimal())
    if decimals:
        digits = "".join(str(int(character)) for character in decimals)
        return _words(f"{plain}.{digits}", code, "cardinal")
    if len(plain) > LONGEST or (len(plain) > 1 and plain[0] == "0"):
        return " ".join(_words(int(digit), code, "cardinal") for digit in plain)
    year = whole == plain and (1100 <= int(plain) <= 1999 or 2010 <= int(plain) <= 2099)
    return _words(int(plain), code, "year" if year else "cardinal")


@functools.cache
def _words(number: int | str, code: str, kind: str) -> str:
    from num2words import num2words

    try:
        return num2words(number, lang=code, to=kind)
    except Exception:
        # Without such forms: NotImplementedError. Converters of small languages raise anything for numbers that they do
        # not know (Amharic a TypeError for 123456): those stay digits, and `has_numbers` finds them.
        return str(number) if kind == "cardinal" else _words(number, code, "cardinal")


@functools.cache
def _code(language: str) -> str | None:
    """The code of num2words: en-GB -> en, pt-BR -> pt_BR; None: it does not know the language."""
    try:
        from num2words import CONVERTER_CLASSES
    except ImportError as error:
        raise UserError(
            "numbers: words needs the package num2words, which is not installed; pip install num2words"
        ) from error

    primary, _, region = language.replace("-", "_").partition("_")
    exact = f"{primary.lower()}_{region.upper()}"
    return next((code for code in (exact, primary.lower()) if code in CONVERTER_CLASSES), None)
