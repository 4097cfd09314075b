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

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lowrank_speech.corpora.common import SetAside, Utterance, clean_text, find_folder, read_lines
from lowrank_speech.corpora.parts import SplitConfig, check_splits, select
from lowrank_speech.corpora.validate import Checks
from lowrank_speech.errors import UserError

log = logging.getLogger("lowrank_speech")


@dataclass(frozen=True)
class Config:
    """A corpus of Kaldi data directories."""

    kind: Literal["kaldi"]
    splits: dict[str, SplitConfig]
    path: str | None = None
    """The folder above the data directories; null: ``folder`` below $SPEECH_DATA."""
    folder: str = "speechocean762"
    language: str | None = None
    """ISO code of what utt2lang does not name; without utt2lang, of everything."""
    checks: Checks = field(default_factory=Checks)

    def __post_init__(self):
        check_splits(self.splits)


def locate(config: Config, data_root: Path | None) -> Path:
    """The folder above the data directories, absolute; UserError if it or a data directory is absent."""
    sources = sorted({split.source for split in config.splits.values()})
    holds = f"Kaldi data directories with wav.scp, text, utt2spk: {', '.join(sources)}"
    files = [f"{source}/wav.scp" for source in sources]
    return find_folder(config.kind, config.path, data_root, config.folder, holds, files)


def read(
    config: Config, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> Iterator[tuple[str, Utterance | SetAside]]:
    """Yield (split, utterance or what could not be one), split by split, in the order of the data directories.

    ``audio_dir`` and ``jobs`` are not used: nothing is written, and validate.py opens the audio.
    """
    for source in dict.fromkeys(split.source for split in config.splits.values()):
        splits = {name: split for name, split in config.splits.items() if split.source == source}
        items = list(read_directory(root, source, config.language))
        utterances = [item for item in items if isinstance(item, Utterance)]
        # What is no utterance has no part: it is listed once, under all splits of its source.
        yield from (("+".join(splits), item) for item in items if isinstance(item, SetAside))
        for name, split in splits.items():
            yield from ((name, utterance) for utterance in select(utterances, split, seed))


def read_directory(root: Path, source: str, language: str | None) -> Iterator[Utterance | SetAside]:
    """The utterances of one data directory ``root/source``, in the order of segments or wav.scp."""
    folder = root / source
    recordings = _pairs(folder / "wav.scp")
    for _, recording, value in recordings:
        _refuse_commands(folder / "wav.scp", recording, value)
    audio = {recording: os.path.normpath(root / value) for _, recording, value in recordings}
    text, speakers = _table(folder / "text"), _table(folder / "utt2spk")
    languages, genders = _table(folder / "utt2lang"), _table(folder / "spk2gender")
    seconds = {key: _number(folder / "reco2dur", key, value) for key, value in _table(folder / "reco2dur").items()}
    if not languages and language is None:
        raise UserError(f"{folder} has no utt2lang: set the corpus's key `language`, for example `language: en`")
    segmented = (folder / "segments").is_file()
    listed = _segments(folder / "segments") if segmented else [(n, r, r, 0.0, None) for n, r, _ in recordings]
    for line, utterance, recording, start, end in listed:
        where = f"{folder / ('segments' if segmented else 'wav.scp')} line {line}"
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


def _refuse_commands(path: Path, recording: str, value: str) -> None:
    if value.startswith("|") or value.endswith("|"):
        raise UserError(
            f"{path}: {recording} is a piped command ({value}), which is not run: commands inside data are refused. "
            "Write the audio to files (wav-copy in Kaldi, or the command itself) and name those"
        )


def _pairs(path: Path) -> list[tuple[int, str, str]]:
    """Line number, key and rest of each line. A key alone has an empty rest (an empty transcript is legal)."""
    rows = []
    for line, content in read_lines(path):
        key, _, value = content.strip().replace("\t", " ").partition(" ")
        if not value and path.name != "text":
            raise UserError(f"{path} line {line}: expected `{key} value`, got only {key!r}")
        rows.append((line, key, value.strip()))
    return rows


def _table(path: Path) -> dict[str, str]:
    """Key -> rest; empty where the file is absent. Of several lines for a key the first stands."""
    table: dict[str, str] = {}
    for line, key, value in _pairs(path) if path.is_file() else []:
        if table.setdefault(key, value) != value:
            log.warning("%s line %d: %s stands here again with another value; the first is used", path, line, key)
    return table


def _segments(path: Path) -> list[tuple[int, str, str, float, float | None]]:
    """Line number, utterance, recording, start and end in seconds; an end of -1 (to the end) becomes None."""
    rows = []
    for line, content in read_lines(path):
        fields = content.split()
        if len(fields) != 4:
            raise UserError(f"{path} line {line}: expected `utterance recording start end`, got {content!r}")
        start, end = (_number(path, f"line {line}", value) for value in fields[2:])
        rows.append((line, fields[0], fields[1], start, None if end == -1 else end))
    return rows


def _number(path: Path, key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{path} {key}: {value!r} is no number of seconds")
    return number
