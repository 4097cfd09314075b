"""ATCO2: air traffic control, a WAV file and an XML file of segments per recording (ATCO2 test sets of 1 h and 4 h).

In: ``DATA/LKPR_..._174652.wav`` beside ``....xml`` with ``segment`` elements: ``start``, ``end``, ``speaker``,
``text``, ``tags/correct``, ``tags/non_english``. Out: an utterance per segment. As in the preparation scripts of the
corpus, marks of named entities (``[#callsign]``) are removed, what was pronounced counts (``04R(zero four right)``),
and words of other languages lose their marks (``[NE Czech]``). Marks of noise, such as ``[hes]`` and ``[unk]``, stay:
``normalise.tags`` removes or maps them. Segments that are marked as incorrect or not English are set aside. If your
copy has Kaldi data directories, use the kind kaldi. Free sample: atco2.org/data (Zuluaga-Gomez et al., arXiv
2211.04054). Source: github.com/idiap/atco2-corpus.

    corpora:
      atco2: {kind: atco2, path: /data/ATCO2-ASRdataset-v1_beta, splits: {test: {source: DATA}}}
"""

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.corpora import walking
from lowrank_speech.corpora.common import SetAside
from lowrank_speech.corpora.layouts import (
    Layout,
    Segment,
    guess_splits,
    located_with_sources,
    name_id,
    one_line,
    reported,
    segment_id,
)
from lowrank_speech.corpora.parts import items_of_split
from lowrank_speech.corpora.records import number
from lowrank_speech.settings import REQUIRED, key, settings

ENTITY = re.compile(r"\[/?#[^\]]*\]")
FOREIGN = re.compile(r"\[NE\b[^\]]*\].*\[/NE\]", re.IGNORECASE)
FOREIGN_MARK = re.compile(r"\[/?NE\b[^\]]*\]", re.IGNORECASE)
PRONOUNCED = re.compile(r"(?<!\S)[^\s(]*[^_\s(]\(([^)]*)\)(?!\S)")
SUFFIXES = (".xml", ".xml.trans")


@settings
class Config(Layout):
    """A corpus in the layout of ATCO2."""

    kind: Literal["atco2"] = key(REQUIRED, "ATCO2: a WAV and an XML file per recording")
    language: str = key("en", "language code of all utterances")


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder. UserError: it or the folder of a split does not exist."""
    return located_with_sources(config, data_root, "a folder, such as DATA, with WAV and XML files of the same names")


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """The XML files."""
    used = sorted({split.source for split in config.splits.values()})
    return [path for source in used for path in _transcripts(root / source, config.kind)]


@reported
def listed(config: Config, root: Path) -> list[Path]:
    """The folders of the recordings, so that a new recording changes the corpus."""
    return walking.folders_of_sources(config, root)


def _transcripts(folder: Path, kind: str) -> list[Path]:
    found = walking.files(folder, kind)
    return [path for path in found if isinstance(path, Path) and path.name.endswith(SUFFIXES)]


def _stem(path: Path) -> str:
    return path.name.removesuffix(".trans").removesuffix(".xml")


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[Segment | SetAside]:
    """Yield first the rejected segments, then the utterances of one split, recording by recording."""
    part = config.splits[split]
    yield from items_of_split(_utterances(config, root / part.source), part, seed)


def _utterances(config: Config, folder: Path) -> Iterator[Segment | SetAside]:
    spoken = set()
    for path in _transcripts(folder, config.kind):
        audio = walking.one_of(path.parent, _stem(path), (".wav", ".flac", ".WAV"))
        spoken.add(audio)
        try:
            segments = list(ElementTree.parse(path).getroot().iter("segment"))
        except (ElementTree.ParseError, ValueError, LookupError) as error:
            yield SetAside(name_id(_stem(path)), "unreadable transcript", f"{path}: {error}")
            continue
        for count, segment in enumerate(segments, start=1):
            yield _segment(segment, _stem(path), audio, f"{path} segment {count}", config.language)
    for audio in walking.audio_files(folder, config.kind):
        if isinstance(audio, SetAside):
            yield audio
        elif audio not in spoken:
            yield SetAside(name_id(audio.stem), "no transcript", f"{audio}: there is no {audio.stem}.xml beside it")


def _segment(
    segment: ElementTree.Element, recording: str, audio: Path, where: str, language: str
) -> Segment | SetAside:
    said = {element.tag: (element.text or "").strip() for element in segment.iter()}
    text = "".join(segment.find("text").itertext()) if segment.find("text") is not None else ""
    name = name_id(f"{recording}-{where.rpartition(' ')[2]}")
    try:
        start, end = number(said.get("start")), number(said.get("end"))
    except ValueError as error:
        return SetAside(name, "malformed row", f"{where}: the time is {str(error)!r}")
    if start is None or end is None:
        return SetAside(name, "malformed row", f"{where}: start or end is missing")
    name = segment_id(recording, start, end, said.get("speaker"))
    if said.get("correct") == "0" or said.get("correct_transcript") == "0":
        return SetAside(name, "marked as incorrect", f"{where}: the transcript is marked as incorrect")
    if said.get("non_english") == "1" or FOREIGN.fullmatch(text.strip()):
        return SetAside(name, "not English", f"{where}: {text.strip()[:100]!r}")
    return Segment(
        id=name,
        audio=os.path.normpath(audio),
        language=language.lower(),
        speaker=name_id(f"{recording}-{said.get('speaker') or 'unknown'}"),
        text=pronounced(text),
        start=start,
        end=end,
        recording_id=name_id(recording),
        where=where,
    )


def pronounced(text: str) -> str | None:
    """The words of a transcript as they were pronounced, without marks of named entities and of languages."""
    text = FOREIGN_MARK.sub(" ", ENTITY.sub(" ", text))
    text = PRONOUNCED.sub(r"\1", text.replace("[", " [").replace("]", "] "))
    return one_line(re.sub(r"\s+", " ", text))


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it has WAV files beside XML files (``detect.py``)."""
    folders = {p.name: p for p in sorted(path.iterdir()) if p.is_dir()} | {".": path}
    found = {
        name: name
        for name, folder in folders.items()
        if any(p.name.endswith(SUFFIXES) and (folder / f"{_stem(p)}.wav").exists() for p in folder.iterdir())
    }
    return {"splits": guess_splits(found)} if found else None
