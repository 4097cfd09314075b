"""FLEURS: the folder of a language, or of several languages, as Google distributes it.

In: ``de_de/train.tsv`` (no header; id, file, raw transcript, transcript, characters, number of samples, gender) and
``de_de/audio/train/*.wav``, for train, dev and test. Out: an utterance per row, whose id is the name of the file.
FLEURS names no speakers, so every utterance has its own; several speakers read each sentence. The language is the
name of the folder without the country (``cmn`` for ``cmn_hans_cn``). CC BY 4.0 (Conneau et al., SLT 2022).

    corpora:
      fleurs: {kind: fleurs, path: /data/fleurs, languages: [de_de, fr_fr],
               splits: {train: {source: train}, dev: {source: dev}, test: {source: test}}}
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.corpora.common import SetAside, read_lines
from lowrank_speech.corpora.layouts import (
    Layout,
    Segment,
    guess_splits,
    language_folders,
    located,
    name_id,
    one_line,
    reported,
)
from lowrank_speech.corpora.parts import items_of_split
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings

HOLDS = "train.tsv, dev.tsv, test.tsv and audio/, or such a folder for each language, for example de_de"
FIELDS = ("id", "file", "raw", "normalised", "characters", "samples", "gender")
RATE = 16_000


@settings
class Config(Layout):
    """A corpus in the layout of FLEURS."""

    kind: Literal["fleurs"] = key(REQUIRED, "FLEURS: tables without header, such as train.tsv, and audio/train/")
    languages: tuple[str, ...] = key((), "folders of the languages to use, for example de_de; empty: all")
    language: str | None = key(
        None, "language code, for one language; null: from the name of the folder, for example de_de"
    )
    text: Literal["normalised", "raw"] = key(
        "normalised", "which transcript: in lower case without punctuation, or as written"
    )


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder. UserError: a table of a split does not exist."""
    root = located(config, data_root, HOLDS)
    for split in config.splits.values():
        language_folders(root, config.languages, f"{split.source}.tsv")
    return root


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """The tables."""
    names = sorted({f"{split.source}.tsv" for split in config.splits.values()})
    return [folder / name for name in names for _, folder in language_folders(root, config.languages, name)]


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[Segment | SetAside]:
    """Yield first the rejected rows, then the utterances of one split, language by language."""
    part = config.splits[split]
    folders = language_folders(root, config.languages, f"{part.source}.tsv")
    found = (item for name, folder in folders for item in _utterances(config, folder, part.source, name))
    yield from items_of_split(found, part, seed)


def _utterances(config: Config, folder: Path, source: str, language: str) -> Iterator[Segment | SetAside]:
    path = folder / f"{source}.tsv"
    code = config.language or _code(language, folder)
    for line, content in read_lines(path):
        values, where = [value.strip() for value in content.split("\t")], f"{path} line {line}"
        row = dict(zip(FIELDS, values, strict=False))
        if len(values) != len(FIELDS):
            detail = f"{where}: {len(values)} columns, but FLEURS has {len(FIELDS)}"
            yield SetAside(f"{folder.name}/{path.name}:{line}", "malformed row", detail)
        elif not row["samples"].isdecimal():
            detail = f"{where}: the number of samples is {row['samples']!r}"
            yield SetAside(f"{folder.name}/{path.name}:{line}", "malformed row", detail)
        elif not row["file"]:
            yield SetAside(f"{folder.name}/{path.name}:{line}", "no recording", f"{where}: the file is empty")
        else:
            name = name_id(row["file"].removesuffix(".wav"))
            yield Segment(
                id=name,
                audio=os.path.normpath(folder / "audio" / source / row["file"]),
                language=code.lower(),
                speaker=name,
                text=one_line(row[config.text]),
                gender=row["gender"].lower() or None,
                seconds=int(row["samples"]) / RATE,
                where=where,
            )


def _code(name: str, folder: Path) -> str:
    """The language of a folder such as de_de. UserError: the name is of another form."""
    match = re.fullmatch(r"([a-z]{2,3})[_-].+", name.lower())
    if match is None:
        raise UserError(
            f"{folder}: the name of the folder does not tell the language, as de_de does; rename the folder, or set "
            f"the corpus's key `language`, for example `language: de`"
        )
    return match[1]


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it is FLEURS (``detect.py``)."""
    for folder in [path, *sorted(p for p in path.iterdir() if p.is_dir())]:
        names = [t.stem for t in sorted(folder.glob("*.tsv")) if (folder / "audio" / t.stem).is_dir()]
        if names:
            return {"splits": guess_splits({name: name for name in names})}
    return None
