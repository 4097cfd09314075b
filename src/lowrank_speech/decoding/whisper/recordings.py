"""Decode cuts that are longer than Whisper's window: window after window, or in overlapping chunks.

Both work on the log-mel of the whole cut. Beyond its end they pad it with its own floor, as ``pad_mel`` does for short
utterances.

sequential  Whisper predicts time stamps. The next window begins at the last pair of them (``whisper.timestamps``), so
            that no word is cut. It advances at least by a thirtieth of the window: a model that has unlearned time
            stamps would otherwise hardly move. All cuts of a batch advance at once, each on its own.
            Source: openai/whisper, transcribe.py; Radford et al. 2022, section 3.8.
chunks      Windows that overlap by ``overlap`` seconds, independent of each other, without time stamps; then
            ``whisper.stitch``. Works for any model. Source: the speech recognition pipeline of transformers.

F frames, C mel bands, W frames of the window.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lowrank_speech.decoding.whisper.search import Found
from lowrank_speech.decoding.whisper.timestamps import Segment, split

RATE = 100
"""Log-mel frames per second."""
EDGE = 2
"""Frames at the end of a log-mel that are centred beyond the end of the speech."""
LEAST = 30
"""The next window begins at least this part of a window later."""
WARM = 0.5
"""Text that was sampled at a higher temperature is not shown to the next window."""


@dataclass
class Part:
    """A decoded window: where it starts, how many of its frames are speech, what was found in it, and its encoder
    states, if they are needed."""

    start: int
    frames: int
    found: Found
    states: Any
    segments: list[Segment] = field(default_factory=list)


@dataclass
class Recording:
    """A cut that is being decoded. ``mel``: (F, C); ``end``: frames of speech; ``history``: tokens so far, for the
    prompt."""

    name: str
    mel: Tensor
    end: int
    history: list[int]
    language: str | None = None
    parts: list[Part] = field(default_factory=list)
    seek: int = 0

    @classmethod
    def of(cls, name: str, mel: Tensor, history: Sequence[int]) -> "Recording":
        return cls(name, mel, max(len(mel) - EDGE, 1), list(history))

    def window(self, start: int, size: int) -> Tensor:
        """The log-mel (C, W) of the window at frame ``start``, padded with the recording's floor."""
        floor = max(float(self.mel.max()) - 2.0, (math.log10(1e-10) + 4) / 4)
        part = self.mel[start : start + size]
        return torch.nn.functional.pad(part, (0, 0, 0, size - len(part)), value=floor).T


Searched = Callable[[list[Recording], list[int], Tensor], list[tuple[Found, Any]]]
"""Decodes windows: their recordings, first frames, and mel (B, C, W) -> results, and the encoder states of each."""


def sequential(recordings: Sequence[Recording], size: int, search: Searched, codes: Any, condition: bool) -> None:
    """Decode each recording to its end; adds to its ``parts``. ``size``: frames W."""
    while active := [recording for recording in recordings if recording.seek < recording.end]:
        mel = torch.stack([recording.window(recording.seek, size) for recording in active])
        results = search(active, [recording.seek for recording in active], mel)
        for recording, (found, states) in zip(active, results, strict=True):
            frames = min(recording.end - recording.seek, size)
            part = Part(recording.seek, frames, found, states)
            recording.parts.append(part)
            if found.dropped:
                recording.seek += frames
                continue
            part.segments, covered = split(found.best.tokens, codes, frames / RATE)
            recording.seek += min(max(round(covered * RATE), size // LEAST, 1), frames)
            if condition:
                said = [token for segment in part.segments for token in segment.tokens]
                # The second stamp of a pair belongs to the next window.
                recording.history = recording.history + said if found.temperature <= WARM else []


def chunked(recordings: Sequence[Recording], size: int, overlap: int, search: Searched, at_once: int) -> None:
    """Decode overlapping chunks of each recording, ``at_once`` at a time; adds to its ``parts``. In frames."""
    jobs = [(recording, start) for recording in recordings for start in starts(recording.end, size, overlap)]
    for first in range(0, len(jobs), at_once):
        batch = jobs[first : first + at_once]
        mel = torch.stack([recording.window(start, size) for recording, start in batch])
        results = search([recording for recording, _ in batch], [start for _, start in batch], mel)
        for (recording, start), (found, states) in zip(batch, results, strict=True):
            recording.parts.append(Part(start, min(recording.end - start, size), found, states))


def starts(end: int, size: int, overlap: int) -> list[int]:
    """First frames of chunks of ``size`` frames that share ``overlap`` frames and cover ``end`` frames."""
    found = [0]
    while found[-1] + size < end:
        found.append(found[-1] + size - overlap)
    return found
