"""Lhotse manifests: cuts, recordings with supervisions, or Shar, as `lhotse prepare` and many recipes write them.

In: per split a manifest of cuts (``cuts_train.jsonl.gz``), a pair ``x_recordings_train.jsonl.gz`` and
``x_supervisions_train.jsonl.gz`` (name one of the two), a Shar folder, or only the part of the names that the split
has of its own (``train-clean-100``). Relative paths of audio start at ``audio``. Out: a cut per supervision, so long
recordings and cuts with several supervisions are divided. Features are not used. Audio inside Shar archives is
written to files. Recordings that are commands are refused; those at URLs are set aside.

    corpora:
      libri: {kind: lhotse, path: /data/manifests, language: en,
              splits: {train: {source: train-clean-100}, dev: {source: dev-clean}, test: {source: test-clean}}}
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lowrank_speech.corpora.common import SAMPLING_RATE, SetAside
from lowrank_speech.corpora.layouts import Layout, Segment, guess_splits, located, name_id, one_line, reported
from lowrank_speech.corpora.manifests import Manifests, cuts_of, find, pairs_of
from lowrank_speech.corpora.parts import items_of_split
from lowrank_speech.corpora.stored import stored_audio
from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings

if TYPE_CHECKING:
    from lhotse import SupervisionSegment
    from lhotse.cut import Cut

TOLERANCE = 0.1
"""Seconds by which a supervision may exceed its cut."""


@settings
class Config(Layout):
    """A corpus of Lhotse manifests."""

    kind: Literal["lhotse"] = key(REQUIRED, "Lhotse manifests: cuts, recordings and supervisions, or Shar")
    language: str | None = key(None, "language code of all utterances; null: the language in the manifests")
    audio: str = key(".", "where relative audio paths start: a folder, absolute or relative to the corpus's folder")


@reported
def locate(config: Config, data_root: Path | None) -> Path:
    """The absolute folder of the manifests. UserError: it or a manifest does not exist."""
    root = located(config, data_root, "Lhotse manifests: cuts, recordings and supervisions, or Shar folders")
    for split in config.splits.values():
        find(root, split.source)
    return root


@reported
def sources(config: Config, root: Path) -> list[Path]:
    """The manifests, and the archives of Shar folders."""
    used = sorted({split.source for split in config.splits.values()})
    return [path for source in used for path in find(root, source).files]


def read(
    config: Config, split: str, root: Path, audio_dir: Path, seed: int, jobs: int = 1
) -> "Iterator[Cut | SetAside]":
    """Yield first what cannot be used, then the cuts of one split, in the order of the manifest."""
    part, found = config.splits[split], find(root, config.splits[split].source)
    chosen = list(items_of_split(_segments(config, root, found), part, seed))
    yield from (item for item in chosen if isinstance(item, SetAside))
    segments = [item for item in chosen if not isinstance(item, SetAside)]
    if found.form == "shar":
        yield from _stored(config, root, found, segments, audio_dir)
    else:
        yield from (segment.carried for segment in segments)


def _segments(config: Config, root: Path, found: Manifests) -> Iterator[Segment | SetAside]:
    """The supervisions as segments that carry their cuts."""
    read_cuts = pairs_of(found) if found.form == "pair" else cuts_of(found)
    for item in read_cuts:
        if isinstance(item, SetAside):
            yield item
        else:
            cut, where = item
            yield from _divided(config, root, cut, where)


def _divided(config: Config, root: Path, cut: "Cut", where: str) -> Iterator[Segment | SetAside]:
    fault = _fault(cut, where)
    if fault is not None:
        yield fault
        return
    base = root / config.audio
    for supervision in cut.supervisions:
        name = name_id(supervision.id)
        language = config.language or supervision.language
        if supervision.start < -TOLERANCE or supervision.end > cut.duration + TOLERANCE or supervision.duration <= 0:
            detail = (
                f"{where}: the supervision {supervision.id} is {supervision.start} to {supervision.end} s, the cut "
                f"{cut.id} has {cut.duration} s"
            )
            yield SetAside(name, "segment outside recording", detail)
            continue
        if not language:
            detail = f"{where}: {supervision.id} has no language; set the corpus's key `language`"
            yield SetAside(name, "no language", detail)
            continue
        made = _cut_to(cut, supervision, name, language.lower(), base, config.checks.channel)
        if made is None:
            channels = supervision.channel
            detail = f"{where}: {supervision.id} has the channels {channels}; `checks: {{channel: 0}}` selects one"
            yield SetAside(name, "several channels", detail)
            continue
        lost = [path for path in _relative(cut) if _absent(base / path)]
        if lost:
            detail = f"{where}: {lost[0]} is not below {base}; set the corpus's key `audio` to the folder it starts at"
            yield SetAside(name, "missing file", detail)
            continue
        yield Segment(
            id=name,
            audio="",
            language=language.lower(),
            speaker=_speaker(supervision),
            end=made.duration,
            where=f"{where}, {supervision.id}",
            carried=made,
        )


def _fault(cut: "Cut", where: str) -> SetAside | None:
    """Why a cut cannot be used, if so. UserError: its recording is a command."""
    from lowrank_speech.corpora.validate import tracks

    parts = tracks(cut)
    if not parts or any(part.recording is None for part in parts):
        why = "has only features; this pipeline computes its own from audio" if cut.has_features else "has no recording"
        return SetAside(name_id(cut.id), "no recording", f"{where}: the cut {cut.id} {why}")
    for source in (source for part in parts for source in part.recording.sources):
        if source.type == "command":
            raise UserError(
                f"{where}: the recording of {cut.id} is a command ({source.source}); commands inside data are refused. "
                f"Write the audio to files and correct the manifest"
            )
        if source.type not in ("file", "shar"):
            detail = (
                f"{where}: the recording of {cut.id} is of type {source.type} ({str(source.source)[:200]}), not a file"
            )
            return SetAside(name_id(cut.id), "not a file", detail)
    if not cut.supervisions:
        return SetAside(name_id(cut.id), "no supervision", f"{where}: the cut {cut.id} has no supervision")
    return None


def _relative(cut: "Cut") -> list[str]:
    """The relative paths of the audio of a cut: they start where the manifest was made, which it does not tell."""
    from lowrank_speech.corpora.validate import paths

    return [path for path in paths(cut) if not Path(path).expanduser().is_absolute()]


def _absent(path: Path) -> bool:
    try:
        return not path.exists()
    except OSError:  # validate.py says that it cannot be read
        return False


def _speaker(supervision: "SupervisionSegment") -> str:
    return str(supervision.speaker or "") or name_id(supervision.id)


def _cut_to(
    cut: "Cut", supervision: "SupervisionSegment", name: str, language: str, base: Path, wanted: int | None
) -> "Cut | None":
    """The part of ``cut`` with ``supervision``, at 16 kHz, with one channel; None: which channel is not clear."""
    from lhotse import MonoCut

    from lowrank_speech.corpora.validate import relocated

    start = max(supervision.start, 0.0)
    duration = round(min(supervision.end, cut.duration) - start, 8)
    channels = supervision.channel if isinstance(supervision.channel, list) else [supervision.channel]
    if len(channels) > 1:
        channels = [wanted] if wanted in channels else []
    if not channels:
        return None
    own = replace(
        supervision,
        id=name,
        start=0.0,
        duration=duration,
        channel=channels[0],
        text=one_line(supervision.text),
        language=language,
        speaker=_speaker(supervision),
        custom=_plain(supervision.custom),
        alignment=None,
    )
    if hasattr(cut, "tracks"):
        made = cut.truncate(offset=start, duration=duration, keep_excessive_supervisions=False)
        made = made.drop_features() if made.has_features else made
        _set_supervision(made, own)
        made.id = name
    else:
        at = round(cut.start + start, 8)
        recording = cut.recording
        duration = round(min(duration, recording.duration - at), 8) if at < recording.duration else duration
        own = replace(own, duration=duration, recording_id=recording.id)
        made = MonoCut(name, at, duration, channels[0], supervisions=[own], recording=recording)
    if made.sampling_rate != SAMPLING_RATE:
        made = made.resample(SAMPLING_RATE)
    return relocated(made, lambda path: os.path.normpath(base / Path(path).expanduser()))


def _set_supervision(cut: "Cut", supervision: "SupervisionSegment") -> None:
    """Make ``supervision`` the only one of a mixed cut (or of a part of one, which has a single track)."""
    tracks = getattr(cut, "tracks", None)
    if tracks is None:
        cut.supervisions = [supervision]
        return
    spoken = [track for track in tracks if hasattr(track.cut, "supervisions") and hasattr(track.cut, "recording")]
    for track in spoken:
        track.cut.supervisions = []
    spoken[0].cut.supervisions = [replace(supervision, start=-spoken[0].offset)]


def _plain(custom: dict[str, Any] | None) -> dict[str, Any] | None:
    """Only values that a manifest can hold: no arrays and no paths to them."""
    kept = {name: value for name, value in (custom or {}).items() if isinstance(value, str | int | float | bool)}
    return kept or None


def _stored(config: Config, root: Path, found: Manifests, segments: list[Segment], audio_dir: Path) -> "Iterator[Cut]":
    """The cuts of the chosen supervisions of a Shar folder; their audio is written to ``audio_dir``."""
    wanted = {segment.id for segment in segments}
    made: dict[str, Cut] = {}
    with stored_audio(audio_dir) as store:
        for number, cut in enumerate(_from_shar(found)):
            if not any(name_id(s.id) in wanted and name_id(s.id) not in made for s in cut.supervisions):
                continue
            [source] = cut.recording.sources
            path = store.put(source.source, number)
            cut.recording = replace(cut.recording, sources=[replace(source, type="file", source=path)])
            for part in _divided(config, root, cut, str(found.files[0])):
                if isinstance(part, Segment) and part.id in wanted:
                    made.setdefault(part.id, part.carried)
    lost = sorted(wanted - made.keys())
    if lost:
        raise UserError(
            f"{found.folder}: the archives have no audio for {len(lost)} supervisions of the manifests, first "
            f"{lost[0]}; write the Shar folder again"
        )
    yield from (made[segment.id] for segment in segments)


def _from_shar(found: Manifests) -> "Iterable[Cut]":
    from lhotse import CutSet

    try:
        yield from CutSet.from_shar(in_dir=found.folder, shuffle_shards=False)
    except Exception as error:  # tarfile, zlib, json and Lhotse's own, all for a broken archive
        if isinstance(error, UserError | MemoryError):
            raise
        raise UserError(f"{found.folder}: not a readable Shar folder: {' '.join(str(error).split())}") from error


def looks_like(path: Path) -> dict[str, Any] | None:
    """The keys for ``path`` if it contains Lhotse manifests (``detect.py``)."""
    found = {}
    for file in sorted(path.glob("*.jsonl*")):
        name = file.name.removesuffix(".gz").removesuffix(".jsonl")
        for word in ("cuts", "supervisions"):
            if name.startswith(f"{word}") or f"_{word}" in name:
                own = name.partition(word)[2].strip("_.-") or name.partition(word)[0].strip("_.-")
                found.setdefault(own or "all", file.name)
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        if any(folder.glob("cuts.[0-9]*.jsonl*")) and any(folder.glob("recording.[0-9]*.tar*")):
            found.setdefault(folder.name, folder.name)
    return {"splits": guess_splits(found)} if found else None
