"""Detect changes to the audio of a split since the stage corpus read it, without reading the audio again.

The tables of a corpus are small, so they are hashed. Its audio may be a million files, which planning must not visit
one by one. The record, ``{split}.audio.json`` beside the split's manifest, says what is compared (key ``track``):

    auto  size and modification time of every file, up to 10,000 files; above that, the modification times of their
          folders, which change if a file is added, removed, renamed or replaced, but not if it is overwritten in place
    stat  size and modification time of every file, however many there are
          (up to 10,000 files, a file with another time is read: with equal content it has not changed)
    hash  the content of every file, which is read each time
    none  nothing

    >>> changed("exp/mine/corpus/mine/train.audio.json")
    'audio/a7.flac has changed'

The workflow calls ``changed`` while it plans, so this module imports only the standard library.
"""

# Paths are strings here, because creating a Path object takes longer than a stat.

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MANY = 10_000
"""Maximum number of files (or folders) that ``auto`` visits one by one."""


def record(root: str | Path, files: Iterable[str], track: str, listed: Sequence[str | Path] = ()) -> dict[str, Any]:
    """The record of the audio ``files`` of a corpus in the folder ``root``, as JSON.

    ``listed``: folders in which every file belongs to the corpus, including files that are added later.
    """
    found = {entry.path for folder in listed for entry in os.scandir(folder) if entry.is_file() and _named(entry.path)}
    paths = sorted({*files, *found})
    watched = {"auto": "stat" if len(paths) <= MANY else "folders"}.get(track, track)
    folders = {os.fspath(path) for path in listed} if watched != "none" else set()
    if watched == "folders":
        folders |= _limited({os.path.dirname(path) for path in paths})
    each = paths if watched in ("stat", "hash") else []
    hashed = watched == "stat" and len(paths) <= MANY
    return {
        "track": watched,
        "root": str(root),
        "count": len(paths),
        "folders": {_relative(path, root): _time(path) for path in sorted(folders)},
        "files": {_relative(path, root): _state(path, watched) for path in each},
        "contents": {_relative(path, root): _state(path, "hash") for path in each} if hashed else {},
    }


def changed(path: str | Path) -> str | None:
    """The first difference between the disk and the record at ``path``, in a few words; None if there is none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        root, track, contents = found["root"], found["track"], found.get("contents", {})
        if not os.path.isdir(root):  # not mounted on this machine, so nothing can be compared
            return None
        for name, time in found["folders"].items():
            if _time(os.path.join(root, name)) != time:
                return f"files were added to or removed from {name}"
        for name, state in found["files"].items():
            file, content = os.path.join(root, name), contents.get(name)
            now = _state(file, track)
            if now != state and (content is None or _state(file, "hash") != content):
                return f"{name} {'is gone' if now is None else 'is new' if state is None else 'has changed'}"
    except FileNotFoundError:
        return "the record of its audio files is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "the record of its audio files cannot be read"
    return None


def tables(paths: Iterable[str | Path], root: str | Path | None) -> dict[str, Path]:
    """Name relative to ``root`` -> path, for those of ``paths`` that exist: files that are compared by content."""
    return {_relative(path, root or "."): Path(path) for path in paths if os.path.isfile(path)}


def _named(path: str) -> bool:
    """Whether JSON can hold the path. Readers set files aside whose name is not UTF-8."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _limited(folders: set[str]) -> set[str]:
    """The folders, or their parents if there are too many folders to visit."""
    while len(folders) > MANY:
        above = {os.path.dirname(folder) for folder in folders}
        if above == folders:
            break
        folders = above
    return folders


def _state(path: str, track: str) -> list[int] | str | None:
    """Hash, or size and modification time; None for a file that does not exist (yet)."""
    try:
        if track == "hash":
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        found = os.stat(path)
        return [found.st_size, found.st_mtime_ns]
    except OSError:
        return None


def _time(path: str | Path) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def _relative(path: str | Path, root: str | Path) -> str:
    """``path`` relative to ``root`` if it is below it, else unchanged."""
    name, above = os.fspath(path), os.path.join(os.fspath(root), "")
    return name.removeprefix(above)
