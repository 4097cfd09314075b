"""Records with named fields -> utterances: which column has the audio, the text and so on, and rows that are unusable.

The kinds table, nemo and datasets share this module. The names of columns are guessed from ``NAMES`` if they are clear.
"""

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path, PurePath
from typing import Any

from lowrank_speech.corpora.common import SetAside, refuse_twice
from lowrank_speech.corpora.layouts import Segment, name_id, one_line, segment_id
from lowrank_speech.errors import UserError
from lowrank_speech.settings import key, settings

log = logging.getLogger("lowrank_speech")

NAMES = {
    "id": ("id", "utt", "utt_id", "utterance", "utterance_id", "segment_id", "segmentid", "uid"),
    "audio": (
        *("path", "file", "audio", "wav", "filename", "file_name", "filepath", "file_path", "audio_path", "audio_file"),
        *("audio_filepath", "audio_filename", "wav_path", "wav_file", "wav_filename"),
    ),
    "language": ("lang", "locale", "language", "language_code", "lang_id"),
    "speaker": ("client_id", "speaker", "speaker_id", "spk", "spk_id", "spkid", "user_id"),
    "seconds": ("seconds", "duration", "duration_seconds", "length_seconds"),
    "text": ("sentence", "text", "transcript", "transcription"),
}
"""Names by which a column is recognised, in lower case."""
GUESSED = "; null: guessed from the usual names; empty: no such column"


@settings
class Columns:
    """Names of the columns."""

    id: str | None = key(None, f"column of the utterance's id{GUESSED}, and the id is made from the audio's path")
    audio: str | None = key(None, "column of the audio; null: guessed from the usual names")
    language: str | None = key(None, f"column of the language code{GUESSED}; `language` counts")
    speaker: str | None = key(None, f"column of the speaker{GUESSED}, and each utterance has its own speaker")
    seconds: str | None = key(None, f"column of the duration, which is compared with the audio{GUESSED}")
    text: str | None = key(None, f"column of the transcript{GUESSED}")


def plausible(header: Sequence[str], columns: Columns) -> bool:
    """Whether a list of columns has one for the audio."""
    names = {_plain(name) for name in header}
    return columns.audio in header if columns.audio else not names.isdisjoint(NAMES["audio"])


def places(header: Sequence[str], columns: Columns, path: Path, language: str | None) -> dict[str, str]:
    """Role of ``NAMES`` -> name of its column. UserError: a column is not there, or not clear."""
    found = {}
    for role in (field.name for field in fields(columns)):
        given = getattr(columns, role)
        if given == "":
            continue
        match = [name for name in header if (name == given if given else _plain(name) in NAMES[role])]
        if given and not match:
            raise UserError(f"{path}: there is no column {given!r} (`columns.{role}`); there are {_all(header)}")
        if len(match) > 1 and not given:
            raise UserError(
                f"{path}: the columns {' and '.join(match)} could all be the {role}; set the corpus's key "
                f"`columns: {{{role}: {match[0]}}}`"
            )
        if len(match) > 1:
            raise UserError(f"{path}: the column {given!r} occurs twice; rename or remove one of them")
        if match:
            found[role] = match[0]
    _check(found, header, columns, path, language)
    return found


def _check(found: dict[str, str], header: Sequence[str], columns: Columns, path: Path, language: str | None) -> None:
    if "audio" not in found:
        raise UserError(
            f"{path}: no column has a usual name of the audio; set `columns: {{audio: ...}}` to one of {_all(header)}"
        )
    if "text" not in found and columns.text is None:  # transcripts are not lost by chance
        raise UserError(
            f"{path}: no column has a usual name of the transcript; set `columns: {{text: ...}}` to one of "
            f"{_all(header)}, or `columns: {{text: ''}}` if there are no transcripts"
        )
    if "language" not in found and language is None:
        raise UserError(
            f"{path}: no column has a usual name of the language; set the corpus's key `language`, for example "
            f"`language: en`, or `columns: {{language: ...}}` to one of {_all(header)}"
        )
    if "speaker" not in found and columns.speaker is None:
        log.warning(
            "%s: no column has a usual name of the speaker, so every utterance counts as a speaker of its own; if the "
            "table names speakers, set `columns: {speaker: ...}`",
            path,
        )


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _all(header: Sequence[str]) -> str:
    return ", ".join(header)


def utterances(
    rows: Iterable[tuple[Mapping[str, Any], str, int]],
    path: Path,
    base: Path,
    language: str | None,
    languages: Sequence[str] = (),
) -> Iterator[Segment | SetAside]:
    """Yield the utterances of (role -> value, place for messages, line number).

    Relative paths of audio start at ``base``. Roles beside those of ``NAMES``: ``start`` (seconds; then ``seconds`` is
    the duration of the segment), ``gender``, ``source``, ``carried``. UserError: an id occurs in two rows with
    different values.
    """
    wanted = {code.lower() for code in languages}
    seen: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for row, where, line in rows:
        name = _text(row.get("id"))
        if name:
            first, known = seen.setdefault(name, (line, row))
            for role in row.keys() - {"carried"} if known is not row else ():
                if known.get(role) != row[role]:
                    refuse_twice(path, f"the id {name}", (first, line), (known.get(role), row[role]))
        name = name or derived_id(_text(row.get("audio")), row.get("start"), row.get("seconds"))
        yield _utterance(row, name or name_id(f"{path.name}:{line}"), base, language, wanted, where)


def _utterance(
    row: Mapping[str, Any], name: str, base: Path, language: str | None, wanted: set[str], where: str
) -> Segment | SetAside:
    audio = _text(row.get("audio"))
    numbers = {}
    for role in ("start", "seconds"):
        try:
            numbers[role] = number(row.get(role))
        except ValueError:
            what = "duration" if role == "seconds" else role
            return SetAside(name, "malformed row", f"{where}: the {what} is {row[role]!r}")
    code = (_text(row.get("language")) or language or "").lower()
    if not audio:
        return SetAside(name, "no recording", f"{where}: the audio path is empty")
    if not code:
        return SetAside(name, "no language", f"{where}: the language is empty")
    if wanted and code not in wanted:
        return SetAside(name, "unknown language", f"{where}: {code} is not one of {', '.join(sorted(wanted))}")
    speaker = _text(row["speaker"]) if "speaker" in row else name
    if not speaker:
        return SetAside(name, "no speaker", f"{where}: the speaker is empty")
    start, seconds = numbers["start"], numbers["seconds"]
    segment = start is not None
    return Segment(
        id=name,
        audio=os.path.normpath(base / Path(audio).expanduser()),
        language=code,
        speaker=speaker,
        text=one_line(_text(row.get("text"))),
        gender=_text(row.get("gender")) or None,
        start=start or 0.0,
        end=(start or 0.0) + seconds if segment and seconds is not None else None,
        seconds=None if segment else seconds,
        recording_id=derived_id(audio, None, None) if segment else None,
        where=where,
        custom={"source": _text(row["source"])} if _text(row.get("source")) else None,
        carried=row.get("carried"),
    )


def _text(value: Any) -> str:
    """A value of a column as text: a speaker may be 0, and pandas writes an empty field as NaN."""
    return "" if value is None or value != value else str(value).strip()


def derived_id(audio: str, start: Any, seconds: Any) -> str:
    """An id from the path of the audio as it stands in the table, with the times of a segment; empty if not given."""
    if not audio:
        return ""
    path = PurePath(audio)
    # Not the whole of an absolute path, which differs from machine to machine.
    name = path.stem if path.is_absolute() else path.with_suffix("").as_posix()
    try:
        first, length = number(start), number(seconds)
    except ValueError:
        first = None
    return name_id(name) if first is None else segment_id(name, first, first + (length or 0))


def number(value: Any) -> float | None:
    """Seconds at least 0; None for an empty field. ValueError: another value."""
    if _text(value) == "":
        return None
    found = float(value)
    if not found >= 0 or math.isinf(found):
        raise ValueError(value)
    return found
