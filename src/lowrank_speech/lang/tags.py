"""Tags in transcripts, such as `<hes>`, `[laughter]`, `((unclear))` or `*cough*`, and patterns that replace them.

A pattern looks like a tag. Its first and last characters are the brackets; inside, `*` stands for any characters and
`?` for one. `<*>` matches every tag in angle brackets, `[noise*]` tags in square brackets that start with noise, and
`***` tags between asterisks. A blank matches any number of blanks. If several patterns match, the most specific one
counts, in whatever order they are given: the one with the most characters other than `*` and `?`.

    >>> Tags({"<*>": None, "<hes>": "uh"})("so <hes> I [laughter] <noise> went")
    'so  uh  I [laughter]   went'
"""

import re
from collections.abc import Mapping

BRACKETS = {"<": ">", "[": "]", "{": "}", "(": ")", "*": "*"}
_LONGEST = 60
"""Longer text in brackets is not taken for a tag."""
_OPENING = re.compile(r"[<\[{(*]")
_FOUND = re.compile(
    rf"<(?! )[^<>]{{1,{_LONGEST}}}(?<! )>|\[(?! )[^\[\]]{{1,{_LONGEST}}}(?<! )\]|{{(?! )[^{{}}]{{1,{_LONGEST}}}(?<! )}}"
    rf"|\(\([^()]{{0,{_LONGEST}}}\)\)|(?<!\S)\*[^\s*]{{1,{_LONGEST}}}\*(?!\S)"
)


def found_tags(text: str) -> list[str]:
    """Parts of a transcript that look like tags, in order, with blanks merged: `<...>`, `[...]`, `{...}`, `((...))`,
    `*...*`. Single parentheses are ordinary punctuation."""
    return [" ".join(tag.split()) for tag in _FOUND.findall(text)] if _OPENING.search(text) else []


class Tags:
    """Replaces tags in a text by ``patterns`` (pattern -> text, or None to remove), with a blank on either side."""

    def __init__(self, patterns: Mapping[str, str | None], ignore_case: bool = False):
        flags = re.IGNORECASE if ignore_case else 0
        ordered = sorted(patterns, key=_specificity)
        self._texts = [patterns[pattern] or "" for pattern in ordered]
        self._pattern = re.compile("|".join(f"({_regex(pattern)})" for pattern in ordered), flags) if ordered else None

    def __bool__(self) -> bool:
        return self._pattern is not None

    def __call__(self, text: str) -> str:
        before = None
        # Removing a tag may complete another one around it: <a <b> c>.
        while self._pattern is not None and text != before:
            before, text = text, self._pattern.sub(lambda match: f" {self._texts[match.lastindex - 1]} ", text)
        return text


def shown(counts: Mapping[str, int], most: int = 10) -> str:
    """The most frequent tags with their counts, for a message: `<hes> (12), [noise] (3)`."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    listed = ", ".join(f"{tag} ({n})" for tag, n in ordered[:most])
    return f"{listed} and {len(ordered) - most} others" if len(ordered) > most else listed


def check(patterns: Mapping[str, str | None]) -> None:
    """ValueError: a pattern has no brackets, or its text could itself be a tag."""
    for pattern, text in patterns.items():
        if len(pattern) < 3 or BRACKETS.get(pattern[0]) != pattern[-1]:
            raise ValueError(
                f"tags: {pattern!r} is not a pattern; it must start and end with a pair of brackets, as in <*>, [*], "
                f"(laughs) or *cough*"
            )
        wrong = next((c for c in text or "" if c in "<>[]{}()*"), None)
        if wrong is not None:
            raise ValueError(f"tags: {pattern!r} becomes {text!r}, which contains the bracket {wrong!r}; use words")


def _specificity(pattern: str) -> tuple[int, int, str]:
    """Sort key: the most specific pattern first. The pattern itself breaks ties, so the order in the config is free."""
    inside = pattern[1:-1]
    return -len(re.sub(r"[*?]", "", inside)), inside.count("*"), pattern


def _regex(pattern: str) -> str:
    opening, closing = pattern[0], pattern[-1]
    inside = "".join(_piece(piece, opening + closing) for piece in re.split(r"([*?]| +)", pattern[1:-1].strip(" ")))
    return f"{re.escape(opening)} *{inside} *{re.escape(closing)}"


def _piece(piece: str, brackets: str) -> str:
    # Wildcards do not match the pattern's own brackets: <a> b <c> is two tags.
    other = f"[^{re.escape(brackets)}]"
    return f"{other}*" if piece == "*" else other if piece == "?" else " +" if piece[:1] == " " else re.escape(piece)
