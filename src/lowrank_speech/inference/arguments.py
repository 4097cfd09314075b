"""The recordings that a command line names: files, folders, patterns, ``-`` for standard input.

recordings(["a.wav", "talks", "calls/*.mp3", "-"])
"""

import glob
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lowrank_speech.errors import UserError

AUDIO = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".sph", ".aiff", ".aif", ".au", ".caf"),
    *(".w64", ".amr", ".mka", ".ac3", ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".3gp", ".ts"),
)
"""Suffixes of the files that are taken from a folder. A file that is named itself may have any."""
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Named:
    """A recording on a command line.

    name   as it appears in the output
    path   of the file; None: standard input
    stem   of the file that has its result, relative to the folder of the outputs
    problem   why there is no recording; then it is a failure
    """

    name: str
    path: Path | None
    stem: Path
    problem: str | None = None


def recordings(arguments: Sequence[str]) -> tuple[list[Named], list[str]]:
    """The recordings in the order of ``arguments``, each file once, and remarks on what is left out.

    UserError: there is none at all.
    """
    found: list[Named] = []
    remarks, seen = [], {}
    for argument in arguments:
        for one in _of(argument):
            key = STANDARD_INPUT if one.path is None else str(one.path.resolve())
            if one.problem is None and key in seen:
                remarks.append(f"{one.name} is given twice; it is read once")
                continue
            seen[key] = one
            found.append(one)
    if all(one.problem is not None and one.path is None for one in found):
        raise UserError("; ".join(str(one.problem) for one in found))
    return found, remarks


def check_stems(found: Sequence[Named]) -> list[Named]:
    """``found`` with different stems. UserError: two recordings would be written to the same file."""
    stems: dict[Path, list[Named]] = {}
    for one in found:
        stems.setdefault(one.stem, []).append(one)
    result, taken = [], {}
    for one in found:
        # a.wav and a.mp3: keep the suffixes
        alone = len(stems[one.stem]) == 1 or one.path is None
        stem = one.stem if alone else one.stem.with_name(one.path.name)
        if stem in taken:
            raise UserError(
                f"{taken[stem]} and {one.name} would both be written to {stem}; give the folder that contains them "
                f"instead, or transcribe them into different folders"
            )
        taken[stem] = one.name
        result.append(Named(one.name, one.path, stem, one.problem))
    return result


def _of(argument: str) -> Iterator[Named]:
    path = Path(argument).expanduser()
    if argument == STANDARD_INPUT:
        yield Named("-", None, Path("stdin"))
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO and file.is_file())
        if not files:
            yield _missing(argument, f"{argument} has no audio files (such as .wav, .flac, .mp3, .mp4)")
        for file in files:
            yield Named(str(file), file, file.relative_to(path).with_suffix(""))
    elif not path.exists() and glob.has_magic(argument):
        files = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (may be absolute)
        files = [file for file in files if file.is_file()]
        if not files:
            yield _missing(argument, f"{argument} matches no file")
        for file in files:
            yield Named(str(file), file, Path(file.stem))
    else:
        yield Named(argument, path, Path(path.stem))


def _missing(argument: str, problem: str) -> Named:
    return Named(argument, None, Path(argument), problem)


@contextmanager
def standard_input() -> Iterator[Path]:
    """A file with what comes from standard input, because audio has to be read more than once."""
    if sys.stdin.isatty():
        raise UserError("- reads a recording from standard input, which is a terminal; redirect a file into it")
    with tempfile.NamedTemporaryFile(prefix="lowrank-speech-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        file.flush()
        yield Path(file.name)
