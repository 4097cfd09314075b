"""Long recordings in flat memory: what is computed over a whole recording, and pieces of its samples or log-mel.

Two statistics of a model's input belong to the whole recording: the mean and variance of a waveform, and the maximum of
Whisper's log-mel. ``scan`` reads a recording once for them. Then ``Samples`` and ``Mel`` read it again, and hold only
the stretch that is asked for, which moves forward.

T samples, F frames, C mel bands.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowrank_speech.features.logmel import HOP, N_FFT, _filters, mel_frames

RATE = 16_000
FLOOR = 1e-10


@dataclass(frozen=True)
class Scan:
    """``samples``: number at 16 kHz; ``mean``, ``variance``: of the samples; ``loudest``: maximum of log10 mel power,
    None if it was not asked for."""

    samples: int
    mean: float
    variance: float
    loudest: float | None

    @property
    def seconds(self) -> float:
        return self.samples / RATE


def scan(sound: Any, n_mels: int | None = None) -> Scan:
    """Read ``sound`` once. ``n_mels``: find the maximum of its log-mel with so many bands."""
    count, total, squares, loudest = 0, 0.0, 0.0, -math.inf

    def blocks() -> Iterator[Tensor]:
        nonlocal count, total, squares
        for block in sound.blocks():
            wide = block.double()
            count, total, squares = count + len(block), total + float(wide.sum()), squares + float(wide.square().sum())
            yield block

    if n_mels is None:
        for _ in blocks():
            pass
    else:
        for frames in mel_blocks(blocks(), n_mels):
            loudest = max(loudest, float(frames.max()))
    mean = total / count
    return Scan(count, mean, max(squares / count - mean**2, 0.0), None if n_mels is None else loudest)


def mel_blocks(blocks: Iterator[Tensor], n_mels: int) -> Iterator[Tensor]:
    """log10 of mel power (F, C) of a recording, before Whisper's clipping; together the frames of ``log_mel``."""
    kept, count, made = torch.zeros(0), 0, 0
    for block in blocks:
        count += len(block)
        kept = torch.cat([kept, block])
        if made == 0:
            if len(kept) <= N_FFT:
                continue
            kept = _reflected(kept)
        frames = (len(kept) - N_FFT) // HOP + 1
        if frames > 0:
            yield _log(kept[: (frames - 1) * HOP + N_FFT], n_mels)
            kept, made = kept[frames * HOP :].clone(), made + frames
    if made == 0:  # a recording of a few samples
        kept = _reflected(torch.nn.functional.pad(kept, (0, N_FFT)))
    left = mel_frames(count) - made
    if left > 0:
        size = (left - 1) * HOP + N_FFT
        yield _log(torch.nn.functional.pad(kept, (0, max(size - len(kept), 0)))[:size], n_mels)


def _reflected(samples: Tensor) -> Tensor:
    """The first frame is centred at the first sample, so ``log_mel`` reflects the samples there."""
    return torch.cat([samples[1 : N_FFT // 2 + 1].flip(0), samples])


def _log(samples: Tensor, n_mels: int) -> Tensor:
    """Frames (F, C) of ``samples``, without padding."""
    window = torch.hann_window(N_FFT)
    power = torch.stft(samples, N_FFT, HOP, window=window, center=False, return_complex=True).abs().square()
    return torch.clamp(power.T @ _filters(n_mels), min=FLOOR).log10()


class Mel:
    """Stretches of a recording's log-mel, equal to those of ``log_mel``; each begins at or after the one before."""

    def __init__(self, sound: Any, n_mels: int, loudest: float):
        self._blocks, self._loudest = mel_blocks(sound.blocks(), n_mels), loudest
        self._kept, self._start = torch.zeros(0, n_mels), 0

    @property
    def floor(self) -> float:
        """The value of frames without speech, with which windows are padded."""
        return (max(self._loudest - 8.0, math.log10(FLOOR)) + 4.0) / 4.0

    def read(self, start: int, end: int) -> Tensor:
        """The frames (F, C) from ``start`` to ``end``, or to the end of the recording."""
        self._kept, self._start = _forward(self._blocks, self._kept, self._start, start, end)
        return (torch.maximum(self._kept[: end - start], torch.tensor(self._loudest - 8.0)) + 4.0) / 4.0


class Samples:
    """Stretches of a recording's samples; each begins at or after the one before."""

    def __init__(self, sound: Any):
        self._blocks, self._kept, self._start = sound.blocks(), torch.zeros(0), 0

    def read(self, start: int, end: int) -> Tensor:
        """The samples (T,) from ``start`` to ``end``, or to the end of the recording."""
        self._kept, self._start = _forward(self._blocks, self._kept, self._start, start, end)
        return self._kept[: end - start]


def _forward(blocks: Iterator[Tensor], kept: Tensor, first: int, start: int, end: int) -> tuple[Tensor, int]:
    """Move the stretch ``kept``, which begins at ``first``, on to ``start`` ... ``end``; returns it and its start."""
    parts, have = [kept], first + len(kept)
    while have < end and (block := next(blocks, None)) is not None:
        have += len(block)
        parts = [*parts, block] if have - len(block) > start else [block]
    kept = torch.cat(parts)
    drop = min(max(start - (have - len(kept)), 0), len(kept))
    kept = kept[drop:].clone()
    return kept, have - len(kept)
