"""Tables: one tab-separated file per source, with a header line and one row per utterance.

In: a folder with files such as ``train.tsv`` (columns ``id audio language speaker seconds text``; ``columns`` maps
other names). Relative audio paths start at that folder. An utterance with an empty text has no transcript; it can be
used for language recognition. Out: utterances, which validate.py checks and makes into cuts. The default folder below
$SPEECH_DATA is ``voices``.

    corpora:
      voices: {kind: tsv, languages: [de, en, es, fr, nl],
               splits: {train: {source: train.tsv, part: [0.0, 0.9], by: utterance},
                        dev: {source: train.tsv, part: [0.9, 1.0], by: utterance}, test: {source: dev.tsv}}}
"""

import math
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Literal

from lowrank_speech.corpora.common import (
    TRACK,
    Checks,
    SetAside,
    Track,
    Utterance,
    clean_text,
    find_folder,
    read_lines,
    refuse_twice,
)
from lowrank_speech.corpora.parts import SplitConfig, check_splits, items_of_split
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings

SECONDS = "seconds"


@settings
class Columns:
    """Names of the columns."""

    id: str = key("id", "column of the utterance's id")
    audio: str = key("audio", "column of the audio path, absolute or relative to the table's folder")
    language: str = key("language", "column of the language code")
    speaker: str = key("speaker", "column of the speaker")
    seconds: str | None = key(
        SECONDS, "column of the duration, which is compared with the audio; null or no such column: not compared"
    )
    text: str | None = key("text", "column of the transcript; null: the table has no transcripts")


@settings
class Config:
    """A corpus of tables."""

    kind: Literal["tsv"] = key(REQUIRED, "tab-separated tables")
    splits: dict[str, SplitConfig] = key(REQUIRED, "name -> which table, and which part of it")
    path: str | None = key(None, "folder of the tables; null: `folder` below $SPEECH_DATA")
    folder: str = key("voices", "folder below $SPEECH_DATA, used if `path` is null")
    languages: tuple[str, ...] = key((), "languages to use, others are set aside; empty: all languages")
    columns: Columns = key(None, "names of the columns", default_factory=Columns)
    checks: Checks = key(None, "which audio is accepted", default_factory=Checks)
    track: Track = key("auto", TRACK, runtime=True)

    def __post_init__(self) -> None:
        check_splits(self.splits)


def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder of the tables. UserError: it or a table does not exist."""
    sources = sorted({split.source for split in config.splits.values()})
    holds = f"tab-separated tables with a header line ({', '.join(sources)}) and the audio they name"
    return find_folder(config.kind, config.path, data_root, config.folder, holds, sources)


def sources(config: Config, root: Path) -> list[Path]:
    """The tables."""
    return [root / source for source in sorted({split.source for split in config.splits.values()})]


def looks_like(path: Path) -> dict | None:
    """The keys for ``path`` if it contains tables with the usual columns (``detect.py``)."""
    from lowrank_speech.corpora.layouts import guess_splits

    defaults = Columns()
    needed = {getattr(defaults, field.name) for field in fields(Columns)} - {SECONDS}
    tables = {}
    for table in sorted(path.glob("*.tsv")):
        with table.open(encoding="utf-8-sig", errors="replace") as file:
            if needed <= set(file.readline().rstrip("\n").split("\t")):
                tables[table.stem] = table.name
    return {"splits": guess_splits(tables)} if tables else None


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[Utterance | SetAside]:
    """Yield first the rejected rows, then the utterances of one split, in the order of its table.

    UserError: a language of ``languages`` has no row in the split, or an id has two different rows. ``audio_dir`` and
    ``jobs`` are not used, because no audio is written, and validate.py opens it.
    """
    wanted = {code.lower() for code in config.languages}
    part = config.splits[split]
    items = list(read_table(root, part.source, config.columns, wanted))
    chosen = list(items_of_split(items, part, seed))
    utterances = [item for item in items if isinstance(item, Utterance)]
    taken = [item for item in chosen if isinstance(item, Utterance)]
    _check_languages(wanted, split, part, taken, utterances, root / part.source)
    yield from chosen


def _check_languages(
    wanted: set[str], name: str, split: SplitConfig, chosen: list[Utterance], utterances: list[Utterance], table: Path
) -> None:
    for code in sorted(wanted - {u.language for u in chosen}):
        speakers = {u.speaker for u in utterances if u.language == code}
        if not speakers:
            found = ", ".join(sorted({u.language for u in utterances})) or "no language of `languages`"
            raise UserError(f"{table}: no row has the language {code!r} of `languages`; the table has {found}")
        raise UserError(
            f"split {name}: part {list(split.part)} by {split.by} of {table} has no row in the language {code!r} (the "
            f"table has {len(speakers)} speaker(s) of it); widen the part or the limits, or use `by: utterance`"
        )


def read_table(root: Path, source: str, columns: Columns, wanted: set[str]) -> Iterator[Utterance | SetAside]:
    """Yield the rows of the table ``root/source``. If ``wanted`` is empty, all languages are accepted.

    UserError: an id occurs in two rows with different values.
    """
    path = root / source
    lines = read_lines(path)
    _, first = next(lines, (0, ""))
    if not first:
        raise UserError(f"{path}: the file is empty; it needs a header line and one row per utterance")
    header = first.split("\t")
    named = _places(header, columns, path)
    rows: dict[str, tuple[int, list[str]]] = {}
    for line, content in lines:
        values, where = content.split("\t"), f"{path} line {line}"
        if len(values) != len(header):
            detail = f"{where}: {len(values)} columns, but the header has {len(header)}"
            yield SetAside(values[0] or f"{source}:{line}", "malformed row", detail)
            continue
        row = {name: values[place].strip() for name, place in named.items()}
        number, known = rows.setdefault(row["id"], (line, values))
        if row["id"] and known is not values:
            for place in named.values():
                if known[place].strip() != values[place].strip():
                    refuse_twice(path, f"the id {row['id']}", (number, line), (known[place], values[place]))
        yield _utterance(row, root, wanted, where)


def _places(header: list[str], columns: Columns, path: Path) -> dict[str, int]:
    """Key of ``columns`` -> index of its column. UserError: the header lacks a column, or has it twice."""
    places = {}
    for name in (field.name for field in fields(columns)):
        column = getattr(columns, name)
        if column is None or (column == SECONDS == name and column not in header):
            continue
        if column not in header:
            raise UserError(
                f"{path}: the header has no column {column!r} (`columns.{name}`); it has {', '.join(header)}"
            )
        if header.count(column) > 1:
            raise UserError(f"{path}: the header has the column {column!r} twice; rename or remove one of them")
        places[name] = header.index(column)
    return places


def _utterance(row: dict[str, str], root: Path, wanted: set[str], where: str) -> Utterance | SetAside:
    language = row["language"].lower()
    seconds = None
    if row.get("seconds"):
        try:
            seconds = float(row["seconds"])
        except ValueError:
            seconds = math.nan
        if not seconds >= 0 or math.isinf(seconds):
            return SetAside(row["id"], "malformed row", f"{where}: the duration is {row['seconds']!r}")
    if not language:
        return SetAside(row["id"], "no language", f"{where}: the language is empty")
    if wanted and language not in wanted:
        return SetAside(row["id"], "unknown language", f"{where}: {language} is not one of {', '.join(sorted(wanted))}")
    if not row["speaker"]:
        return SetAside(row["id"], "no speaker", f"{where}: the speaker is empty")
    if not row["audio"]:
        return SetAside(row["id"], "no recording", f"{where}: the audio path is empty")
    return Utterance(
        id=row["id"],
        audio=os.path.normpath(root / row["audio"]),
        language=language,
        speaker=row["speaker"],
        text=clean_text(row.get("text")),
        seconds=seconds,
        where=where,
    )
