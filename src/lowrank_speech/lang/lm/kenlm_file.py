"""KenLM's binary files: recognise them, and read order, counts and words without the package kenlm.

The header has a magic line, values that show the byte order, the order n, and the n counts (8 bytes each). The words
follow the model at the end of the file, as strings that end with a zero byte; the first is <unk>.

Source: lm/binary_format.cc of KenLM (format version 5).
"""

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm.ngrams import UNK

MAGIC = b"mmap lm http://kheafield.com/code"
VERSION = MAGIC + b" format version 5\n\x00"
ORDER_AT, HAS_WORDS_AT, COUNTS_AT = 88, 100, 108
"""Offsets in the header, in bytes."""


class Binary(NamedTuple):
    """What a KenLM binary says about itself."""

    counts: tuple[int, ...]
    words: tuple[str, ...]

    @property
    def order(self) -> int:
        return len(self.counts)


def is_binary(path: Path) -> bool:
    """Whether a file starts like a KenLM binary."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def describe(path: Path) -> Binary:
    """Read the header and the words. UserError: the file is truncated, or of another version."""
    broken = UserError(f"{path}: the KenLM binary is truncated or damaged; copy or build it again")
    with path.open("rb") as file:
        header = file.read(COUNTS_AT)
        if not header.startswith(VERSION):
            raise UserError(
                f"{path}: this KenLM binary is incomplete, or not of format version 5; build it again with a current "
                f"build_binary, or give the ARPA file"
            )
        if len(header) < COUNTS_AT:
            raise broken
        order, has_words = header[ORDER_AT], header[HAS_WORDS_AT]
        if not has_words:
            raise UserError(
                f"{path}: this KenLM binary has no vocabulary; build it again with it, or give the ARPA file"
            )
        counts = file.read(8 * order)
        if not order or len(counts) < 8 * order:
            raise broken
        numbers = struct.unpack(f"<{order}Q", counts)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.rfind(UNK.encode() + b"\x00")
            if start < 0 or content[len(content) - 1] != 0:
                raise broken
            words = content[start : len(content) - 1].split(b"\x00")
    # A model that was made without <unk> has it among the words, but not in the count.
    if len(words) - numbers[0] not in (0, 1):
        raise broken
    try:
        return Binary(numbers, tuple(word.decode("utf-8") for word in words))
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: the words of the KenLM binary are not UTF-8; build it again from UTF-8 text"
        ) from error
