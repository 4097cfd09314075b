"""Tags in transcripts: `<hes>`, `[laughter]`, `((unclear))`, `*cough*` are not words; a config says what they become.

A pattern is a tag as it is written, with `*` for any characters and `?` for one; its first and last characters are its
brackets. `<*>` is every tag in angle brackets, `[noise*]` those in square ones that begin with noise, `***` those
between stars. A blank stands for any number of blanks. Where several patterns match, the most specific one counts,
whatever their order: the one with the most characters that are neither `*` nor `?`.

    >>> Tags({"<*>": None, "<hes>": "uh"})("so <hes> I [laughter] <noise> went")
    'so  uh  I [laughter]   went'
"""

import re
from collections.abc import Mapping

BRACKETS = {"<": ">", "[": "]", "{": "}", "(": ")", "*": "*"}
_LONGEST = 60
"""Characters between brackets from which on they are taken for something else than a tag."""
_OPENING = re.compile(r"[<\[{(*]")
_FOUND = re.compile(
    rf"<(?! )[^<>]{{1,{_LONGEST}}}(?<! )>|\[(?! )[^\[\]]{{1,{_LONGEST}}}(?<! )\]|{{(?! )[^{{}}]{{1,{_LONGEST}}}(?<! )}}"
    rf"|\(\([^()]{{0,{_LONGEST}}}\)\)|(?<!\S)\*[^\s*]{{1,{_LONGEST}}}\*(?!\S)"
)


def found_tags(text: str) -> list[str]:
    """What looks like tags in a transcript, in its order, as written but for blanks: `<...>`, `[...]`, `{...}`,
    `((...))`, `*...*`. Single parentheses are ordinary punctuation."""
    return [" ".join(tag.split()) for tag in _FOUND.findall(text)] if _OPENING.search(text) else []


class Tags:
    """Replaces the tags of ``patterns`` (pattern -> text, None: nothing) in a text; blanks are put around them."""

    def __init__(self, patterns: Mapping[str, str | None]):
        ordered = sorted(patterns, key=_vagueness)
        self._texts = [patterns[pattern] or "" for pattern in ordered]
        self._pattern = re.compile("|".join(f"({_regular(pattern)})" for pattern in ordered)) if ordered else None

    def __bool__(self) -> bool:
        return self._pattern is not None

    def __call__(self, text: str) -> str:
        before = None
        # Taking a tag out may close another one around it: <a <b> c>.
        while self._pattern is not None and text != before:
            before, text = text, self._pattern.sub(lambda match: f" {self._texts[match.lastindex - 1]} ", text)
        return text


def shown(counts: Mapping[str, int], most: int = 10) -> str:
    """`<hes> (12), [noise] (3)`: the commonest tags with their counts, for a message."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    listed = ", ".join(f"{tag} ({n})" for tag, n in ordered[:most])
    return f"{listed} and {len(ordered) - most} others" if len(ordered) > most else listed


def check(patterns: Mapping[str, str | None]) -> None:
    """ValueError for a pattern without brackets, and for a text that could be a tag itself."""
    for pattern, text in patterns.items():
        if len(pattern) < 3 or BRACKETS.get(pattern[0]) != pattern[-1]:
            raise ValueError(
                f"tags: {pattern!r} is not a pattern: it must begin and end with a pair of brackets, as in <*>, [*], "
                f"(laughs) or *cough*"
            )
        wrong = next((c for c in text or "" if c in "<>[]{}()*"), None)
        if wrong is not None:
            raise ValueError(f"tags: {pattern!r} becomes {text!r}, which holds the bracket {wrong!r}; use words")


def _vagueness(pattern: str) -> tuple[int, int, str]:
    """Sorts the most specific pattern first; its name decides last, so that no order in the config matters."""
    inside = pattern[1:-1]
    return -len(re.sub(r"[*?]", "", inside)), inside.count("*"), pattern


def _regular(pattern: str) -> str:
    opening, closing = pattern[0], pattern[-1]
    inside = "".join(_piece(piece, opening + closing) for piece in re.split(r"([*?]| +)", pattern[1:-1].strip(" ")))
    return f"{re.escape(opening)} *{inside} *{re.escape(closing)}"


def _piece(piece: str, brackets: str) -> str:
    # Neither wildcard passes a bracket of its own kind: <a> b <c> is two tags.
    other = f"[^{re.escape(brackets)}]"
    return f"{other}*" if piece == "*" else other if piece == "?" else " +" if piece[:1] == " " else re.escape(piece)
