"""Tables: a tab-separated file per source with a header line, a row per utterance.

In: a folder with ``train.tsv`` and the like (``id audio language speaker seconds text``; other names by ``columns``);
relative paths of audio start at that folder. An empty text means: no transcript (language recognition can use it).
Out: utterances, to be checked and made into cuts by validate.py. The default folder below $SPEECH_DATA is voices.

    corpora:
      voices: {kind: tsv, languages: [de, en, es, fr, nl],
               splits: {train: {source: train.tsv, part: [0.0, 0.9], by: utterance},
                        dev: {source: train.tsv, part: [0.9, 1.0], by: utterance}, test: {source: dev.tsv}}}
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from lowrank_speech.corpora.common import SetAside, Utterance, clean_text, find_folder, read_lines
from lowrank_speech.corpora.parts import SplitConfig, check_splits, select
from lowrank_speech.corpora.validate import Checks
from lowrank_speech.errors import UserError


@dataclass(frozen=True)
class Columns:
    """Names of the columns. ``seconds`` and ``text`` may be null where the table has none."""

    id: str = "id"
    audio: str = "audio"
    language: str = "language"
    speaker: str = "speaker"
    seconds: str | None = "seconds"
    text: str | None = "text"


@dataclass(frozen=True)
class Config:
    """A corpus of tables."""

    kind: Literal["tsv"]
    splits: dict[str, SplitConfig]
    path: str | None = None
    """The folder of the tables; null: ``folder`` below $SPEECH_DATA."""
    folder: str = "voices"
    languages: tuple[str, ...] = ()
    """The languages that are wanted; others are set aside. Empty: all."""
    columns: Columns = field(default_factory=Columns)
    checks: Checks = field(default_factory=Checks)

    def __post_init__(self):
        check_splits(self.splits)


def locate(config: Config, data_root: Path | None) -> Path:
    """The folder of the tables, absolute; UserError if it or a table is absent."""
    sources = sorted({split.source for split in config.splits.values()})
    holds = f"tab-separated tables with a header line ({', '.join(sources)}) and the audio they name"
    return find_folder(config.kind, config.path, data_root, config.folder, holds, sources)


def read(
    config: Config, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[tuple[str, Utterance | SetAside]]:
    """Yield (split, utterance or what could not be one), split by split, in the order of the tables.

    UserError if a language of ``languages`` has no row in a split. ``audio_dir`` and ``jobs`` are not used: nothing is
    written, and validate.py opens the audio.
    """
    wanted = {code.lower() for code in config.languages}
    for source in dict.fromkeys(split.source for split in config.splits.values()):
        splits = {name: split for name, split in config.splits.items() if split.source == source}
        items = list(read_table(root, source, config.columns, wanted))
        utterances = [item for item in items if isinstance(item, Utterance)]
        # What is no utterance has no part: it is listed once, under all splits of its source.
        yield from (("+".join(splits), item) for item in items if isinstance(item, SetAside))
        for name, split in splits.items():
            chosen = select(utterances, split, seed)
            _check_languages(wanted, name, split, chosen, utterances, root / source)
            yield from ((name, utterance) for utterance in chosen)


def _check_languages(
    wanted: set[str], name: str, split: SplitConfig, chosen: list[Utterance], utterances: list[Utterance], table: Path
) -> None:
    for code in sorted(wanted - {u.language for u in chosen}):
        speakers = {u.speaker for u in utterances if u.language == code}
        if not speakers:
            found = ", ".join(sorted({u.language for u in utterances})) or "none of those that are wanted"
            raise UserError(f"{table}: no row has the language {code!r} of `languages`; it has {found}")
        raise UserError(
            f"split {name}: part {list(split.part)} by {split.by} of {table} has no row of the language {code!r}, "
            f"which has {len(speakers)} speaker(s) there; widen the part or the limits, or use `by: utterance`"
        )


def read_table(root: Path, source: str, columns: Columns, wanted: set[str]) -> Iterator[Utterance | SetAside]:
    """The rows of the table ``root/source``; an empty ``wanted`` takes all languages."""
    path = root / source
    lines = read_lines(path)
    if not lines:
        raise UserError(f"{path}: the file is empty; it needs a header line and a row per utterance")
    header = lines[0][1].split("\t")
    named = {f.name: getattr(columns, f.name) for f in fields(columns)}
    for key, name in named.items():
        if name is not None and name not in header:
            raise UserError(f"{path}: no column {name!r} (`columns.{key}`) in the header; it has {', '.join(header)}")
    for line, content in lines[1:]:
        values, where = content.split("\t"), f"{path} line {line}"
        if len(values) != len(header):
            detail = f"{where}: {len(values)} columns where the header has {len(header)}"
            yield SetAside(values[0] or f"{source}:{line}", "malformed row", detail)
            continue
        row = dict(zip(header, values, strict=True))
        yield _utterance({k: row[name].strip() for k, name in named.items() if name}, root, wanted, where)


def _utterance(row: dict[str, str], root: Path, wanted: set[str], where: str) -> Utterance | SetAside:
    language = row["language"].lower()
    seconds = None
    if row.get("seconds"):
        try:
            seconds = float(row["seconds"])
        except ValueError:
            seconds = math.nan
        if not seconds >= 0 or math.isinf(seconds):
            return SetAside(row["id"], "malformed row", f"{where}: seconds are {row['seconds']!r}")
    if not language:
        return SetAside(row["id"], "no language", f"{where}: the language is empty")
    if wanted and language not in wanted:
        return SetAside(row["id"], "unknown language", f"{where}: {language} is none of {', '.join(sorted(wanted))}")
    if not row["speaker"]:
        return SetAside(row["id"], "no speaker", f"{where}: the speaker is empty")
    if not row["audio"]:
        return SetAside(row["id"], "no recording", f"{where}: the path of the audio is empty")
    return Utterance(
        id=row["id"],
        audio=os.path.normpath(root / row["audio"]),
        language=language,
        speaker=row["speaker"],
        text=clean_text(row.get("text")),
        seconds=seconds,
        where=where,
    )
