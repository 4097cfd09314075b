"""Multilingual LibriSpeech (MLS): the folder of a language, or of several languages, as OpenSLR distributes it.

In: ``mls_german/train/transcripts.txt`` (lines ``speaker_book_segment<TAB>text``) and
``mls_german/train/audio/speaker/book/*.flac`` (or ``.opus``), for train, dev and test. Out: an utterance per line. The
language is in the name of the folder. CC BY 4.0 (Pratap et al., Interspeech 2020).

    corpora:
      mls: {kind: mls, path: /data/mls_german,
            splits: {train: {source: train}, dev: {source: dev}, test: {source: test}}}
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.corpora import walking
from lowrank_speech.corpora.common import SetAside, clean_text, read_lines
from lowrank_speech.corpora.layouts import Layout, Segment, guess_splits, language_folders, located, name_id, reported
from lowrank_speech.corpora.parts import items_of_split
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings

CODES = {
    "dutch": "nl",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "polish": "pl",
    "portuguese": "pt",
    "spanish": "es",
}
SUFFIXES = (".flac", ".opus", ".wav", ".ogg", ".mp3")
TRANSCRIPTS = "transcripts.txt"


@settings
class Config(Layout):
    """A corpus in the layout of MLS."""

    kind: Literal["mls"] = key(REQUIRED, "Multilingual LibriSpeech: transcripts.txt and audio/ in each split")
    language: str | None = key(None, "language code, for one language; null: from the folder's name, mls_german")
    languages: tuple[str, ...] = key((), "folders of the languages to use, for example mls_german; empty: all")


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder. UserError: a transcript file does not exist."""
    root = located(config, data_root, "train/, dev/, test/ with transcripts.txt and audio/, or mls_* folders with them")
    for split in config.splits.values():
        language_folders(root, config.languages, f"{split.source}/{TRANSCRIPTS}")
    return root


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """The transcripts."""
    names = sorted({f"{split.source}/{TRANSCRIPTS}" for split in config.splits.values()})
    return [folder / name for name in names for _, folder in language_folders(root, config.languages, name)]


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[Segment | SetAside]:
    """Yield first the rejected lines, then the utterances of one split, language by language."""
    part = config.splits[split]
    folders = language_folders(root, config.languages, f"{part.source}/{TRANSCRIPTS}")
    found = (
        item for name, folder in folders for item in _utterances(folder / part.source, _code(config, name, folder))
    )
    yield from items_of_split(found, part, seed)


def _code(config: Config, name: str, folder: Path) -> str:
    """The language of a folder such as mls_german or mls_german_opus. UserError: it is not known."""
    found = [code for language, code in CODES.items() if language in name.lower().split("_")]
    if config.language is None and not found:
        raise UserError(
            f"{folder}: the name of the folder does not tell the language, as mls_german does; set the corpus's key "
            f"`language`, for example `language: de`"
        )
    return (config.language or found[0]).lower()


def _utterances(folder: Path, language: str) -> Iterator[Segment | SetAside]:
    path = folder / TRANSCRIPTS
    for line, content in read_lines(path):
        name, _, text = content.strip().partition("\t")
        where, parts = f"{path} line {line}", name.split("_")
        if len(parts) != 3 or not all(parts):
            detail = f"{where}: expected speaker_book_segment, a tab and the text, got {content[:100]!r}"
            yield SetAside(name_id(name[:100]), "malformed row", detail)
            continue
        speaker, book, _ = parts
        yield Segment(
            id=name_id(name),
            audio=os.path.normpath(walking.one_of(folder / "audio" / speaker / book, name, SUFFIXES)),
            language=language,
            speaker=name_id(speaker),
            text=clean_text(text),
            where=where,
        )


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it is MLS (``detect.py``)."""
    for folder in [path, *sorted(p for p in path.iterdir() if p.is_dir())]:
        names = [p.parent.name for p in sorted(folder.glob(f"*/{TRANSCRIPTS}")) if (p.parent / "audio").is_dir()]
        if names:
            known = any(language in folder.name.lower().split("_") for language in CODES)
            return {"splits": guess_splits({name: name for name in names})} | ({} if known else {"language": None})
    return None
