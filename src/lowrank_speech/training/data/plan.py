"""Plan a training from the durations of its utterances: count the steps, and find the largest batch.

The learning rate schedule needs the number of steps, the dry run needs the largest batch. Neither reads a cut.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from lowrank_speech.features.batches import batch_indices
from lowrank_speech.features.kept import KeptCuts, ListedCuts
from lowrank_speech.training.config import TrainConfig

MOST_COUNTED = 100_000  # utterances times epochs; counting them takes two to four seconds


def batching(config: TrainConfig, seed: int, epoch: int) -> tuple[float, int, int, float | None]:
    """The arguments of ``batch_indices`` for an epoch. Batches fit even if all utterances get the lowest speed."""
    slowest, quadratic = min((1.0, *config.speed)), config.quadratic_seconds
    # d seconds become d / slowest, which count as that + d² / (slowest² quadratic).
    return config.batch_seconds * slowest, seed, epoch, quadratic and quadratic * slowest


def plan(
    train: KeptCuts | ListedCuts,
    config: TrainConfig,
    seed: int,
    world: int = 1,
    window: float | None = None,
    crops: Any = None,
) -> tuple[int, list[int]]:
    """The number of steps of a run by ``world`` processes, and the largest batch (indices of cuts; see ``survey``).

    ``crops``: the pieces of the cuts that each epoch reads (``features.crops``).

    Epochs differ by a few batches. If counting all of them would take seconds, only the first one is counted.
    """
    counted = config.epochs if len(train) * config.epochs <= MOST_COUNTED else 1
    steps, candidates = 0, []
    for epoch in range(counted):
        read = train if crops is None else crops.of(train, epoch)
        batches, largest = survey(batch_indices(read, *batching(config, seed, epoch)), read.durations, window)
        steps += -(-batches // (config.accumulate * world))
        candidates.append(largest)
    longest = train.durations if crops is None else np.minimum(train.durations, crops.high)
    _, largest = survey(candidates, longest, window)
    return min(steps * config.epochs // counted, config.max_steps or math.inf), largest


def survey(batches: Iterable[list[int]], durations: np.ndarray, window: float | None = None) -> tuple[int, list[int]]:
    """The number of ``batches`` (indices of cuts), and the largest one: that with the most seconds including padding.

    The longest cut decides between equal ones. ``window``: seconds to which a model pads every utterance.
    """
    count, largest, most = 0, [], (0.0, 0.0)
    for batch in batches:
        longest = float(durations[batch].max())
        size = max(longest, window or 0.0) * len(batch), longest
        count += 1
        if size > most:
            largest, most = batch, size
    return count, largest
