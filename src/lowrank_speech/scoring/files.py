"""Read the files to score: Kaldi text, language scores, and maps from utterance to label.

    text    id word word ...             Kaldi's ``text``; an id without words is an empty transcript
    scores  id<TAB>en<TAB>de...          a header, then one line per segment: log-likelihoods, a column per language
    map     id<TAB>language              also ``utt2spk``, ``utt2lang``; the header is optional

Files are UTF-8, with or without byte order mark; lines end with LF or CRLF. Only ASCII white space separates words, as
in Kaldi, so a no-break space is part of a word. Blank lines are ignored. An id that occurs twice is an error. Every
error is a ValueError that names file and line.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_speech.scoring import tables

HEADERS = {"language", "lang", "label", "speaker", "spk", "seconds", "duration", "source"}
IDS = frozenset({"id", "utt", "segment"})


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield number (from 1) and text of each line that is not blank."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            # Not text mode, which also splits at characters that transcripts may contain (U+0085, U+2028).
            for number, line in enumerate(file, start=1):
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield number, _decoded(path, number, line)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: the file does not exist; check the path") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}; check the path and its permissions") from error


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8; convert it") from error


def words(line: str) -> list[str]:
    """The fields of a line, split at ASCII white space only."""
    return [word.decode("utf-8") for word in line.encode("utf-8").split()]


class Table:
    """Value and line of each id in a file; an id may occur only once."""

    def __init__(self, path: str | Path):
        self.path, self.line, self.value = path, {}, {}

    def add(self, name: str, number: int, value: Any) -> None:
        """Add the value of the id ``name`` in line ``number``. ValueError: another line has the same id."""
        if name in self.line:
            first, before = self.line[name], self.value[name]
            if value == before:
                raise ValueError(
                    f"{self.path}:{number}: id {name!r} is also in line {first}, with the same value; remove one line"
                )
            raise ValueError(
                f"{self.path}:{number}: id {name!r} has {shown(value)!r} here and {shown(before)!r} in line {first}; "
                "keep one of the two lines"
            )
        self.line[name], self.value[name] = number, value


def read_text(path: str | Path) -> dict[str, list[str]]:
    """Read Kaldi text: id -> words, in the order of the file.

    ValueError: the file does not exist, is not UTF-8, has an id twice, or no line.
    """
    table = Table(path)
    for number, line in lines(path):
        name, *spoken = words(line)
        table.add(name, number, spoken)
    if not table.value:
        raise ValueError(f"{path}: the file has no utterance; expected lines 'id word word ...'")
    return table.value


def read_map(path: str | Path) -> dict[str, str]:
    """Read ``id value`` (labels, ``utt2spk``, ``utt2lang``), with or without a header line: id -> value.

    The first line is a header if its first field is id, utt or segment and its second field is language, lang, label,
    speaker, spk, seconds, duration or source. ValueError: a line does not have two fields, an id occurs twice, or the
    file is empty.
    """
    if tables.is_large(path) and (plain := tables.mapping(path, frozenset(HEADERS), IDS)) is not None:
        return plain
    table, first = Table(path), True
    for number, line in lines(path):
        fields = [f.strip() for f in line.split("\t")] if "\t" in line else words(line)
        header = first and len(fields) == 2 and fields[0].lower() in IDS
        first = False
        if header and fields[1].lower() in HEADERS:
            continue
        if len(fields) != 2 or not all(fields):
            raise ValueError(f"{path}:{number}: expected two fields, 'id label', got {line.strip()!r}")
        table.add(fields[0], number, fields[1])
    if not table.value:
        raise ValueError(f"{path}: the file has no entry; expected lines 'id label'")
    return table.value


def read_optional_map(path: str | Path) -> dict[str, str] | None:
    """The map in ``path``; None if the file does not exist or has only its header, as where values are not known."""
    if not Path(path).exists() or sum(1 for _ in islice(lines(path), 2)) <= 1:
        return None
    return read_map(path)


def read_seconds(path: str | Path) -> dict[str, float]:
    """Read durations, ``id seconds``. ValueError as for :func:`read_map`, or a value that is not a duration."""
    found = {}
    for name, value in read_map(path).items():
        if not is_number(value) or not 0 <= float(value) < np.inf:
            raise ValueError(f"{path}: utterance {name!r}: {value!r} is not a duration in seconds")
        found[name] = float(value)
    return found


def read_scores(path: str | Path) -> tuple[list[str], list[str], np.ndarray]:
    """Read language scores: ids (S), languages (N) and float64 scores (S, N), natural-log likelihoods.

    Fields are separated by tabs, or by white space if the header has no tab. ValueError: there is no header, a language
    or an id occurs twice, a line has the wrong number of fields, or a value is not a number. The scorer checks whether
    the numbers are valid scores.
    """
    if tables.is_large(path) and (plain := tables.scores(path)) is not None:
        ids, languages, scores = plain
        if not all(is_number(name) for name in languages):
            return ids, languages, scores
    table, languages, tabs = Table(path), None, False
    for number, line in lines(path):
        if languages is None:
            tabs = "\t" in line
        fields = [f.strip() for f in line.split("\t")] if tabs else words(line)
        if languages is None:
            languages = _header(path, number, fields)
            continue
        if len(fields) != len(languages) + 1:
            raise ValueError(
                f"{path}:{number}: expected {len(languages) + 1} fields (id and {len(languages)} languages), "
                f"got {len(fields)}"
            )
        try:
            scores = [float(f) for f in fields[1:]]
        except ValueError:
            column, value = next((c, v) for c, v in zip(languages, fields[1:], strict=True) if not is_number(v))
            raise ValueError(
                f"{path}:{number}: segment {fields[0]!r}, language {column!r}: {value!r} is not a number; "
                "expected a log-likelihood"
            ) from None
        table.add(fields[0], number, scores)
    if languages is None or not table.value:
        raise ValueError(
            f"{path}: the file has no segment; expected a header 'id language language ...' and a line per segment"
        )
    return list(table.value), languages, np.array(list(table.value.values()), dtype=np.float64)


def _header(path: str | Path, number: int, fields: list[str]) -> list[str]:
    languages = fields[1:]
    if not languages or not all(languages):
        raise ValueError(f"{path}:{number}: expected a header 'id language language ...', got {fields}")
    if all(is_number(name) for name in languages):
        raise ValueError(f"{path}:{number}: the header is missing; put 'id' and the language names in the first line")
    for name in languages:
        if languages.count(name) > 1:
            raise ValueError(f"{path}:{number}: the language {name!r} has two columns; remove one")
    return languages


def shown(value: Any) -> str:
    """A value for messages, shortened."""
    text = value if isinstance(value, str) else " ".join(map(str, value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
