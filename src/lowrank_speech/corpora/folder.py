"""A folder of audio with a text file of the same name beside each file: ``a.wav`` with ``a.txt`` or ``a.lab``.

In: ``train/anna/001.wav`` and ``train/anna/001.txt``, in folders of any depth. A ``.lab`` file may have times, as in
HTK (``0 1200000 hello``); only its words are used. Out: an utterance per recording, whose id is its path below the
source. The first folder below the source is the speaker (anna); a file directly in the source has a speaker of its
own. Recordings without a text file serve language recognition only.

    corpora:
      mine: {kind: folder, path: /data/recordings, language: de,
             splits: {train: {source: train}, dev: {source: dev}, test: {source: test}}}
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.corpora import walking
from lowrank_speech.corpora.common import SetAside
from lowrank_speech.corpora.layouts import (
    LANGUAGE,
    Layout,
    Segment,
    guess_splits,
    located_with_sources,
    name_id,
    one_line,
    reported,
)
from lowrank_speech.corpora.parts import items_of_split
from lowrank_speech.settings import REQUIRED, key, settings

SIDECARS = (".txt", ".lab")
LABEL = re.compile(r"\d+\s+\d+\s+(?P<word>\S.*)")


@settings
class Config(Layout):
    """A corpus of audio files with text files."""

    kind: Literal["folder"] = key(REQUIRED, "audio files, each with a .txt or .lab file beside it")
    language: str = key(REQUIRED, LANGUAGE)
    speaker: Literal["folder", "utterance"] = key(
        "folder", "who speaks: the first folder below the source names the speaker, or every file has its own"
    )


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder. UserError: it or the folder of a split does not exist."""
    return located_with_sources(config, data_root, "folders of audio files, with .txt or .lab files beside them")


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """Empty: the text files are compared like the audio, because there may be a million of them (``listed``)."""
    return []


@reported
def listed(config: Config, root: Path) -> list[Path]:
    """All folders with files: every file belongs to the corpus."""
    return walking.folders_of_sources(config, root)


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[Segment | SetAside]:
    """Yield first what cannot be used, then the utterances of one split, sorted by path."""
    part = config.splits[split]
    yield from items_of_split(_utterances(config, root / part.source), part, seed)


def _utterances(config: Config, folder: Path) -> Iterator[Segment | SetAside]:
    texts: dict[Path, list[Path]] = {}
    audio: list[Path] = []
    for path in walking.files(folder, config.kind):
        if isinstance(path, SetAside):
            yield path
        elif path.suffix.lower() in SIDECARS:
            texts.setdefault(path.with_suffix(""), []).append(path)
        elif walking.is_audio(path):
            audio.append(path)
    for path in audio:
        yield _utterance(config, folder, path, texts.get(path.with_suffix(""), []))
    known = {path.with_suffix("") for path in audio}
    for stem, found in texts.items():
        if stem not in known:
            yield SetAside(
                walking.relative_id(found[0], folder), "no recording", f"{found[0]}: no audio file beside it"
            )


def _utterance(config: Config, folder: Path, path: Path, texts: list[Path]) -> Segment | SetAside:
    name = walking.relative_id(path, folder)
    try:
        found = [read_text(text) for text in texts]
    except (OSError, UnicodeDecodeError) as error:
        why = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        return SetAside(name, "unreadable transcript", f"{texts[0]}: {why}")
    if len(set(found)) > 1:
        return SetAside(name, "two transcripts", f"{texts[0]} and {texts[1].name} differ; remove one of them")
    above = path.relative_to(folder).parts[:-1]
    return Segment(
        id=name,
        audio=os.path.normpath(path),
        language=config.language.lower(),
        speaker=name_id(above[0]) if above and config.speaker == "folder" else name,
        text=found[0] if found else None,
        where=str(texts[0]) if texts else "",
    )


def read_text(path: Path) -> str | None:
    """The words of a text file, on one line; of a file of labels without their times."""
    text = path.read_text(encoding="utf-8-sig")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    labels = [LABEL.fullmatch(line) for line in lines]
    if path.suffix.lower() == ".lab" and lines and all(labels):
        lines = [label["word"] for label in labels]
    return one_line(" ".join(lines))


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if audio files have text files beside them (``detect.py``)."""

    def fits(folder: Path) -> bool:
        found = (p for p in walking.audio_files(folder, "folder") if isinstance(p, Path))
        first = next(found, None)
        return first is not None and any(first.with_suffix(suffix).is_file() for suffix in SIDECARS)

    names = [p.name for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".") and fits(p)]
    splits = [name for name in names if name.lower() in ("train", "dev", "test", "valid", "validation", "eval")]
    if splits:
        return {"language": None, "splits": guess_splits({name: name for name in splits})}
    return {"language": None, "splits": guess_splits({".": "."})} if names or fits(path) else None
