"""Walk folders of audio: files by suffix, sorted, through links, with names that cannot be used set aside.

>>> list(audio_files(root / "train"))
[PosixPath('.../train/anna/a 1.wav'), SetAside('b\\udcff.wav', 'bad id', ...)]
"""

import os
from collections.abc import Iterator
from pathlib import Path

from lowrank_speech.corpora.common import SetAside
from lowrank_speech.corpora.layouts import Layout, name_id, unreadable

AUDIO = frozenset(
    (
        *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".sph", ".aif", ".aiff", ".aifc", ".au", ".snd", ".w64"),
        *(".rf64", ".caf", ".m4a", ".mp4", ".aac", ".wma", ".amr", ".webm"),
    )
)
"""Suffixes of audio files, in lower case. Formats that cannot be decoded are set aside when they are opened."""


def is_audio(path: Path) -> bool:
    """Whether the file has the suffix of an audio format."""
    return path.suffix.lower() in AUDIO


def files(folder: Path, kind: str) -> Iterator[Path | SetAside]:
    """Yield the files below ``folder``, sorted by path; hidden files and folders are skipped, and links are followed.

    A link to a folder above itself ends there. UserError: a folder cannot be read. SetAside: the name is not UTF-8,
    so no table can hold it.
    """
    yield from _files(folder, kind, frozenset())


def _files(folder: Path, kind: str, above: frozenset[tuple[int, int]]) -> Iterator[Path | SetAside]:
    try:
        found = folder.stat()
        here = (found.st_dev, found.st_ino)
        if here in above:
            return
        with os.scandir(folder) as entries:
            listed = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise unreadable(kind, folder, error) from error
    for name, is_folder in listed:
        path = folder / name
        if is_folder:
            yield from _files(path, kind, above | {here})
        elif name.isprintable() or _is_text(name):
            yield path
        else:
            shown = name.encode("utf-8", "backslashreplace").decode()
            where = str(path).encode("utf-8", "backslashreplace").decode()
            yield SetAside(name_id(shown), "bad name", f"{where}: the name is not UTF-8; rename the file")


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def audio_files(folder: Path, kind: str) -> Iterator[Path | SetAside]:
    """The audio files among ``files``."""
    for found in files(folder, kind):
        if isinstance(found, SetAside) or is_audio(found):
            yield found


def folders(folder: Path, kind: str) -> list[Path]:
    """``folder`` and all folders with files below it, sorted, for a kind's ``listed``."""
    return sorted({folder, *(found.parent for found in files(folder, kind) if isinstance(found, Path))})


def folders_of_sources(config: Layout, root: Path) -> list[Path]:
    """The ``folders`` of all splits, for kinds whose sources are folders of which every file counts."""
    used = {split.source for split in config.splits.values()}
    return sorted({path for source in used for path in folders(root / source, config.kind)})


def by_stem(folder: Path, kind: str) -> dict[str, list[Path]]:
    """Name without suffix -> audio files of that name anywhere below ``folder``."""
    found: dict[str, list[Path]] = {}
    for path in audio_files(folder, kind):
        if isinstance(path, Path):
            found.setdefault(path.stem, []).append(path)
    return found


def relative_id(path: Path, folder: Path) -> str:
    """An id from the path of a file relative to ``folder``, without suffix: anna/a%201."""
    return name_id(path.relative_to(folder).with_suffix("").as_posix())


def one_of(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path:
    """The first existing file ``stem`` + suffix in ``folder``; the path with the first suffix if there is none."""
    paths = [folder / f"{stem}{suffix}" for suffix in suffixes]
    return next((path for path in paths if path.exists()), paths[0])
