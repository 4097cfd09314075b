"""Rows of delimited tables: tabs, commas, semicolons or bars; with or without quotes; records over several lines.

    >>> header, rows = read_rows(Path("train.csv"), "auto", None)
    >>> next(rows)
    Row(line=2, values=['a.wav', 'He said "yes"'], fault='')

In a quoted table (RFC 4180) a field may contain delimiters, doubled quotes and line breaks. A row that is not valid in
this sense, such as ``a.wav,"ja" sagte er``, counts as a row without quotes if it has the right number of fields. So no
quotation mark swallows the rows below it.
"""

import csv
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from lowrank_speech.corpora.common import read_lines
from lowrank_speech.errors import UserError

DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";", "bar": "|"}
Delimiter = Literal["auto", "tab", "comma", "semicolon", "bar"]
MOST = 100
"""Lines that one quoted record may span."""


class Row(NamedTuple):
    """One record. ``fault`` is empty, or says why it has no usable values."""

    line: int
    values: list[str]
    fault: str


def delimiter_of(header: str, path: Path, delimiter: Delimiter, fits: Callable[[list[str]], bool]) -> str:
    """The character that separates the columns of ``header``.

    ``fits``: whether a list of columns is plausible. UserError: none or several delimiters give plausible columns.
    """
    if delimiter != "auto":
        return DELIMITERS[delimiter]
    found = [name for name, char in DELIMITERS.items() if fits(split(header, char, True) or header.split(char))]
    if len(found) != 1:
        why = f"{' and '.join(found)} are possible" if found else "no column has a known name"
        raise UserError(
            f"{path}: the delimiter of the header {header[:200]!r} is not clear ({why}); set the corpus's key "
            f"`delimiter` (tab, comma, semicolon or bar) and the names in `columns`, or add a header line"
        )
    return DELIMITERS[found[0]]


def split(text: str, delimiter: str, quotes: bool) -> list[str] | None:
    """The fields of one record; None if it is not valid with quotes."""
    if not quotes:
        return text.split(delimiter)
    try:
        # A list of one string, so that csv sees line breaks within it.
        [fields] = csv.reader([text], delimiter=delimiter, strict=True)
    except (csv.Error, ValueError):
        return None
    return fields


def read_rows(
    path: Path, delimiter: Delimiter, quotes: bool | None, fits: Callable[[list[str]], bool]
) -> tuple[list[str], Iterator[Row]]:
    """The header of a table and its rows, in order. Blank lines are skipped.

    ``quotes``: whether fields may be quoted; None: yes for commas and semicolons, no for tabs and bars. UserError: the
    file is missing, empty or not UTF-8, or its delimiter is not clear.
    """
    lines = read_lines(path)
    _, first = next(lines, (0, ""))
    if not first:
        raise UserError(f"{path}: the file is empty; it needs a header line and one row per utterance")
    char = delimiter_of(first, path, delimiter, fits)
    quoted = char in ",;" if quotes is None else quotes
    header = split(first, char, True) if quoted or first.lstrip().startswith('"') else first.split(char)
    header = [name.strip() for name in header or first.split(char)]
    return header, _rows(lines, char, quoted, len(header))


def _rows(lines: Iterator[tuple[int, str]], delimiter: str, quoted: bool, width: int) -> Iterator[Row]:
    waiting: deque[tuple[int, str]] = deque()
    while True:
        if not waiting and not _read_ahead(waiting, lines):
            return
        line, text = waiting.popleft()
        values = _quoted(text, delimiter, width, waiting, lines) if quoted else None
        if values is None:
            values = text.split(delimiter)
        yield Row(line, values, "" if len(values) == width else f"{len(values)} columns, but the header has {width}")


def _read_ahead(waiting: deque[tuple[int, str]], lines: Iterator[tuple[int, str]]) -> bool:
    """Add one more line to ``waiting``. False: there is none."""
    following = next(lines, None)
    if following is not None:
        waiting.append(following)
    return following is not None


def _quoted(
    text: str, delimiter: str, width: int, waiting: deque[tuple[int, str]], lines: Iterator[tuple[int, str]]
) -> list[str] | None:
    """The fields of the quoted record that starts with ``text``; None if it is not one.

    Takes the lines of the record from ``waiting``, which ``lines`` fills.
    """
    fields = split(text, delimiter, True)
    if fields is not None or text.count('"') % 2 == 0:
        return fields
    # A quote is open, so the record may continue.
    for more in range(MOST):
        if more == len(waiting) and not _read_ahead(waiting, lines):
            break
        text += "\n" + waiting[more][1]
        fields = split(text, delimiter, True)
        if fields is not None and len(fields) == width:
            for _ in range(more + 1):
                waiting.popleft()
            return fields
    return None
