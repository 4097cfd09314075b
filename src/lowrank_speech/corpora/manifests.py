"""Find and read the files of Lhotse manifests, line by line, so that a broken line costs only itself."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lowrank_speech.corpora.common import SetAside
from lowrank_speech.corpora.layouts import name_id
from lowrank_speech.errors import UserError

if TYPE_CHECKING:
    from lhotse.cut import Cut

SUFFIXES = (".jsonl.gz", ".jsonl")
PAIR = ("recordings", "supervisions")
BROKEN = (KeyError, TypeError, ValueError, AttributeError, AssertionError, IndexError)
"""What Lhotse raises for an object that is not of the type that it expects."""


class Manifests(NamedTuple):
    """The files of one source."""

    form: Literal["cuts", "pair", "shar"]
    files: list[Path]
    """Cuts; or recordings and supervisions; or all files of a Shar folder."""
    folder: Path


def find(root: Path, source: str) -> Manifests:
    """The manifests of a source: a file, a Shar folder, or the end of the names. UserError: none, or not clear."""
    path = root / source
    if path.is_dir():
        cuts = sorted(path.glob("cuts.[0-9]*.jsonl*"))
        archives = sorted(path.glob("recording.[0-9]*.tar*"))
        if not cuts or len(cuts) != len(archives):
            raise UserError(
                f"{path}: not a Shar folder, which has as many cuts.*.jsonl.gz as recording.*.tar: found {len(cuts)} "
                f"and {len(archives)}; correct `source`"
            )
        return Manifests("shar", [*cuts, *archives], path)
    if path.is_file():
        return _of_file(path)
    listed = sorted(p for p in root.iterdir() if p.name.endswith(SUFFIXES))
    ends = [p for p in listed if _stem(p).endswith(source)]
    for word in ("cuts", "supervisions"):
        found = [p for p in ends if word in p.name]
        if len(found) == 1:
            return _of_file(found[0])
        if found:
            break
    names = ", ".join(p.name for p in (ends or listed)[:12]) or "no manifest (.jsonl.gz, .jsonl)"
    raise UserError(
        f"{path}: `source: {source}` is not a file, a Shar folder or the end of the name of one manifest of cuts or "
        f"supervisions; {root} has {names}. Other formats: `lhotse copy` converts them"
    )


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def _of_file(path: Path) -> Manifests:
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: expected a manifest in JSON lines (.jsonl.gz, .jsonl); `lhotse copy` converts others")
    for word, other in (PAIR, PAIR[::-1]):
        if word in path.name:
            partner = path.with_name(path.name.replace(word, other))
            if not partner.is_file():
                raise UserError(f"{path}: {partner.name}, which belongs to it, does not exist in {path.parent}")
            pair = sorted([path, partner], key=lambda p: "supervisions" in p.name)
            return Manifests("pair", pair, path.parent)
    return Manifests("cuts", [path], path.parent)


def cuts_of(found: Manifests) -> Iterator["tuple[Cut, str] | SetAside"]:
    """Each cut with its place, from a manifest of cuts or those of a Shar folder."""
    from lhotse.serialization import deserialize_item

    for path in (p for p in found.files if ".jsonl" in p.name):
        for where, line, record in lines(path):
            try:
                cut = deserialize_item(record)
                if not hasattr(cut, "supervisions"):
                    raise TypeError(f"a {type(cut).__name__} instead of a cut")
            except BROKEN as error:
                yield _malformed(path, line, record, where, error)
                continue
            yield cut, where


def pairs_of(found: Manifests) -> Iterator["tuple[Cut, str] | SetAside"]:
    """A cut with one supervision for each line of the supervisions, and what of the recordings has none."""
    from lhotse import MonoCut, MultiCut, Recording, SupervisionSegment

    recordings: dict[str, tuple[Recording, str]] = {}
    used = set()
    for where, line, record in lines(found.files[0]):
        try:
            recording = Recording.from_dict(record)
        except BROKEN as error:
            yield _malformed(found.files[0], line, record, where, error)
            continue
        if recording.id in recordings:
            first = recordings[recording.id][1]
            yield SetAside(name_id(recording.id), "duplicate id", f"{where}; first in {first}")
        recordings.setdefault(recording.id, (recording, where))
    for where, line, record in lines(found.files[1]):
        try:
            supervision = SupervisionSegment.from_dict(record)
            name = supervision.recording_id
        except BROKEN as error:
            yield _malformed(found.files[1], line, record, where, error)
            continue
        if name not in recordings:
            detail = f"{where}: the recording {name} of {supervision.id} is not in {found.files[0].name}"
            yield SetAside(name_id(supervision.id), "no recording", detail)
            continue
        used.add(name)
        recording = recordings[name][0]
        several = isinstance(supervision.channel, list)
        cut_class = MultiCut if several else MonoCut
        # The supervision keeps its times in the recording, so the cut is the recording.
        cut = cut_class(
            supervision.id, 0.0, recording.duration, supervision.channel, [supervision], recording=recording
        )
        yield cut, where
    for name, (_, where) in recordings.items():
        if name not in used:
            yield SetAside(name_id(name), "no supervision", f"{where}: no supervision names the recording {name}")


def _malformed(path: Path, line: int, record: Any, where: str, error: Exception) -> SetAside:
    name = record.get("id") if isinstance(record, dict) else None
    why = " ".join(f"{type(error).__name__} {error}".split())[:300]
    return SetAside(name_id(str(name or f"{path.name}:{line}")), "malformed row", f"{where}: {why}")


def lines(path: Path) -> Iterator[tuple[str, int, Any]]:
    """Place, number and object of each line of a manifest; None if a line is not JSON. UserError: a broken file."""
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                except ValueError:
                    record = None
                yield f"{path} line {number}", number, record
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the manifest is damaged ({error}); make it again, or copy it again") from error
