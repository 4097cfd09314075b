"""Every utterance is looked at before it may enter a split: its file is decoded, its cut loaded, its samples checked.

In: the items of a split, as a corpus reader yields them (common.py). Out: ``Accepted`` cuts, or ``SetAside`` with one
of these reasons:

    missing file, unreadable audio, truncated audio, more audio than declared, zero length, samples not finite, silent,
    several channels, no such channel, wrong rate, wrong duration, too short, too long, segment outside recording,
    duplicate id, bad id

An utterance without a transcript is fine here: language recognition can use it.

    >>> for result in validate(items, Checks(), jobs=2):
    ...     ...
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lowrank_speech.corpora.audio import AudioError, Header, check_samples, open_once
from lowrank_speech.corpora.common import SAMPLING_RATE, Checks, SetAside, Utterance

if TYPE_CHECKING:
    from lhotse import MonoCut
    from lhotse.cut import Cut

TOLERANCE = 0.1
"""Seconds by which a declared duration (a segment's end) may miss the audio."""
BATCH = 10_000
"""Items in hand at a time: bounds the memory for large corpora."""


@dataclass(frozen=True)
class Accepted:
    """A cut that loads. ``sha256`` is the hex digest of its samples, float32 (1, T) at 16 kHz."""

    cut: "Cut"
    sha256: str


def validate(
    items: "Sequence[Cut | Utterance | SetAside]", checks: Checks, jobs: int = 1
) -> Iterator[Accepted | SetAside]:
    """Check all items, in ``jobs`` threads; the results come in the order of the items.

    ``items`` is complete before a thread starts, since a reader may fork. Each file is decoded once however many cuts
    are made of it; decoding leaves Python's lock, so that threads do.
    """
    import torch  # lhotse resamples with it
    from tqdm import tqdm

    # One thread each: no contention, and the same sums (the same bits) whatever the number of cores.
    torch.set_num_threads(1)
    with (
        ThreadPoolExecutor(max_workers=max(1, jobs)) as pool,
        tqdm(total=len(items), desc="utterances", disable=None) as progress,
    ):
        for start in range(0, len(items), BATCH):
            batch = items[start : start + BATCH]
            files = sorted({path for item in batch for path in paths(item)})
            headers = dict(zip(files, pool.map(open_once, files), strict=True))
            for result in pool.map(lambda item, headers=headers: _check(item, headers, checks), batch):
                progress.update()
                yield result


def mark_duplicates(items: "Iterable[Cut | Utterance | SetAside]") -> "list[Cut | Utterance | SetAside]":
    """An id may stand once in a split: the second and later items with it become SetAside that name both places."""
    seen: dict[str, str] = {}
    result = []
    for item in items:
        if not isinstance(item, SetAside):
            where = _where(item)
            if item.id in seen:
                item = SetAside(item.id, "duplicate id", f"{where}; first in {seen[item.id]}")
            else:
                seen[item.id] = where
        result.append(item)
    return result


def _where(item: "Cut | Utterance") -> str:
    return item.place if isinstance(item, Utterance) else ", ".join(paths(item))


def tracks(cut: "Cut") -> list:
    """The cuts with recordings that a cut is made of: itself, or the tracks of a mixed cut without the padding."""
    parts = [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]
    return [part for part in parts if hasattr(part, "recording")]


def paths(item: "Cut | Utterance | SetAside") -> list[str]:
    """The audio files of an item."""
    if isinstance(item, Utterance):
        return [item.audio]
    if isinstance(item, SetAside):
        return []
    return [str(s.source) for part in tracks(item) for s in part.recording.sources if s.type == "file"]


def _check(item: "Cut | Utterance | SetAside", headers: dict, checks: Checks) -> Accepted | SetAside:
    if isinstance(item, SetAside):
        return item
    try:
        if not item.id or any(c.isspace() for c in item.id):
            raise AudioError("bad id", f"{_where(item)}: an id must have a character and no white space: {item.id!r}")
        for path in paths(item):
            if isinstance(headers[path], AudioError):
                raise headers[path]
        if isinstance(item, Utterance):
            cut = make_cut(item, headers[item.audio], checks)
        else:
            cut = item
            _check_recordings(cut, headers)
        return Accepted(cut, _check_audio(cut, _where(item), checks))
    except AudioError as fault:
        return SetAside(item.id, fault.reason, fault.detail)


def make_cut(utterance: Utterance, header: Header, checks: Checks) -> "MonoCut":
    """The cut of an utterance whose file holds ``header``: one supervision, 16 kHz; AudioError if they do not fit."""
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    what = utterance.place
    if header.channels > 1 and checks.channel is None:
        detail = f"{what} has {header.channels} channels; `checks: {{channel: 0}}` takes the first"
        raise AudioError("several channels", detail)
    channel = checks.channel if header.channels > 1 else 0
    if channel >= header.channels:
        raise AudioError(
            "no such channel", f"{what} has {header.channels} channels; `checks.channel` is {channel}, counted from 0"
        )
    if checks.sampling_rate not in (None, header.rate):
        raise AudioError(
            "wrong rate", f"{what} has {header.rate} Hz, `checks.sampling_rate` says {checks.sampling_rate}"
        )
    if utterance.seconds is not None and abs(utterance.seconds - header.seconds) > TOLERANCE:
        detail = f"{what} is declared with {utterance.seconds} s and holds {header.seconds:.3f} s"
        raise AudioError("wrong duration", detail)
    recording = Recording(
        id=utterance.recording_id or utterance.id,
        sources=[AudioSource("file", list(range(header.channels)), utterance.audio)],
        sampling_rate=header.rate,
        num_samples=header.frames,
        duration=header.seconds,
    )
    if header.rate != SAMPLING_RATE:
        recording = recording.resample(SAMPLING_RATE)
    start, duration = _span(utterance, recording.duration, what)
    supervision = SupervisionSegment(
        id=utterance.id,
        recording_id=recording.id,
        start=0.0,
        duration=duration,
        channel=channel,
        text=utterance.text,
        language=utterance.language,
        speaker=utterance.speaker,
        gender=utterance.gender,
    )
    return MonoCut(utterance.id, start, duration, channel, supervisions=[supervision], recording=recording)


def _span(utterance: Utterance, seconds: float, what: str) -> tuple[float, float]:
    """Start and duration within a recording of ``seconds``; AudioError where the segment leaves it."""
    if utterance.start == 0 and utterance.end is None:
        return 0.0, seconds
    end = seconds if utterance.end is None else utterance.end
    if not 0 <= utterance.start < end or end > seconds + TOLERANCE or utterance.start >= seconds:
        detail = f"{what}: from {utterance.start} s to {end} s, the recording has {seconds:.3f} s"
        raise AudioError("segment outside recording", detail)
    # Rounded as Lhotse rounds, else sums of the times differ in the last bit.
    return utterance.start, round(min(end, seconds) - utterance.start, 8)


def _check_recordings(cut: "Cut", headers: dict[str, Header]) -> None:
    """What the manifest of a ready cut says of its files, against the files."""
    for part in tracks(cut):
        recording = part.recording
        rate = _source_rate(recording)
        for source in (s for s in recording.sources if s.type == "file"):
            header, path = headers[str(source.source)], source.source
            if header.rate != rate:
                raise AudioError("wrong rate", f"{path} has {header.rate} Hz, the manifest says {rate}")
            if header.channels != len(source.channels):
                detail = f"{path} has {header.channels} channels, the manifest says {len(source.channels)}"
                raise AudioError("several channels", detail)
            if abs(header.seconds - recording.duration) > TOLERANCE:
                detail = f"{path} holds {header.seconds:.3f} s, the manifest says {recording.duration:.3f} s"
                raise AudioError("wrong duration", detail)


def _source_rate(recording) -> int:
    """The rate in Hz before the first resampling."""
    for transform in recording.transforms or []:
        record = transform if isinstance(transform, dict) else transform.to_dict()
        if record["name"] == "Resample":
            return record["kwargs"]["source_sampling_rate"]
    return recording.sampling_rate


def _check_audio(cut: "Cut", what: str, checks: Checks) -> str:
    """Load the cut as later stages will; the digest of its samples."""
    from lhotse.audio.utils import AudioLoadingError, DurationMismatchError

    if len(cut.supervisions) != 1 or cut.supervisions[0].id != cut.id:
        raise ValueError(f"cut {cut.id} ({what}): a reader must give it one supervision with the same id")
    if cut.duration < checks.min_seconds:
        raise AudioError("too short", f"{what}: {cut.duration:.3f} s, less than {checks.min_seconds} s")
    if cut.duration > checks.max_seconds:
        raise AudioError("too long", f"{what}: {cut.duration:.3f} s, more than {checks.max_seconds} s")
    if cut.sampling_rate != SAMPLING_RATE:
        raise AudioError(
            "wrong rate", f"{what}: the cut has {cut.sampling_rate} Hz, it must load at {SAMPLING_RATE} Hz"
        )
    try:
        samples = cut.load_audio()
    except (AudioLoadingError, DurationMismatchError, RuntimeError, OSError, ValueError, AssertionError) as error:
        raise AudioError("unreadable audio", f"{what}: {' '.join(str(error).split())}") from error
    if samples.shape != (1, cut.num_samples):
        raise AudioError("several channels", f"{what}: loads as {samples.shape}, expected (1, {cut.num_samples})")
    check_samples(samples, what)
    return hashlib.sha256(np.ascontiguousarray(samples, dtype="<f4").tobytes()).hexdigest()


def commonest(reasons: Sequence[str]) -> str:
    """``missing file (12)``: the reason that occurs most, first in the alphabet among equals; empty for none."""
    if not reasons:
        return ""
    best = max(sorted(set(reasons)), key=reasons.count)
    return f"{best} ({reasons.count(best)})"


def relocated(cut: "Cut", move) -> "Cut":
    """The cut with ``move(path)`` for the path of each audio file."""
    from lhotse.utils import fastcopy

    if hasattr(cut, "tracks"):
        return fastcopy(cut, tracks=[fastcopy(t, cut=relocated(t.cut, move)) for t in cut.tracks])
    if not hasattr(cut, "recording"):  # padding
        return cut
    sources = [replace(s, source=move(s.source)) if s.type == "file" else s for s in cut.recording.sources]
    return fastcopy(cut, recording=fastcopy(cut.recording, sources=sources))
