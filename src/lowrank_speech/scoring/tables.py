"""Read large tables fast, by pandas' C parser; what it does not expect is left to the careful readers of ``files``.

    scores  id<TAB>en<TAB>de...   log-likelihoods        map  id<TAB>value

A reader here returns None as soon as anything is unusual: a line with another number of fields, a blank line, a value
that is not a number, an id that occurs twice, text that is not UTF-8, no tabs. ``files`` then reads the file line by
line and names line and value, so there is one place for messages. Values are equal to those of ``float``, except that
numbers of more than 15 digits may differ in the last bit.
"""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

LARGE = 4 << 20
"""Bytes from which a file is read here. Smaller ones take below a second line by line."""
BLOCK = 32 << 20
BOM = b"\xef\xbb\xbf"


def is_large(path: str | Path) -> bool:
    """Whether ``path`` is a file that is worth reading here."""
    path = Path(path)
    return path.is_file() and path.stat().st_size >= LARGE


def scores(path: str | Path) -> tuple[list[str], list[str], np.ndarray] | None:
    """Ids (S), column names (N) and float64 values (S, N) of a table with header; None: not a plain table."""
    with Path(path).open("rb") as file:
        header = _header(file.readline())
        if header is None or len(header) < 3 or len(set(header)) < len(header) or not all(header):
            return None
        start, rows = file.tell(), 0
        for block in iter(lambda: file.read(BLOCK), b""):
            rows += block.count(b"\n")
            last = block[-1:]
        if not rows:
            return None
        rows += last != b"\n"
        values, ids = np.empty((rows, len(header) - 1)), []
        file.seek(start)
        for block in _blocks(file):
            frame = _frame(block, len(header), np.float64)
            if frame is None or len(ids) + len(frame) > rows:
                return None
            # A column at a time: the frame's own array of all columns would be another copy.
            for column in range(1, len(header)):
                values[len(ids) : len(ids) + len(frame), column - 1] = frame[column].to_numpy()
            ids += frame[0].to_list()
    if len(ids) != rows or not _plain(ids):
        return None
    return ids, header[1:], values


def mapping(path: str | Path, headers: frozenset[str], names: frozenset[str]) -> dict[str, str] | None:
    """id -> value of a table of two columns; None: not a plain one.

    The first line is a header if its fields, in lower case, are in ``names`` and ``headers``.
    """
    result: dict[str, str] = {}
    rows = 0
    with Path(path).open("rb") as file:
        first = _header(file.readline())
        if first is None or len(first) != 2:
            return None
        if not (first[0].lower() in names and first[1].lower() in headers):
            file.seek(len(BOM) if _starts_with_bom(path) else 0)
        for block in _blocks(file):
            frame = _frame(block, 2, str)
            if frame is None:
                return None
            keys, values = frame[0].to_list(), frame[1].to_list()
            if not _plain(values, distinct=False) or not _plain(keys):
                return None
            result.update(zip(keys, values, strict=True))
            rows += len(keys)
    return result if rows and len(result) == rows else None


def _starts_with_bom(path: str | Path) -> bool:
    with Path(path).open("rb") as file:
        return file.read(len(BOM)) == BOM


def _header(line: bytes) -> list[str] | None:
    try:
        text = line.removeprefix(BOM).rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError:
        return None
    return [field.strip() for field in text.split("\t")] if "\t" in text else None


def _blocks(file: io.BufferedReader) -> Iterator[bytes]:
    """Yield the rest of ``file`` in blocks of whole lines."""
    rest = b""
    while block := file.read(BLOCK):
        cut = block.rfind(b"\n") + 1
        if not cut:
            rest += block
            continue
        yield rest + block[:cut]
        rest = block[cut:]
    if rest:
        yield rest


def _frame(block: bytes, fields: int, kind: type) -> pd.DataFrame | None:
    """Lines of ``fields`` fields, the first a string; None if any line differs."""
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    if block.count(b"\t") != lines * (fields - 1):
        return None
    types = {0: str, **dict.fromkeys(range(1, fields), kind)}
    try:
        frame = pd.read_csv(
            io.BytesIO(block),
            sep="\t",
            header=None,
            names=range(fields),
            dtype=types,
            index_col=False,
            quoting=3,  # csv.QUOTE_NONE
            na_filter=False,
            skip_blank_lines=False,
            encoding="utf-8",
        )
    except (ValueError, UnicodeDecodeError):  # pandas' ParserError is a ValueError
        return None
    # A line that is short has an empty last field, which is no number; a lone carriage return would add a line.
    return frame if len(frame) == lines else None


def _plain(names: list[str], distinct: bool = True) -> bool:
    """Whether all are there, without white space around them, and (``distinct``) each only once."""
    kinds = set(names)
    if distinct and len(kinds) < len(names):
        return False
    return all(name and name == name.strip() for name in kinds)
