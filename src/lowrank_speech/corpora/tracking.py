"""Has the audio of a split changed since the stage read it? A record of what was read, and a cheap look at the disk.

The tables of a corpus are small, and hashed. Its audio may be a million files, at which planning must not look one by
one. The record, ``{split}.audio.json`` beside the split's manifest, says how the audio is watched (key ``track``):

    auto  size and modification time of every file, up to 10,000 files; above that the modification times of their
          folders, which see a file that is added, removed, renamed or replaced, but not one that is written over
    stat  size and modification time of every file, however many
    hash  the content of every file, which is read each time
    none  nothing

    >>> changed("exp/mine/corpus/mine/train.audio.json")
    'audio/a7.flac has changed'

    auto  size and modification time of every file, up to 10,000 files; above that the modification times of the
calls ``changed`` when it plans.
"""

# Strings: to make a Path of each of many names takes longer than to look at the file.

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MANY = 10_000
"""Files, or folders, that ``auto`` looks at one by one."""


def record(root: str | Path, files: Iterable[str], track: str, listed: Sequence[str | Path] = ()) -> dict[str, Any]:
    """What there is to be recorded of the audio ``files`` of a corpus in the folder ``root``.

    ``listed``: folders whose files all belong to the corpus, new ones too.
    """
    found = {entry.path for folder in listed for entry in os.scandir(folder) if entry.is_file()}
    paths = sorted({*files, *found})
    watched = {"auto": "stat" if len(paths) <= MANY else "folders"}.get(track, track)
    folders = {os.fspath(path) for path in listed} if watched != "none" else set()
    if watched == "folders":
        folders |= _few({os.path.dirname(path) for path in paths})
    each = paths if watched in ("stat", "hash") else []
    return {
        "track": watched,
        "root": str(root),
        "count": len(paths),
        "folders": {_relative(path, root): _time(path) for path in sorted(folders)},
        "files": {_relative(path, root): _state(path, watched) for path in each},
    }


def changed(path: str | Path) -> str | None:
    """What is not as the record at ``path`` has it, in a few words; None where all is as it was."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        root, track = found["root"], found["track"]
        if not os.path.isdir(root):  # not mounted here: nothing can be said
            return None
        for name, time in found["folders"].items():
            if _time(os.path.join(root, name)) != time:
                return f"files were added to or removed from {name}"
        for name, state in found["files"].items():
            now = _state(os.path.join(root, name), track)
            if now != state:
                return f"{name} {'is gone' if now is None else 'is new' if state is None else 'has changed'}"
    except FileNotFoundError:
        return "there is no record of its audio"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "the record of its audio cannot be read"
    return None


def tables(paths: Iterable[str | Path], root: str | Path | None) -> dict[str, Path]:
    """Name below ``root`` -> path, of those of ``paths`` that exist: the files whose content a rerun hangs on."""
    return {_relative(path, root or "."): Path(path) for path in paths if os.path.isfile(path)}


def _few(folders: set[str]) -> set[str]:
    """The folders, or those above them where they are too many to look at."""
    while len(folders) > MANY:
        above = {os.path.dirname(folder) for folder in folders}
        if above == folders:
            break
        folders = above
    return folders


def _state(path: str, track: str) -> list[int] | str | None:
    """None for a file that is not there: it may come."""
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
    """Below ``root``, else as it is."""
    name, above = os.fspath(path), os.path.join(os.fspath(root), "")
    return name.removeprefix(above)
