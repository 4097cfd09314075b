"""LibriSpeech: folders of speakers and chapters with FLAC files and ``*.trans.txt``, as OpenSLR distributes them.

In: ``train-clean-100/19/198/19-198.trans.txt`` (lines ``19-198-0000 TEXT``) beside ``19-198-0000.flac``, and optionally
``SPEAKERS.TXT``. A source is a subset, or a pattern such as ``train-*`` for several. Out: an utterance per recording;
recordings without a transcript have no text. CC BY 4.0 (Panayotov et al., ICASSP 2015).

    corpora:
      libri: {kind: librispeech, path: /data/LibriSpeech,
              splits: {train: {source: train-*}, dev: {source: dev-clean}, test: {source: test-clean}}}
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.corpora import walking
from lowrank_speech.corpora.common import SetAside, clean_text, read_lines
from lowrank_speech.corpora.layouts import Layout, Segment, guess_splits, inside, located, name_id, reported
from lowrank_speech.corpora.parts import items_of_split
from lowrank_speech.settings import REQUIRED, key, settings

TRANSCRIPTS = ".trans.txt"
SUFFIXES = (".flac", ".wav", ".ogg", ".opus", ".mp3")


@settings
class Config(Layout):
    """A corpus in the layout of LibriSpeech."""

    kind: Literal["librispeech"] = key(REQUIRED, "LibriSpeech: speaker/chapter/*.trans.txt beside the audio")
    language: str = key("en", "language code of all utterances")


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder of the subsets. UserError: it or a subset does not exist."""
    root = located(config, data_root, "subsets such as train-clean-100, with speaker/chapter/*.trans.txt")
    for split in config.splits.values():
        _subsets(config, root, split.source)
    return root


def _subsets(config: Config, root: Path, source: str) -> list[Path]:
    found = sorted(path for path in root.glob(source) if path.is_dir()) if "*" in source else []
    return found or [inside(config, root, source)]


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """The transcripts and the list of speakers."""
    subsets = {path for split in config.splits.values() for path in _subsets(config, root, split.source)}
    return [root / "SPEAKERS.TXT", *(path for subset in sorted(subsets) for path in _transcripts(subset, config.kind))]


def _transcripts(folder: Path, kind: str) -> list[Path]:
    found = walking.files(folder, kind)
    return [path for path in found if isinstance(path, Path) and path.name.endswith(TRANSCRIPTS)]


@reported
def listed(config: Config, root: Path) -> list[Path]:
    """The folders of chapters: a new recording changes the corpus."""
    subsets = {path for split in config.splits.values() for path in _subsets(config, root, split.source)}
    return sorted({path.parent for subset in subsets for path in _transcripts(subset, config.kind)})


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[Segment | SetAside]:
    """Yield first the rejected lines, then the utterances of one split, sorted by folder."""
    part, genders = config.splits[split], _genders(root / "SPEAKERS.TXT")
    subsets = _subsets(config, root, part.source)
    found = (item for subset in subsets for item in _utterances(subset, config, genders))
    yield from items_of_split(found, part, seed)


def _utterances(subset: Path, config: Config, genders: dict[str, str]) -> Iterator[Segment | SetAside]:
    spoken = set()
    for path in _transcripts(subset, config.kind):
        for line, content in read_lines(path):
            name, _, text = content.strip().replace("\t", " ").partition(" ")
            audio = walking.one_of(path.parent, name, SUFFIXES)
            spoken.add(audio)
            yield _utterance(name, audio, clean_text(text), f"{path} line {line}", config.language, genders)
    for audio in walking.audio_files(subset, config.kind):
        if isinstance(audio, SetAside):
            yield audio
        elif audio not in spoken:
            yield _utterance(audio.stem, audio, None, "", config.language, genders)


def _utterance(name: str, audio: Path, text: str | None, where: str, language: str, genders: dict[str, str]) -> Segment:
    speaker = name.split("-")[0]
    return Segment(
        id=name_id(name),
        audio=os.path.normpath(audio),
        language=language.lower(),
        speaker=name_id(speaker),
        text=text,
        gender=genders.get(speaker),
        where=where,
    )


def _genders(path: Path) -> dict[str, str]:
    """Speaker -> gender, from lines ``14 | F | train-clean-360 | 25.03 | Kristin LeMoine``; empty without the file."""
    if not path.is_file():
        return {}
    rows = ([field.strip() for field in line.split("|")] for _, line in read_lines(path) if not line.startswith(";"))
    return {row[0]: row[1].lower() for row in rows if len(row) > 2}


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it is LibriSpeech (``detect.py``)."""
    subsets = [p.name for p in sorted(path.iterdir()) if p.is_dir() and any(p.glob(f"*/*/*{TRANSCRIPTS}"))]
    if not subsets:
        return None
    trains = [name for name in subsets if name.startswith("train-")]
    usual = {"train": "train-*" if len(trains) > 1 else next(iter(trains), None)}
    usual |= {split: f"{split}-clean" for split in ("dev", "test") if f"{split}-clean" in subsets}
    found = {split: source for split, source in usual.items() if source}
    return {"splits": guess_splits(found or {name: name for name in subsets})}
