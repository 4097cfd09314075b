"""Read text files for language models: one sentence per line, UTF-8, plain or gzip."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from lowrank_speech.errors import UserError

MARK = "\ufeff"
"""Byte order mark, which some editors write at the start of a file."""


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line. UserError: the file does not exist, is damaged or not UTF-8."""
    if not path.is_file():
        raise UserError(f"the text file {path} does not exist; correct the path in `text`")
    number = 0
    with path.open("rb") as start:
        packed = start.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8").removeprefix(MARK)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}, line {number}: byte {error.start + 1} is not UTF-8; convert the file to UTF-8"
            ) from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{path}, after line {number}: the file is truncated or damaged: {error}") from error
