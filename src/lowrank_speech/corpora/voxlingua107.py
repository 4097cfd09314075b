"""VoxLingua107: a folder of WAV files for each language, and ``dev/`` with the same, for language recognition.

In: ``de/<video>__U__S1---0012.340-0020.110.wav``; the source ``train`` means the folders of languages beside
``dev/``, the source ``dev`` those in it. Out: an utterance without text per file, language from the folder's name.
Speakers are not known; the YouTube video counts as the speaker, so no two parts share a video, and is
``custom.source``. CC BY 4.0 (Valk and Alumäe, SLT 2021).

    corpora:
      vox: {kind: voxlingua107, path: /data/voxlingua107, languages: [de, en, fr],
            splits: {train: {source: train, part: [0.0, 0.9]}, dev: {source: train, part: [0.9, 1.0]},
                     test: {source: dev}}}
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lowrank_speech.corpora import walking
from lowrank_speech.corpora.common import SetAside, Utterance
from lowrank_speech.corpora.layouts import Layout, Segment, inside, located, name_id, reported, with_details
from lowrank_speech.corpora.parts import items_of_split
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings

if TYPE_CHECKING:
    from lhotse.cut import Cut

CODE = re.compile(r"[a-z]{2,3}")
"""Names of the folders of languages: iw, ceb."""
VIDEO = re.compile(r"(?P<video>.+?)(__U__S\d+)?---\d+\.\d+-\d+\.\d+")


@settings
class Config(Layout):
    """A corpus in the layout of VoxLingua107."""

    kind: Literal["voxlingua107"] = key(REQUIRED, "VoxLingua107: a folder of audio for each language, and dev/")
    languages: tuple[str, ...] = key((), "languages to use; empty: all")


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder. UserError: it, dev/ or the folder of a language does not exist."""
    root = located(config, data_root, "folders of languages, such as de, with WAV files, and dev/ with such folders")
    for split in config.splits.values():
        found = _languages(config, root, split.source)
        for language in config.languages:
            if language not in found:
                raise UserError(
                    f"corpus of kind {config.kind}: the language {language!r} of `languages` has no folder in "
                    f"{_folder(config, root, split.source)}, which has {', '.join(sorted(found)) or 'none'}"
                )
    return root


def _folder(config: Config, root: Path, source: str) -> Path:
    """The folder above those of the languages. As distributed, those of train have no folder of their own."""
    return root if source == "train" and not (root / source).is_dir() else inside(config, root, source)


def _languages(config: Config, root: Path, source: str) -> dict[str, Path]:
    """Name of a language -> its folder."""
    folder = _folder(config, root, source)
    return {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and CODE.fullmatch(p.name) and p.name != "dev"}


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """Empty: there are no tables."""
    return []


@reported
def listed(config: Config, root: Path) -> list[Path]:
    """The folders of the languages, so that a new file changes the corpus."""
    used = sorted({split.source for split in config.splits.values()})
    found = [pair for source in used for pair in _languages(config, root, source).items()]
    return [path for name, path in found if not config.languages or name in config.languages]


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> "Iterator[Cut | Utterance | SetAside]":
    """Yield first what cannot be used, then the cuts of one split, language by language."""
    part = config.splits[split]
    items = items_of_split(_utterances(config, root, part.source), part, seed)
    yield from with_details(items, config.checks, jobs)


def _utterances(config: Config, root: Path, source: str) -> Iterator[Segment | SetAside]:
    folder, found = _folder(config, root, source), _languages(config, root, source)
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        if path.name not in found and path.name != "dev":
            detail = f"{path}: the name of the folder is not the code of a language (two or three small letters)"
            yield SetAside(name_id(path.name), "unknown language", detail)
    for language, path in found.items():
        if config.languages and language not in config.languages:
            continue
        for audio in walking.audio_files(path, config.kind):
            if isinstance(audio, SetAside):
                yield audio
                continue
            match = VIDEO.fullmatch(audio.stem)
            video = name_id(match["video"] if match else audio.stem)
            yield Segment(
                id=walking.relative_id(audio, folder),
                audio=os.path.normpath(audio),
                language=language,
                speaker=video,
                custom={"source": video},
            )


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it has folders of languages with audio (``detect.py``)."""
    names = [p for p in sorted(path.iterdir()) if p.is_dir() and CODE.fullmatch(p.name) and p.name != "dev"]
    if len(names) < 2 or not all(any(walking.is_audio(f) for f in p.iterdir()) for p in names):
        return None
    parts = {"train": {"source": "train", "part": [0.0, 0.9]}, "dev": {"source": "train", "part": [0.9, 1.0]}}
    if (path / "dev").is_dir():
        return {"splits": parts | {"test": {"source": "dev"}}}
    bounds = {"train": [0.0, 0.8], "dev": [0.8, 0.9], "test": [0.9, 1.0]}
    return {"splits": {split: {"source": "train", "part": part} for split, part in bounds.items()}}
