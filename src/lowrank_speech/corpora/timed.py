"""Transcripts with times: NIST's STM and CTM files, and Praat's TextGrid files.

Each reader yields ``Part``s, or ``SetAside`` for lines that cannot be used. Sources: the manual of NIST's SCTK
(infmts.htm) for STM and CTM; Praat's manual, "TextGrid file formats", according to which only free-standing numbers,
texts in double quotes and flags in angle brackets count, so the long and the short form read alike."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lowrank_speech.corpora.common import SetAside, read_lines
from lowrank_speech.corpora.layouts import name_id, one_line
from lowrank_speech.corpora.records import number
from lowrank_speech.errors import UserError

IGNORED = frozenset({"ignore_time_segment_in_scoring", "inter_segment_gap"})
"""Texts and speakers of STM lines that mark time without a transcript."""
TOKEN = re.compile(r'"((?:[^"]|"")*)"|<(exists|absent)>|(?<![^\s])([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![^\s])')
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class Part(NamedTuple):
    """A part of a recording, in seconds."""

    recording: str
    channel: str | None
    speaker: str | None
    start: float
    end: float
    text: str | None
    where: str


def read_stm(path: Path) -> Iterator[Part | SetAside]:
    """Lines ``recording channel speaker start end [<labels>] text``."""
    for line, content in read_lines(path):
        if content.lstrip().startswith(";;"):
            continue
        where, fields = f"{path} line {line}", content.split(maxsplit=5)
        if len(fields) < 5:
            yield _malformed(
                path, line, f"expected recording, channel, speaker, start, end and text, got {content[:100]!r}"
            )
            continue
        recording, channel, speaker, *times = fields[:5]
        text = re.sub(r"^<[^>]*>\s*", "", fields[5] if len(fields) > 5 else "").strip()
        if speaker in IGNORED or text in IGNORED:
            yield SetAside(name_id(f"{recording}-{line}"), "ignored segment", f"{where}: the line has no transcript")
            continue
        try:
            start, end = (_seconds(value) for value in times)
        except ValueError as error:
            yield _malformed(path, line, f"{recording}: {str(error)!r} is not a number of seconds")
            continue
        yield Part(recording, channel, speaker, start, end, one_line(text), where)


def read_ctm(path: Path, pause: float, longest: float) -> Iterator[Part | SetAside]:
    """Lines ``recording channel start duration word [confidence]``, joined to parts.

    A part ends before a ``pause`` (seconds) between two words, and before it would be longer than ``longest``.
    """
    words: list[Part] = []
    for line, content in read_lines(path):
        if content.lstrip().startswith(";;"):
            continue
        fields = content.split()
        if len(fields) < 5:
            yield _malformed(
                path, line, f"expected recording, channel, start, duration and word, got {content[:100]!r}"
            )
            continue
        recording, channel, first, length, word = fields[:5]
        try:
            start, seconds = _seconds(first), _seconds(length)
        except ValueError as error:
            yield _malformed(path, line, f"{recording}: {str(error)!r} is not a number of seconds")
            continue
        words.append(Part(recording, channel, None, start, start + seconds, word, f"{path} line {line}"))
    words.sort(key=lambda part: (part.recording, part.channel, part.start))
    joined: list[Part] = []
    for word in words:
        last = joined[-1] if joined else None
        if (
            last is None
            or (last.recording, last.channel) != (word.recording, word.channel)
            or word.start - last.end > pause
            or word.end - last.start > longest
        ):
            joined.append(word)
        else:
            joined[-1] = last._replace(end=max(last.end, word.end), text=f"{last.text} {word.text}")
    yield from joined


def read_textgrid(path: Path, tier: str | None) -> Iterator[Part | SetAside]:
    """The intervals with text of a tier of a TextGrid file; the recording is the name of the file.

    ``tier``: its name; None: the only tier with intervals. UserError: the tier is not there, or not clear.
    """
    name = path.name.removesuffix(path.suffix)
    try:
        tiers = _tiers(_decoded(path))
    except (ValueError, StopIteration, OSError) as error:
        why = getattr(error, "strerror", None) or str(error) or "the file ends early"
        yield SetAside(name_id(name), "unreadable transcript", f"{path}: not a TextGrid file: {why}")
        return
    found = [(label, parts) for label, parts in tiers if tier in (None, label)]
    if len(found) != 1:
        names = ", ".join(label for label, _ in tiers) or "none"
        why = "there are several" if found else f"there is no tier {tier!r}" if tier else "there is none"
        raise UserError(
            f"{path}: which tier of intervals has the text is not clear, because {why}; set the corpus's key `tier` to "
            f"one of: {names}"
        )
    for count, (start, end, text) in enumerate(found[0][1], start=1):
        if one_line(text):
            yield Part(name, None, None, start, end, one_line(text), f"{path} interval {count}")


def _tiers(text: str) -> list[tuple[str, list[tuple[float, float, str]]]]:
    """Name and intervals of each tier of intervals. ValueError or StopIteration: the text is not a TextGrid."""
    tokens = (match for match in TOKEN.finditer(text))

    def string() -> str:
        match = next(tokens)
        if match[1] is None:
            raise ValueError(f"expected a text in quotes, got {match[0]!r}")
        return match[1].replace('""', '"')

    def value() -> float:
        match = next(tokens)
        if match[3] is None:
            raise ValueError(f"expected a number, got {match[0]!r}")
        return float(match[3])

    if (string(), string()) != ("ooTextFile", "TextGrid"):
        raise ValueError("the first lines are not those of a TextGrid")
    value(), value()
    if next(tokens)[2] != "exists":
        return []
    found = []
    for _ in range(int(value())):
        kind, name = string(), string()
        value(), value()
        if kind == "IntervalTier":
            found.append((name, [(value(), value(), string()) for _ in range(int(value()))]))
        else:
            for _ in range(int(value())):
                value(), string()
    return found


def _decoded(path: Path) -> str:
    """The text of a file in UTF-8 or UTF-16, which Praat writes. ValueError: another encoding."""
    content = path.read_bytes()
    encoding = next((name for bom, name in BOMS if content.startswith(bom)), "utf-8")
    return content.decode(encoding)


def _seconds(text: str) -> float:
    try:
        return number(text)
    except ValueError:
        raise ValueError(text) from None


def _malformed(path: Path, line: int, why: str) -> SetAside:
    return SetAside(f"{path.name}:{line}", "malformed row", f"{path} line {line}: {why}")
