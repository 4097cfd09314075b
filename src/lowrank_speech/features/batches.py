"""Batches by duration from Lhotse cuts.

One batch is a dict (B batch, T samples, F frames, C features):

    cuts       list of B Lhotse cuts
    features   float32 (B, T) waveforms, (B, F, C) front-end output or log-mel, zero beyond the lengths
    lengths    int64 (B,) valid samples or frames

Cuts with stored features give those; from the others ``Inputs`` computes what the model eats.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler
from torch import Tensor

from lowrank_speech.errors import UserError
from lowrank_speech.features.inputs import RATE, Inputs


class Loader:
    """Cuts -> batches. ``memory`` seconds of computed inputs are kept, so that short corpora are read once."""

    def __init__(self, inputs: Inputs, memory: float = 0.0):
        self.inputs, self._left, self._kept = inputs, memory, {}

    def one(self, cut: Any) -> Tensor:
        """The model's input for one cut: stored features (F, C), else computed from its samples."""
        if getattr(cut, "has_features", False):
            return torch.from_numpy(np.asarray(cut.load_features(), dtype=np.float32))
        kept = self._kept.get(cut.id)
        if kept is None:
            kept = self.inputs(cut)
            if self._left >= cut.duration:
                self._left -= cut.duration
                self._kept[cut.id] = kept
        return kept

    def collate(self, cuts: list[Any]) -> dict[str, Any]:
        """The batch of ``cuts``; see the module's docstring."""
        inputs = [self.one(cut) for cut in cuts]
        lengths = torch.tensor([len(x) for x in inputs])
        return {"cuts": cuts, "features": torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True), "lengths": lengths}

    def train(
        self, cuts: CutSet, batch_seconds: float, seed: int, epoch: int, rank: int = 0, world: int = 1
    ) -> Iterator[dict[str, Any]]:
        """The batches of one epoch; see ``sampler``. Each of ``world`` processes reads its own; others' are cuts."""
        for i, batch in enumerate(sampler(cuts, batch_seconds, seed, epoch)):
            yield self.collate(list(batch)) if i % world == rank else {"cuts": list(batch)}

    def all(self, cuts: CutSet, batch_seconds: float) -> Iterator[dict[str, Any]]:
        """All cuts once, longest first, at most ``batch_seconds`` (padding included) a batch."""
        batch: list[Any] = []
        for cut in sorted(cuts, key=lambda cut: (-cut.duration, cut.id)):
            if batch and batch[0].duration * (len(batch) + 1) > batch_seconds:
                yield self.collate(batch)
                batch = []
            batch.append(cut)
        if batch:
            yield self.collate(batch)


def sampler(cuts: CutSet, batch_seconds: float, seed: int, epoch: int) -> DynamicBucketingSampler | DynamicCutSampler:
    """Batches of cuts for one epoch: bucketed by duration, order drawn from ``seed`` and ``epoch``."""
    options = {"max_duration": batch_seconds, "shuffle": True, "seed": seed, "rank": 0, "world_size": 1}
    if len(cuts) < 2:  # Lhotse makes no single bucket
        result = DynamicCutSampler(cuts, **options)
    else:
        buckets = min(10, max(2, len(cuts) // 20))
        result = DynamicBucketingSampler(cuts, num_buckets=buckets, buffer_size=20_000, **options)
    result.set_epoch(epoch)
    return result


def segment(cuts: CutSet, seconds: float | None, seed: int | None = None) -> CutSet:
    """Cut every utterance to at most ``seconds``: from a place drawn from ``seed`` and its id, or its middle."""
    if seconds is None:
        return cuts
    if seconds <= 0:
        raise UserError(f"segment.seconds is {seconds}: it must be positive")
    return cuts.map(lambda cut: _window(cut, seconds, seed))


def _window(cut: Any, seconds: float, seed: int | None) -> Any:
    spare = cut.duration - seconds
    if spare <= 0:
        return cut
    place = 0.5 if seed is None else torch.rand((), generator=_generator(seed, cut.id)).item()
    offset = spare * place
    # A whole number of frames: half a frame more would read one that is not there.
    shift = cut.frame_shift if getattr(cut, "has_features", False) else 1 / RATE
    return cut.truncate(offset=int(offset / shift) * shift, duration=int(seconds / shift) * shift, preserve_id=True)


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed((seed << 32) ^ zlib.crc32(name.encode()))
