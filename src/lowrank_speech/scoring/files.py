"""The files that are scored: Kaldi text, language scores, and maps from utterance to label. One reader for each.

    text    id word word ...             Kaldi's ``text``; an id alone is an empty transcript
    scores  id<TAB>en<TAB>de...          a header, then one line per segment: log-likelihoods, a column per language
    map     id<TAB>language              also ``utt2spk``, ``utt2lang``; the header is optional

UTF-8, with or without byte order mark; lines end with LF or CRLF. White space is ASCII's, as in Kaldi: a no-break space
is part of a word. Blank lines mean nothing. Ids are unique. Every error is a ValueError naming file and line.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

HEADERS = {"language", "lang", "label", "speaker", "spk"}


def _lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    # Not str.splitlines: it would also cut at characters that may stand inside a transcript (U+0085, U+2028).
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line); convert it") from error


def _words(line: str) -> list[str]:
    """Split at ASCII white space only."""
    return [word.decode("utf-8") for word in line.encode("utf-8").split()]


class _Ids:
    """Remembers where each id stood."""

    def __init__(self, path: str | Path):
        self.path, self.line = path, {}

    def add(self, name: str, number: int) -> None:
        if name in self.line:
            raise ValueError(
                f"{self.path}:{number}: id {name!r} stands already in line {self.line[name]}; ids are unique"
            )
        self.line[name] = number


def read_text(path: str | Path) -> dict[str, list[str]]:
    """Read Kaldi text: id -> words, in the order of the file.

    ValueError: no such file, not UTF-8, an id twice, no line at all.
    """
    ids, result = _Ids(path), {}
    for number, line in _lines(path):
        name, *words = _words(line)
        ids.add(name, number)
        result[name] = words
    if not result:
        raise ValueError(f"{path}: no utterance in it; expected lines 'id word word ...'")
    return result


def read_map(path: str | Path) -> dict[str, str]:
    """Read ``id value`` (labels, ``utt2spk``, ``utt2lang``), with or without a header line: id -> value.

    The first line is a header when its second field is one of language, lang, label, speaker, spk and its first is id,
    utt or segment. ValueError: a line with other than two fields, an id twice, no line at all.
    """
    ids, result, first = _Ids(path), {}, True
    for number, line in _lines(path):
        fields = [f.strip() for f in line.split("\t")] if "\t" in line else _words(line)
        header = first and len(fields) == 2 and fields[0].lower() in {"id", "utt", "segment"}
        first = False
        if header and fields[1].lower() in HEADERS:
            continue
        if len(fields) != 2 or not all(fields):
            raise ValueError(f"{path}:{number}: expected two fields, 'id label', got {line.strip()!r}")
        ids.add(fields[0], number)
        result[fields[0]] = fields[1]
    if not result:
        raise ValueError(f"{path}: no line in it; expected lines 'id label'")
    return result


def read_scores(path: str | Path) -> tuple[list[str], list[str], np.ndarray]:
    """Read language scores: ids (S), languages (N) and float64 scores (S, N), natural-log likelihoods.

    Fields are separated by tabs, or by white space where the header has no tab. ValueError: no header, a language
    twice, a line of another length, a value that is no number. Whether the numbers make sense is the scorer's business.
    """
    ids, rows, languages, tabs = _Ids(path), [], None, False
    for number, line in _lines(path):
        if languages is None:
            tabs = "\t" in line
        fields = [f.strip() for f in line.split("\t")] if tabs else _words(line)
        if languages is None:
            languages = _header(path, number, fields)
            continue
        if len(fields) != len(languages) + 1:
            raise ValueError(
                f"{path}:{number}: expected {len(languages) + 1} fields (id and {len(languages)} languages), "
                f"got {len(fields)}"
            )
        ids.add(fields[0], number)
        try:
            rows.append([float(f) for f in fields[1:]])
        except ValueError:
            column, value = next((c, v) for c, v in zip(languages, fields[1:], strict=True) if not _is_number(v))
            raise ValueError(
                f"{path}:{number}: segment {fields[0]!r}, language {column!r}: {value!r} is no number"
            ) from None
    if languages is None or not rows:
        raise ValueError(
            f"{path}: no segment in it; expected a header 'id language language ...' and a line per segment"
        )
    return list(ids.line), languages, np.array(rows, dtype=np.float64)


def _header(path: str | Path, number: int, fields: list[str]) -> list[str]:
    languages = fields[1:]
    if not languages or not all(languages):
        raise ValueError(f"{path}:{number}: expected a header 'id language language ...', got {fields}")
    if all(_is_number(name) for name in languages):
        raise ValueError(f"{path}:{number}: the header is missing: put 'id' and the languages' names in the first line")
    for name in languages:
        if languages.count(name) > 1:
            raise ValueError(f"{path}:{number}: the language {name!r} has two columns")
    return languages


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
