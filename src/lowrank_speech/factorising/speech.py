"""Read speech from the formats that people have: to calibrate on, or with transcripts to evaluate on.

    cuts.jsonl.gz      Lhotse cuts (.jsonl, .jsonl.gz), with features or recordings
    data/train         a Kaldi data directory: wav.scp, and segments and utt2lang if they exist
    train.tsv          a table (.tsv, .csv) with a header: a column of audio paths, and optionally columns of
                       languages, speakers and transcripts
    speech/            a folder of audio files, searched recursively; or one audio file

For calibration, except from cuts, a share of the files is drawn by the seed before any file is opened.
"""

import csv
import logging
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lowrank_speech.errors import UserError

log = logging.getLogger(__name__)

CUTS, TABLES = (".jsonl", ".jsonl.gz"), (".tsv", ".csv")
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".sph", ".aiff", ".aif", ".au")
AUDIO_COLUMNS = ("audio", "path", "wav", "file", "filename", "file_name", "audio_path", "audio_filepath")
LANGUAGE_COLUMNS = ("language", "lang", "locale")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id")
TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription", "normalized_text")
UNKNOWN = "und"  # ISO 639: undetermined
# Files drawn per requested utterance, because some files may be too long or broken.
SPARE = 4


class Piece(NamedTuple):
    """A part of a recording from ``start`` to ``end`` seconds; None: to its end."""

    id: str
    path: Path
    start: float = 0.0
    end: float | None = None
    language: str | None = None
    speaker: str | None = None
    text: str | None = None


def kind_of(path: Path) -> str:
    """``cuts``, ``kaldi``, ``table``, ``folder`` or ``file``. Raises UserError for anything else. Opens no file."""
    takes = "Lhotse cuts (.jsonl, .jsonl.gz), a Kaldi data directory, a table (.tsv, .csv), or a folder of audio"
    if not path.exists():
        raise UserError(f"{path} does not exist; give {takes}")
    if path.is_dir():
        return "kaldi" if (path / "wav.scp").is_file() else "folder"
    if path.name.endswith(CUTS):
        return "cuts"
    if path.suffix.lower() in TABLES:
        return "table"
    if path.suffix.lower() in SUFFIXES:
        return "file"
    raise UserError(f"{path} is not in a supported format; give {takes}")


def speech_of(path: Path, utterances: int, seed: int) -> Iterable[Any]:
    """Lhotse cuts from ``path``. Except for cuts files, draws up to ``SPARE`` times as many as ``utterances``.

    Raises UserError if there are no recordings, or none of the drawn ones can be opened.
    """
    kind = kind_of(path)
    if kind == "cuts":
        from lowrank_speech.features.store import load_cuts

        return load_cuts(path)
    pieces = {"kaldi": _kaldi, "table": _table, "folder": _folder, "file": _file}[kind](path)
    chosen = sorted(pieces, key=lambda piece: piece.id)
    random.Random(seed).shuffle(chosen)
    chosen = chosen[: SPARE * utterances]
    return _opened(chosen, path)


def transcribed(path: Path, most: int | None = None, seed: int = 1) -> list[Any]:
    """Lhotse cuts from ``path`` with their transcripts, sorted by id; leaves out utterances without one.

    ``most``: only so many, drawn by ``seed``.

    Raises UserError if ``path`` has no transcripts, or none of its recordings can be opened.
    """
    kind = kind_of(path)
    if kind == "cuts":
        from lowrank_speech.features.store import load_cuts

        found = [cut for cut in load_cuts(path) if len(cut.supervisions) == 1 and cut.supervisions[0].text]
        found.sort(key=lambda cut: cut.id)
    elif kind in ("folder", "file"):
        found = []
    else:
        pieces = {"kaldi": _kaldi, "table": _table}[kind](path)
        found = sorted((piece for piece in pieces if piece.text), key=lambda piece: piece.id)
    if not found:
        need = {
            "cuts": "give cuts with one supervision each, and its text",
            "kaldi": "add the file `text`",
            "table": f"call the column of transcripts {TEXT_COLUMNS[0]}",
        }.get(kind, "give a table (.tsv), or a Kaldi data directory with the file `text`")
        raise UserError(f"{path} has no transcripts to compare with; {need}")
    if most is not None and most < len(found):
        found = sorted(random.Random(seed).sample(found, most), key=lambda item: item.id)
    return found if kind == "cuts" else _opened(found, path)


def _opened(pieces: list[Piece], path: Path) -> list[Any]:
    """The cuts of the ``pieces`` that can be opened. Raises UserError if there is none."""
    cuts = list(_cuts(pieces))
    if not cuts:
        raise UserError(f"{path}: none of {len(pieces)} recordings can be opened; see the warnings above")
    return cuts


def _cuts(pieces: Iterable[Piece]) -> Iterator[Any]:
    from lhotse import MonoCut, SupervisionSegment

    for piece in pieces:
        try:
            recording = _recording(piece)
            end = recording.duration if piece.end is None else min(piece.end, recording.duration)
            if not end > piece.start:
                raise ValueError(f"it is {recording.duration:g} s long, and the utterance begins at {piece.start:g} s")
            channel = recording.channel_ids[0]
        except Exception as error:  # each of lhotse's back ends raises its own exceptions
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            log.warning("leaving out %s: %s", piece.path, reason)
            continue
        supervision = SupervisionSegment(
            *(piece.id, recording.id, 0.0, end - piece.start, channel),
            text=piece.text,
            language=piece.language or UNKNOWN,
            speaker=piece.speaker,
        )
        yield MonoCut(piece.id, piece.start, end - piece.start, channel, [supervision], recording=recording)


def _recording(piece: Piece) -> Any:
    """The lhotse Recording of a piece, with its decoded length. Raises AudioError where the file's header is wrong."""
    from lhotse import AudioSource, Recording

    from lowrank_speech.corpora.audio import AudioError, Header, open_once

    match open_once(str(piece.path)):
        case Header() as found:
            source = AudioSource("file", list(range(found.channels)), str(piece.path))
            return Recording(piece.id, [source], found.rate, found.frames, found.seconds)
        case AudioError() as error if error.reason != "unreadable audio":
            raise error
        case _:  # not a format of libsndfile: lhotse has other back ends
            return Recording.from_file(piece.path, recording_id=piece.id)


def _kaldi(folder: Path) -> Iterator[Piece]:
    from lowrank_speech.corpora.common import Utterance
    from lowrank_speech.corpora.kaldi import read_directory

    root = folder.resolve().parent
    for item in read_directory(root, folder.resolve().name, UNKNOWN):
        if isinstance(item, Utterance):
            audio = Path(item.audio)
            if not audio.is_file():  # Kaldi's own paths are relative to the folder in which its scripts run
                audio = Path.cwd() / os.path.relpath(audio, root)
            yield Piece(item.id, audio, item.start, item.end, item.language, item.speaker, item.text)


def _table(file: Path) -> Iterator[Piece]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            # As the reader of corpora, which knows no quotes: one in a transcript must not swallow the next rows.
            tabs = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
            rows = list(csv.DictReader(opened, **({} if file.suffix.lower() == ".csv" else tabs)))
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 at byte {error.start}; convert it, for example with iconv") from error
    if not rows:
        raise UserError(f"{file}: expected a header line and a row for each utterance")
    header = [name for name in rows[0] if name is not None]

    def column(names: Sequence[str]) -> str | None:
        return next((name for name in header if name.strip().lower() in names), None)

    audio = column(AUDIO_COLUMNS)
    others = {"language": LANGUAGE_COLUMNS, "speaker": SPEAKER_COLUMNS, "text": TEXT_COLUMNS}
    known = {fact: name for fact, names in others.items() if (name := column(names)) is not None}
    if audio is None:
        raise UserError(
            f"{file}: its header ({', '.join(header)}) has no column of audio paths; call that column "
            f"{AUDIO_COLUMNS[0]}"
        )
    for number, row in enumerate(rows, start=2):
        value = (row[audio] or "").strip()
        if value:
            path = Path(value) if Path(value).is_absolute() else file.parent / value
            facts = {fact: (row[name] or "").strip() or None for fact, name in known.items()}
            if facts.get("language"):
                facts["language"] = facts["language"].lower()
            yield Piece(f"{number}:{value}", path, **facts)


def _folder(folder: Path) -> list[Piece]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise UserError(
            f"{folder}: contains neither wav.scp nor audio files ({', '.join(SUFFIXES)}); give a folder with audio"
        )
    return [Piece(path.relative_to(folder).as_posix(), path) for path in found]


def _file(path: Path) -> list[Piece]:
    return [Piece(path.name, path)]
