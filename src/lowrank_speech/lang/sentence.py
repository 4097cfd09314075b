"""Write transcripts like sentences: capitals where they can be known, and a full stop at the end.

References in one case and without punctuation become text in the style that a published Whisper writes:

    SEND MY LUGGAGE I'M LATE  ->  Send my luggage I'm late.

The case of other words is lost in such references: names need ``capitals``, and German nouns stay in lower case.
"""

import re
from collections.abc import Iterable

ENGLISH = (
    *("I", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    *("January", "February", "April", "June", "July", "September", "October", "November", "December"),
)
"""Words with a capital anywhere in a sentence; May, March and August are also other words."""

STOPS = {"zh": "。", "yue": "。", "ja": "。", "hi": "।", "ne": "।", "am": "።", "hy": "։", "ur": "۔"} | dict.fromkeys(
    ("th", "lo", "km", "my", "bo"), ""
)
"""Full stop of languages that do not write "."; "": they end a sentence without one."""

_END = re.compile(r"""[.!?…‽。！？．։؟۔।॥።]["'”’»›」』)\]]*$""")
_WEAK = " ,;:-–—、，；：،؛"
_WORD = re.compile(r"[^\W\d_]+")


class Sentence:
    """``sentence(text)`` gives text that is all upper or all lower case the case of a sentence; other text stays.

    ``language``: primary code or None. ``capitals``: words that have capitals anywhere. ``dotless``: it writes
    i and ı, İ and I.
    """

    def __init__(self, language: str | None, capitals: Iterable[str] = (), dotless: bool = False):
        words = (*(ENGLISH if language == "en" else ()), *capitals)
        self._capitals = {word.lower(): word for word in words}
        self._dotless = dotless

    def __call__(self, text: str, lowered: str) -> str:
        """``lowered`` is ``text`` in lower case, by the rules of the language."""
        if any(map(str.islower, text)) and any(map(str.isupper, text)):
            return text
        text = _WORD.sub(lambda found: self._capitals.get(found[0], found[0]), lowered)
        start = next((i for i, character in enumerate(text) if character.isalnum()), None)
        return text if start is None else text[:start] + self._capital(text[start]) + text[start + 1 :]

    def _capital(self, character: str) -> str:
        if self._dotless and character == "i":
            return "İ"
        upper = character.upper()
        # Not ß or ŉ, which become two characters and do not come back.
        return upper if len(upper) == 1 and upper.lower() == character else character


def ended(text: str, language: str | None) -> str:
    """``text`` with the language's full stop, unless it ends a sentence already or has no letter or digit."""
    if _END.search(text) or not any(map(str.isalnum, text)):
        return text
    return text.rstrip(_WEAK) + STOPS.get(language or "", ".")


def check(capitals: Iterable[str]) -> None:
    """ValueError: an entry is not a single word with a capital, or a word occurs with two spellings."""
    known: dict[str, str] = {}
    for word in capitals:
        if not _WORD.fullmatch(word) or word == word.lower():
            raise ValueError(f"capitals: {word!r} is not a word of letters with a capital, such as Beijing; correct it")
        if known.setdefault(word.lower(), word) != word:
            raise ValueError(f"capitals: {word!r} is also spelt {known[word.lower()]!r}; keep one of the two")
