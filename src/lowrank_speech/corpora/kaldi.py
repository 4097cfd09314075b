"""Kaldi data directories: wav.scp, and optionally segments, text, utt2spk, utt2lang, spk2gender, reco2dur.

In: a folder with one data directory per source (``train/wav.scp`` ...). Relative paths in wav.scp start at that folder.
Out: utterances, which validate.py checks and makes into cuts. The default folder below $SPEECH_DATA is
``speechocean762`` (Zhang et al., Interspeech 2021).

    corpora:
      ocean: {kind: kaldi, language: en, splits: {train: {source: train, part: [0.0, 0.9]},
                                                  dev: {source: train, part: [0.9, 1.0]}, test: {source: dev}}}

Why not ``lhotse.kaldi.load_kaldi_data_dir``: it resolves paths against the working directory, assumes that all
recordings are mono and have one given rate, drops files that it cannot open, fails with an assertion if a table has
fewer lines than another, and runs commands. A piped wav.scp entry is a command inside data. This reader refuses it.
Source: https://kaldi-asr.org/doc/data_prep.html
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.corpora.common import (
    TRACK,
    Checks,
    SetAside,
    Track,
    Utterance,
    clean_text,
    find_folder,
    read_lines,
    refuse_twice,
)
from lowrank_speech.corpora.parts import SplitConfig, check_splits, items_of_split
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings

TABLES = ("wav.scp", "segments", "text", "utt2spk", "utt2lang", "spk2gender", "reco2dur")
"""Files that are read from a data directory. All but the first are optional."""


@settings
class Config:
    """A corpus of Kaldi data directories."""

    kind: Literal["kaldi"] = key(REQUIRED, "Kaldi data directories")
    splits: dict[str, SplitConfig] = key(REQUIRED, "name -> which data directory, and which part of it")
    path: str | None = key(None, "folder that contains the data directories; null: `folder` below $SPEECH_DATA")
    folder: str = key("speechocean762", "folder below $SPEECH_DATA, used if `path` is null")
    language: str | None = key(None, "language code of utterances that are not in utt2lang")
    checks: Checks = key(None, "which audio is accepted", default_factory=Checks)
    track: Track = key("auto", TRACK, runtime=True)

    def __post_init__(self) -> None:
        check_splits(self.splits)


def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder that contains the data directories. UserError: it or a data directory does not exist."""
    sources = sorted({split.source for split in config.splits.values()})
    holds = f"Kaldi data directories with wav.scp, text, utt2spk: {', '.join(sources)}"
    files = [f"{source}/wav.scp" for source in sources]
    return find_folder(config.kind, config.path, data_root, config.folder, holds, files)


def sources(config: Config, root: Path) -> list[Path]:
    """The tables of all data directories, including absent ones, which would be read if they existed."""
    folders = sorted({split.source for split in config.splits.values()})
    return [root / folder / table for folder in folders for table in TABLES]


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it contains data directories (``detect.py``)."""
    from lowrank_speech.corpora.layouts import guess_splits

    folders = sorted(found.parent for found in path.glob("*/wav.scp"))
    if not folders:
        return None
    known = all((folder / "utt2lang").is_file() for folder in folders)
    return {"splits": guess_splits({f.name: f.name for f in folders})} | ({} if known else {"language": None})


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[Utterance | SetAside]:
    """Yield first the rejected rows, then the utterances of one split, in the order of its data directory.

    UserError: a key occurs in a table with two different values. ``audio_dir`` and ``jobs`` are not used, because no
    audio is written, and validate.py opens it.
    """
    part = config.splits[split]
    yield from items_of_split(read_directory(root, part.source, config.language), part, seed)


def read_directory(root: Path, source: str, language: str | None) -> Iterator[Utterance | SetAside]:
    """Yield the utterances of the data directory ``root/source``, in the order of segments or wav.scp."""
    folder = root / source
    listed, audio = _recordings(folder / "wav.scp", root)
    text, speakers = _table(folder / "text"), _table(folder / "utt2spk")
    languages, genders = _table(folder / "utt2lang", str.lower), _table(folder / "spk2gender")
    seconds = _table(folder / "reco2dur", _number)
    if not languages and language is None:
        raise UserError(f"{folder} has no utt2lang; set the corpus's key `language`, for example `language: en`")
    segments = folder / "segments"
    segmented = segments.is_file()
    if segmented:
        listed = _segments(segments)
    for line, utterance, recording, start, end in listed:
        where = f"{segments if segmented else folder / 'wav.scp'} line {line}"
        # Kaldi's convention for unknown speakers: each utterance has its own speaker.
        speaker = speakers.get(utterance) if speakers else utterance
        code = languages.get(utterance, language)
        if recording not in audio:
            yield SetAside(utterance, "no recording", f"{where}: {recording} is not in wav.scp")
        elif speaker is None:
            yield SetAside(utterance, "no speaker", f"{where}: {utterance} is not in utt2spk")
        elif code is None:
            yield SetAside(
                utterance, "no language", f"{where}: {utterance} is not in utt2lang, and `language` is not set"
            )
        else:
            yield Utterance(
                id=utterance,
                audio=audio[recording],
                language=code.lower(),
                speaker=speaker,
                text=clean_text(text.get(utterance)),
                gender=genders.get(speaker),
                start=start,
                end=end,
                seconds=None if segmented else seconds.get(recording),
                recording_id=recording,
                where=where,
            )
    known = {utterance for _, utterance, *_ in listed}
    for utterance in text:
        if utterance not in known:
            yield SetAside(utterance, "no recording", f"{folder / 'text'}: the transcript has no audio")


Listed = list[tuple[int, str, str, float, float | None]]
"""Line number, utterance, recording, start and end in seconds (None: end of the recording)."""


def _recordings(path: Path, root: Path) -> tuple[Listed, dict[str, str]]:
    """Each recording of wav.scp as an utterance, and the mapping from recording to audio path."""
    listed: Listed = []
    audio: dict[str, tuple[int, str]] = {}
    for line, recording, value in _pairs(path):
        if value.startswith("|") or value.endswith("|"):
            raise UserError(
                f"{path} line {line}: {recording} is a piped command ({value}); commands inside data are refused. "
                f"Write the audio to files, for example with Kaldi's wav-copy, and list these files"
            )
        place = os.path.normpath(root / value)
        _set_once(audio, recording, line, place, path, "the recording")
        listed.append((line, recording, recording, 0.0, None))
    return listed, {recording: place for recording, (_, place) in audio.items()}


def _set_once(seen: dict[str, tuple[int, Any]], name: str, line: int, value: Any, path: Path, what: str) -> None:
    """Record the value and line of a key. UserError: it already has another value (Kaldi refuses this as well)."""
    first, known = seen.setdefault(name, (line, value))
    if known != value:
        refuse_twice(path, f"{what} {name}", (first, line), (known, value))


def _pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line number, key and rest of each line. Only in ``text`` may the rest be empty: an empty transcript."""
    for line, content in read_lines(path):
        name, _, value = content.strip().replace("\t", " ").partition(" ")
        if not value and path.name != "text":
            raise UserError(f"{path} line {line}: expected `key value`, got {name!r}")
        yield line, name, value.strip()


def _table(path: Path, convert: Callable[[str], Any] = str) -> dict[str, Any]:
    """Key -> value; empty if the file does not exist. UserError: a key has two different values."""
    seen: dict[str, tuple[int, Any]] = {}
    for line, name, value in _pairs(path) if path.is_file() else ():
        try:
            made = convert(value)
        except ValueError as error:
            raise UserError(f"{path} line {line}: {name}: {error}") from error
        _set_once(seen, name, line, made, path, "the key")
    return {name: value for name, (_, value) in seen.items()}


def _segments(path: Path) -> Listed:
    """The rows of segments. An end of -1 (end of the recording) becomes None."""
    rows: Listed = []
    seen: dict[str, tuple[int, Any]] = {}
    for line, content in read_lines(path):
        fields = content.split()
        if len(fields) != 4:
            raise UserError(f"{path} line {line}: expected `utterance recording start end`, got {content!r}")
        try:
            start, end = (_number(value) for value in fields[2:])
        except ValueError as error:
            raise UserError(f"{path} line {line}: {error}") from error
        _set_once(seen, fields[0], line, (fields[1], start, end), path, "the utterance")
        rows.append((line, fields[0], fields[1], start, None if end == -1 else end))
    return rows


def _number(value: str) -> float:
    """Parse seconds. ValueError: not a finite number."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a number of seconds")
    return number
