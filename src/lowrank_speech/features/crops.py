"""Random crops of training utterances: in each epoch every utterance has another length and another place.

Lengths are uniform in a range, places uniform in the rest of the utterance; shorter utterances are used whole. They
depend only on seed, epoch and the utterance's number, so a run that continues, and any number of processes or workers,
sees the same pieces. A piece lies within its utterance: nothing of the padding of batches is in it.

    crops = Crops(2.0, 4.0, seed=1)
    cuts = crops.of(kept, epoch=3)         # len(cuts), cuts.durations, cuts[7]
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrank_speech.features.batches import piece
from lowrank_speech.features.kept import KeptCuts, ListedCuts

STREAM = 0x63726F70
"""Keeps the draws apart from those that form batches of the same seed and epoch."""


@dataclass(frozen=True)
class Crops:
    """Lengths from ``low`` to ``high`` seconds."""

    low: float
    high: float
    seed: int

    def of(self, cuts: KeptCuts | ListedCuts, epoch: int) -> "Cropped":
        """The pieces of an epoch, with the interface of ``cuts``."""
        draws = np.random.default_rng([self.seed, epoch, STREAM]).random((2, len(cuts)))
        lengths = np.minimum(self.low + (self.high - self.low) * draws[0], cuts.durations)
        return Cropped(cuts, lengths, draws[1])

    def longest(self, cut: Any) -> Any:
        """The longest piece that a cut may have, for the dry run."""
        return piece(cut, self.high)

    def shortest(self, cut: Any) -> Any:
        """The shortest one."""
        return piece(cut, self.low)


@dataclass(frozen=True)
class Cropped:
    """Pieces of ``cuts``; ``durations``: seconds, float64 (N,); ``places``: share of the rest before each piece."""

    cuts: KeptCuts | ListedCuts
    durations: np.ndarray
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.durations)

    def __getitem__(self, index: int) -> Any:
        return piece(self.cuts[index], float(self.durations[index]), place=float(self.places[index]))
