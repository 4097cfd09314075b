"""Kaldi data directories: wav.scp, and where they exist segments, text, utt2spk, utt2lang, spk2gender, reco2dur.

In: a folder with one data directory per source (``train/wav.scp`` ...); relative paths in wav.scp start at that folder.
Out: utterances, to be checked and made into cuts by validate.py. The default folder below $SPEECH_DATA is
speechocean762 (Zhang et al., Interspeech 2021).

    corpora:
      ocean: {kind: kaldi, language: en, splits: {train: {source: train, part: [0.0, 0.9]},
                                                  dev: {source: train, part: [0.9, 1.0]}, test: {source: dev}}}

Why not ``lhotse.kaldi.load_kaldi_data_dir``: it resolves paths against the working directory, takes every recording as
mono at one given rate, drops what it cannot open, stops with an assertion where a table has a line less than another,
and runs commands. A piped wav.scp entry is a command line inside data: it is refused here, not run.
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
"""What is read of a data directory; all but the first may be absent."""


@settings
class Config:
    """A corpus of Kaldi data directories."""

    kind: Literal["kaldi"] = key(REQUIRED, "Kaldi data directories")
    splits: dict[str, SplitConfig] = key(REQUIRED, "name -> which data directory, and which part of it")
    path: str | None = key(None, "the folder above the data directories; null: `folder` below $SPEECH_DATA")
    folder: str = key("speechocean762", "the folder below $SPEECH_DATA, where `path` is null")
    language: str | None = key(None, "language code of what utt2lang does not name; without utt2lang, of everything")
    checks: Checks = key(None, "which audio is taken", default_factory=Checks)
    track: Track = key("auto", TRACK, runtime=True)

    def __post_init__(self) -> None:
        check_splits(self.splits)


def locate(config: Config, data_root: Path | None) -> Path:
    """The folder above the data directories, absolute; UserError if it or a data directory is absent."""
    sources = sorted({split.source for split in config.splits.values()})
    holds = f"Kaldi data directories with wav.scp, text, utt2spk: {', '.join(sources)}"
    files = [f"{source}/wav.scp" for source in sources]
    return find_folder(config.kind, config.path, data_root, config.folder, holds, files)


def sources(config: Config, root: Path) -> list[Path]:
    """The tables of all data directories, those that are absent too: they would be read if they were there."""
    folders = sorted({split.source for split in config.splits.values()})
    return [root / folder / table for folder in folders for table in TABLES]


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[Utterance | SetAside]:
    """Yield the utterances of one split in the order of its data directory, and before them what could not be one.

    UserError if a key stands in a table with two values. ``audio_dir`` and ``jobs`` are not used: nothing is written,
    and validate.py opens the audio.
    """
    part = config.splits[split]
    yield from items_of_split(read_directory(root, part.source, config.language), part, seed)


def read_directory(root: Path, source: str, language: str | None) -> Iterator[Utterance | SetAside]:
    """The utterances of one data directory ``root/source``, in the order of segments or wav.scp."""
    folder = root / source
    listed, audio = _recordings(folder / "wav.scp", root)
    text, speakers = _table(folder / "text"), _table(folder / "utt2spk")
    languages, genders = _table(folder / "utt2lang", str.lower), _table(folder / "spk2gender")
    seconds = _table(folder / "reco2dur", _number)
    if not languages and language is None:
        raise UserError(f"{folder} has no utt2lang: set the corpus's key `language`, for example `language: en`")
    segments = folder / "segments"
    segmented = segments.is_file()
    if segmented:
        listed = _segments(segments)
    for line, utterance, recording, start, end in listed:
        where = f"{segments if segmented else folder / 'wav.scp'} line {line}"
        # Kaldi's convention where speakers are not known: each utterance is a speaker.
        speaker = speakers.get(utterance) if speakers else utterance
        code = languages.get(utterance, language)
        if recording not in audio:
            yield SetAside(utterance, "no recording", f"{where}: {recording} is not in wav.scp")
        elif speaker is None:
            yield SetAside(utterance, "no speaker", f"{where}: {utterance} is not in utt2spk")
        elif code is None:
            yield SetAside(
                utterance, "no language", f"{where}: {utterance} is not in utt2lang, and no `language` is set"
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
            yield SetAside(utterance, "no recording", f"{folder / 'text'}: a transcript without audio")


Listed = list[tuple[int, str, str, float, float | None]]
"""Line number, utterance, recording, start and end in seconds (None: where the recording ends)."""


def _recordings(path: Path, root: Path) -> tuple[Listed, dict[str, str]]:
    """Every recording of wav.scp as an utterance, and recording -> path of its audio."""
    listed: Listed = []
    audio: dict[str, tuple[int, str]] = {}
    for line, recording, value in _pairs(path):
        if value.startswith("|") or value.endswith("|"):
            raise UserError(
                f"{path} line {line}: {recording} is a piped command ({value}), which is not run: commands inside data "
                f"are refused. Write the audio to files (wav-copy in Kaldi, or the command itself) and name those"
            )
        place = os.path.normpath(root / value)
        _once(audio, recording, line, place, path, "the recording")
        listed.append((line, recording, recording, 0.0, None))
    return listed, {recording: place for recording, (_, place) in audio.items()}


def _once(seen: dict[str, tuple[int, Any]], name: str, line: int, value: Any, path: Path, what: str) -> None:
    """Remember the value of a key and its line; UserError where it had another value, as Kaldi refuses such tables."""
    first, known = seen.setdefault(name, (line, value))
    if known != value:
        refuse_twice(path, f"{what} {name}", (first, line), (known, value))


def _pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, key and rest of each line. A key with nothing behind it: an empty transcript, which is legal."""
    for line, content in read_lines(path):
        name, _, value = content.strip().replace("\t", " ").partition(" ")
        if not value and path.name != "text":
            raise UserError(f"{path} line {line}: expected `key value`, got only {name!r}")
        yield line, name, value.strip()


def _table(path: Path, convert: Callable[[str], Any] = str) -> dict[str, Any]:
    """Key -> rest; empty where the file is absent. UserError where a key has two values."""
    seen: dict[str, tuple[int, Any]] = {}
    for line, name, value in _pairs(path) if path.is_file() else ():
        try:
            made = convert(value)
        except ValueError as error:
            raise UserError(f"{path} line {line}: {name}: {error}") from error
        _once(seen, name, line, made, path, "the key")
    return {name: value for name, (_, value) in seen.items()}


def _segments(path: Path) -> Listed:
    """An end of -1 (where the recording ends) becomes None."""
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
        _once(seen, fields[0], line, (fields[1], start, end), path, "the utterance")
        rows.append((line, fields[0], fields[1], start, None if end == -1 else end))
    return rows


def _number(value: str) -> float:
    """Seconds; ValueError for what is not a finite number."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a number of seconds")
    return number
