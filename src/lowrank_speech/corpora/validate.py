"""Check every utterance before it enters a split: decode its file, load its cut, look at its samples.

In: the items of a split from a corpus reader (common.py). Out: ``Accepted`` cuts, or ``SetAside`` with one of these
reasons:

    missing file, unreadable audio, truncated audio, more audio than declared, zero length, samples not finite, silent,
    several channels, no such channel, wrong rate, wrong duration, too short, too long, segment outside recording,
    duplicate id, bad id

Utterances without a transcript are accepted, because language recognition can use them.

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
"""Seconds by which a declared duration or segment end may differ from the audio."""
BATCH = 10_000
"""Items to process at a time. Bounds the memory for large corpora."""


@dataclass(frozen=True)
class Accepted:
    """A valid cut. ``sha256``: hex digest of its samples, float32 (1, T) at 16 kHz."""

    cut: "Cut"
    sha256: str


def validate(
    items: "Sequence[Cut | Utterance | SetAside]", checks: Checks, jobs: int = 1
) -> Iterator[Accepted | SetAside]:
    """Check all items in ``jobs`` threads, and yield the results in the order of the items.

    ``items`` must be complete before a thread starts, because readers may fork. Each file is decoded once, however many
    cuts it has. Threads are enough, because decoding releases Python's global lock.
    """
    import torch  # lhotse resamples with it
    from tqdm import tqdm

    # One torch thread each avoids contention, and gives the same bits on any number of cores.
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
    """Turn every item whose id was used before into a SetAside that names both places."""
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
    """The parts of a cut that have a recording: the cut itself, or the tracks of a mixed cut without padding."""
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
            raise AudioError(
                "bad id", f"{_where(item)}: the id is {item.id!r}; ids are not empty and have no white space"
            )
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
    """Make the cut of an utterance (one supervision, 16 kHz). AudioError: it does not fit the file (``header``)."""
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    what = utterance.place
    if header.channels > 1 and checks.channel is None:
        detail = f"{what} has {header.channels} channels; `checks: {{channel: 0}}` selects the first one"
        raise AudioError("several channels", detail)
    channel = checks.channel if header.channels > 1 else 0
    if channel >= header.channels:
        raise AudioError(
            "no such channel", f"{what} has {header.channels} channels; `checks.channel` is {channel}, counted from 0"
        )
    if checks.sampling_rate not in (None, header.rate):
        raise AudioError(
            "wrong rate", f"{what} has {header.rate} Hz; `checks.sampling_rate` requires {checks.sampling_rate}"
        )
    if utterance.seconds is not None and abs(utterance.seconds - header.seconds) > TOLERANCE:
        detail = f"{what}: the declared duration is {utterance.seconds} s, the file has {header.seconds:.3f} s"
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
    """Start and duration within a recording of ``seconds``. AudioError: the segment exceeds the recording."""
    if utterance.start == 0 and utterance.end is None:
        return 0.0, seconds
    end = seconds if utterance.end is None else utterance.end
    if not 0 <= utterance.start < end or end > seconds + TOLERANCE or utterance.start >= seconds:
        detail = f"{what}: the segment is {utterance.start} to {end} s, the recording has {seconds:.3f} s"
        raise AudioError("segment outside recording", detail)
    # Rounded in the same way as in Lhotse; otherwise sums of times differ in the last bit.
    return utterance.start, round(min(end, seconds) - utterance.start, 8)


def _check_recordings(cut: "Cut", headers: dict[str, Header]) -> None:
    """Compare what a reader's cut says about its files with the files."""
    for part in tracks(cut):
        recording = part.recording
        rate = _source_rate(recording)
        for source in (s for s in recording.sources if s.type == "file"):
            header, path = headers[str(source.source)], source.source
            if header.rate != rate:
                raise AudioError("wrong rate", f"{path} has {header.rate} Hz, the cut says {rate}")
            if header.channels != len(source.channels):
                detail = f"{path} has {header.channels} channels, the cut says {len(source.channels)}"
                raise AudioError("several channels", detail)
            if abs(header.seconds - recording.duration) > TOLERANCE:
                detail = f"{path} has {header.seconds:.3f} s, the cut says {recording.duration:.3f} s"
                raise AudioError("wrong duration", detail)


def _source_rate(recording) -> int:
    """Sampling rate of the file in Hz, before any resampling."""
    for transform in recording.transforms or []:
        record = transform if isinstance(transform, dict) else transform.to_dict()
        if record["name"] == "Resample":
            return record["kwargs"]["source_sampling_rate"]
    return recording.sampling_rate


def _check_audio(cut: "Cut", what: str, checks: Checks) -> str:
    """Load the cut as later stages will, and return the digest of its samples. AudioError: it is not usable."""
    from lhotse.audio.utils import AudioLoadingError, DurationMismatchError

    if len(cut.supervisions) != 1 or cut.supervisions[0].id != cut.id:
        raise ValueError(f"cut {cut.id} ({what}): the reader must give it exactly one supervision with the same id")
    if cut.duration < checks.min_seconds:
        raise AudioError("too short", f"{what}: {cut.duration:.3f} s, less than {checks.min_seconds} s")
    if cut.duration > checks.max_seconds:
        raise AudioError("too long", f"{what}: {cut.duration:.3f} s, more than {checks.max_seconds} s")
    if cut.sampling_rate != SAMPLING_RATE:
        raise AudioError(
            "wrong rate", f"{what}: the cut loads at {cut.sampling_rate} Hz; it must load at {SAMPLING_RATE} Hz"
        )
    try:
        samples = cut.load_audio()
    except (AudioLoadingError, DurationMismatchError, RuntimeError, OSError, ValueError, AssertionError) as error:
        raise AudioError("unreadable audio", f"{what}: {' '.join(str(error).split())}") from error
    if samples.shape != (1, cut.num_samples):
        raise AudioError("several channels", f"{what}: loads as {samples.shape}, expected (1, {cut.num_samples})")
    check_samples(samples, what)
    return hashlib.sha256(np.ascontiguousarray(samples, dtype="<f4").tobytes()).hexdigest()


def most_common(reasons: Sequence[str]) -> str:
    """The most frequent reason with its count, such as ``missing file (12)``; on a tie the alphabetically first."""
    if not reasons:
        return ""
    best = max(sorted(set(reasons)), key=reasons.count)
    return f"{best} ({reasons.count(best)})"


def relocated(cut: "Cut", move) -> "Cut":
    """A copy of the cut with ``move(path)`` in place of the path of each audio file."""
    from lhotse.utils import fastcopy

    if hasattr(cut, "tracks"):
        return fastcopy(cut, tracks=[fastcopy(t, cut=relocated(t.cut, move)) for t in cut.tracks])
    if not hasattr(cut, "recording"):  # padding
        return cut
    sources = [replace(s, source=move(s.source)) if s.type == "file" else s for s in cut.recording.sources]
    return fastcopy(cut, recording=fastcopy(cut.recording, sources=sources))
