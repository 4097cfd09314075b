"""Common Voice: the folder of a language, or of a release with several languages, as Mozilla distributes it.

In: ``de/clips/*.mp3`` with ``de/train.tsv``, ``dev.tsv``, ``test.tsv``, ``validated.tsv`` ... (columns ``client_id path
sentence locale gender``; tabs, and quotation marks that mean nothing). Out: an utterance per row, whose id is the name
of the clip, whose speaker is ``client_id``. ``validated.tsv`` also lists the clips of train, dev and test. CC0 (Ardila
et al., LREC 2020).

    corpora:
      cv: {kind: commonvoice, path: /data/cv-corpus-17.0-2024-03-15, languages: [de, fr],
           splits: {train: {source: train}, dev: {source: dev}, test: {source: test}}}
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.corpora.common import SetAside
from lowrank_speech.corpora.delimited import read_rows
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

HOLDS = "clips/ and train.tsv, dev.tsv, test.tsv, or such a folder for each language"
NEEDED = ("path", "sentence", "client_id")


@settings
class Config(Layout):
    """A corpus in the layout of Common Voice."""

    kind: Literal["commonvoice"] = key(REQUIRED, "Common Voice: clips/ and tables such as train.tsv")
    languages: tuple[str, ...] = key((), "folders of the languages to use; empty: all")


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder. UserError: a table of a split does not exist."""
    root = located(config, data_root, HOLDS)
    for split in config.splits.values():
        language_folders(root, config.languages, table(split.source))
    return root


def table(source: str) -> str:
    """The name of the table of a source: train or train.tsv."""
    return source if source.endswith(".tsv") else f"{source}.tsv"


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """The tables."""
    names = sorted({table(split.source) for split in config.splits.values()})
    return [folder / name for name in names for _, folder in language_folders(root, config.languages, name)]


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[Segment | SetAside]:
    """Yield first the rejected rows, then the utterances of one split, language by language."""
    part = config.splits[split]
    folders = language_folders(root, config.languages, table(part.source))
    found = (item for name, folder in folders for item in _utterances(folder, folder / table(part.source), name))
    yield from items_of_split(found, part, seed)


def _utterances(folder: Path, path: Path, language: str) -> Iterator[Segment | SetAside]:
    header, rows = read_rows(path, "tab", False, bool)
    lost = [name for name in NEEDED if name not in header]
    if lost:
        raise UserError(
            f"{path}: the header has no column {lost[0]!r}; expected the columns of Common Voice, {', '.join(NEEDED)} "
            f"and more. The kind table reads other tables"
        )
    for line, values, fault in rows:
        where = f"{path} line {line}"
        if fault:
            yield SetAside(f"{folder.name}/{path.name}:{line}", "malformed row", f"{where}: {fault}")
            continue
        row = dict(zip(header, (value.strip() for value in values), strict=True))
        clip = row["path"]
        name = name_id(clip.removesuffix(".mp3"))
        if not clip:
            yield SetAside(f"{folder.name}/{path.name}:{line}", "no recording", f"{where}: the path is empty")
        elif not row["client_id"]:
            yield SetAside(name, "no speaker", f"{where}: the client_id is empty")
        else:
            file = clip if Path(clip).suffix else f"{clip}.mp3"  # releases before 4.0 leave the suffix out
            yield Segment(
                id=name,
                audio=os.path.normpath(folder / "clips" / file),
                language=(row.get("locale") or language).lower(),
                speaker=row["client_id"],
                text=one_line(row["sentence"]),
                gender=row.get("gender") or None,
                where=where,
            )


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it is Common Voice (``detect.py``)."""
    folders = [path, *sorted(p for p in path.iterdir() if p.is_dir())]
    for folder in folders:
        tables = sorted(folder.glob("*.tsv"))
        if (folder / "clips").is_dir() and tables:
            known = {"train", "dev", "test"} & {t.stem for t in tables} or {t.stem for t in tables}
            return {"splits": guess_splits({name: name for name in sorted(known)})}
    return None
