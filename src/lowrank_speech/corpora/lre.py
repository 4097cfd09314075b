"""A key of a NIST language recognition evaluation (LRE) with its audio.

In: a key (``scoring/nist.py`` reads the forms of LRE07 to LRE22: segment, language, and optionally source, speaker)
and a folder with the audio. A segment's file is found by its name, with or without a suffix in the key, anywhere
below the folder. Out: an utterance without text per segment; ``custom.source`` is the source, for example mls14 or
vast.

    corpora:
      lre: {kind: lre, path: /data/LDC2022E16, audio: data,
            splits: {dev: {source: docs/dev_segments.key}, test: {source: docs/eval_segments.key}}}
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from lowrank_speech.corpora import walking
from lowrank_speech.corpora.common import SetAside, Utterance
from lowrank_speech.corpora.layouts import (
    Layout,
    Segment,
    guess_splits,
    inside,
    located,
    name_id,
    reported,
    with_details,
)
from lowrank_speech.corpora.parts import items_of_split
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings

if TYPE_CHECKING:
    from lhotse.cut import Cut


@settings
class Config(Layout):
    """A corpus of NIST LRE keys."""

    kind: Literal["lre"] = key(REQUIRED, "keys of NIST language recognition evaluations, and their audio")
    audio: str = key(
        ".", "folder of the audio, relative to the corpus's folder; files are found by the name of the segment"
    )
    languages: tuple[str, ...] = key((), "languages to use, others are set aside; empty: all languages")


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder. UserError: it, a key or the folder of the audio does not exist."""
    names = sorted({split.source for split in config.splits.values()})
    root = located(config, data_root, f"keys with segments and languages ({', '.join(names)}), and their audio", names)
    inside(config, root, config.audio)
    return root


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """The keys."""
    return [root / source for source in sorted({split.source for split in config.splits.values()})]


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> "Iterator[Cut | Utterance | SetAside]":
    """Yield first the segments that cannot be used, then the cuts of one split, in the order of the key.

    UserError: the key cannot be read, or a segment occurs in it twice.
    """
    part = config.splits[split]
    items = items_of_split(_utterances(config, root, part.source), part, seed)
    yield from with_details(items, config.checks, jobs)


def _utterances(config: Config, root: Path, source: str) -> Iterator[Segment | SetAside]:
    from lowrank_speech.scoring.nist import read_key

    path, wanted = root / source, {code.lower() for code in config.languages}
    try:
        found = read_key(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    folder = root / config.audio
    index = walking.by_stem(folder, config.kind)
    for segment, label in found.labels.items():
        name, language = name_id(segment), label.lower()
        audio = _audio(segment, folder, index)
        if wanted and language not in wanted:
            detail = f"{path}: {segment}: {language} is not one of {', '.join(sorted(wanted))}"
            yield SetAside(name, "unknown language", detail)
        elif not audio:
            yield SetAside(
                name, "missing file", f"{path}: {segment}: there is no audio file of this name below {folder}"
            )
        elif len(audio) > 1:
            detail = f"{path}: {segment}: {audio[0]} and {audio[1]} have the name of the segment; remove one of them"
            yield SetAside(name, "several files", detail)
        else:
            origin = (found.sources or {}).get(segment)
            yield Segment(
                id=name,
                audio=os.path.normpath(audio[0]),
                language=language,
                speaker=name_id((found.speakers or {}).get(segment) or segment),
                where=f"{path}: {segment}",
                custom={"source": origin} if origin else None,
            )


def _audio(segment: str, folder: Path, index: dict[str, list[Path]]) -> list[Path]:
    """The files of a segment: its path below ``folder``, else all files of its name."""
    if walking.is_audio(Path(segment)) and (folder / segment.lstrip("/")).is_file():
        return [folder / segment.lstrip("/")]
    name = PurePosixPath(segment)
    found = index.get(name.stem if walking.is_audio(Path(segment)) else name.name, [])
    return [path for path in found if path.name == name.name] or found


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it has keys of segments and languages (``detect.py``)."""
    from lowrank_speech.scoring.nist import read_key

    found = {}
    for key_file in sorted([*path.glob("*.key"), *path.glob("*/*.key")]):
        try:
            read_key(key_file)
        except ValueError:
            continue
        found[key_file.stem] = key_file.relative_to(path).as_posix()
    return {"splits": guess_splits(found)} if found else None
