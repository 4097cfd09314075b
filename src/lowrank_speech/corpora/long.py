"""Long recordings, cut at the times of STM, CTM or TextGrid files.

In: a transcript file as the source (``train.stm``, ``train.ctm``), or a folder with one per recording (as in
TED-LIUM: ``stm/`` and ``sph/``), and the recordings, which are found by name anywhere below ``audio``. Words of a CTM
file are joined to utterances at pauses. Out: an utterance per segment, of the channel that the transcript names (1, 2
or A, B) if the recording has several.

    corpora:
      talks: {kind: long, path: /data/talks, language: en, audio: wav,
              splits: {train: {source: train.stm}, dev: {source: dev.stm}, test: {source: test.stm}}}
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lowrank_speech.corpora import walking
from lowrank_speech.corpora.common import SetAside, Utterance
from lowrank_speech.corpora.layouts import (
    LANGUAGE,
    Layout,
    Segment,
    guess_splits,
    inside,
    located,
    name_id,
    reported,
    segment_id,
    with_details,
)
from lowrank_speech.corpora.parts import items_of_split
from lowrank_speech.corpora.timed import Part, read_ctm, read_stm, read_textgrid
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, NotNegative, Positive, key, settings

if TYPE_CHECKING:
    from lhotse.cut import Cut

FORMS = (".stm", ".ctm", ".textgrid")


@settings
class Config(Layout):
    """A corpus of long recordings."""

    kind: Literal["long"] = key(REQUIRED, "long recordings with STM, CTM or TextGrid files")
    language: str = key(REQUIRED, LANGUAGE)
    audio: str = key(".", "folder of the recordings, relative to the corpus's folder; files are found by name")
    tier: str | None = key(None, "TextGrid: name of the tier with the text; null: the only one")
    pause: NotNegative = key(0.5, "CTM: an utterance ends at a pause between words that is longer, in seconds")
    max_seconds: Positive = key(20.0, "CTM: longest utterance that words are joined to, in seconds")


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder. UserError: it, a transcript or the folder of the recordings does not exist."""
    root = located(config, data_root, "STM, CTM or TextGrid files, and recordings of the same names")
    for split in config.splits.values():
        _transcripts(config, root, split.source)
    inside(config, root, config.audio)
    return root


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """The transcripts."""
    used = sorted({split.source for split in config.splits.values()})
    return [path for source in used for path in _transcripts(config, root, source)]


def _transcripts(config: Config, root: Path, source: str) -> list[Path]:
    """The file ``source``, or the transcripts in the folder ``source``. UserError: there is none."""
    path = root / source
    if path.is_file() and path.suffix.lower() in FORMS:
        return [path]
    if path.is_file():
        raise UserError(f"{path}: the suffix is {path.suffix!r}; expected one of {', '.join(FORMS)}")
    found = walking.files(inside(config, root, source), config.kind)
    listed = [p for p in found if isinstance(p, Path) and p.suffix.lower() in FORMS]
    if not listed:
        raise UserError(f"{path}: there is no file with a suffix of {', '.join(FORMS)}; correct `source`")
    return listed


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> "Iterator[Cut | Utterance | SetAside]":
    """Yield first the rejected lines, then the cuts of one split, transcript by transcript."""
    part = config.splits[split]
    items = items_of_split(_utterances(config, root, part.source), part, seed)
    yield from with_details(items, config.checks, jobs)


def _utterances(config: Config, root: Path, source: str) -> Iterator[Segment | SetAside]:
    index = walking.by_stem(root / config.audio, config.kind)
    for path in _transcripts(config, root, source):
        for part in _parts(config, path):
            yield part if isinstance(part, SetAside) else _utterance(config, part, index, root)


def _parts(config: Config, path: Path) -> Iterator[Part | SetAside]:
    match path.suffix.lower():
        case ".stm":
            return read_stm(path)
        case ".ctm":
            return read_ctm(path, config.pause, config.max_seconds)
        case _:
            return read_textgrid(path, config.tier)


def _utterance(config: Config, part: Part, index: dict[str, list[Path]], root: Path) -> Segment | SetAside:
    name = segment_id(part.recording, part.start, part.end, part.channel, part.speaker)
    files = index.get(part.recording) or index.get(Path(part.recording).stem, [])
    if len(files) != 1:
        if not files:
            detail = f"{part.where}: there is no audio file {part.recording} below {root / config.audio}"
            return SetAside(name, "missing file", detail)
        return SetAside(
            name, "several files", f"{part.where}: {files[0]} and {files[1]} have the name {part.recording}"
        )
    if part.end <= part.start:
        return SetAside(name, "malformed row", f"{part.where}: the segment is {part.start:g} to {part.end:g} s")
    return Segment(
        id=name,
        audio=os.path.normpath(files[0]),
        language=config.language.lower(),
        # A speaker's name counts within a recording if it is only a number or a role.
        speaker=name_id(
            part.speaker if part.speaker and not part.speaker.isdecimal() else f"{part.recording}-{part.speaker or 0}"
        ),
        text=part.text,
        start=part.start,
        end=part.end,
        recording_id=name_id(part.recording),
        where=part.where,
        channel=_channel(part.channel),
    )


def _channel(name: str | None) -> int | None:
    """1, 2 ... or A, B ... as a number from 0; None for other names."""
    if name is None:
        return None
    if name.isdecimal():
        return max(int(name) - 1, 0)
    return ord(name.upper()) - ord("A") if len(name) == 1 and name.isalpha() and name.isascii() else None


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it contains STM, CTM or TextGrid files (``detect.py``)."""
    found = {p.stem: p.name for p in sorted(path.iterdir()) if p.is_file() and p.suffix.lower() in FORMS}
    if found and not any(path.glob("*.[Tt]ext[Gg]rid")):
        return {"language": None, "splits": guess_splits(found)}
    folders = {p.name: p.name for p in sorted(path.iterdir()) if p.is_dir()}
    with_texts = {
        name: name
        for name in itertools.chain(["."] if found else [], folders)
        if any(p.suffix.lower() in FORMS for p in (path / name).iterdir())
    }
    return {"language": None, "splits": guess_splits(with_texts)} if with_texts else None
