"""What a training will do, from the durations of its utterances alone: how many steps there are, and its largest batch.

The schedule of the learning rate needs the one, the dry run the other. No cut is read.
"""

import math
from collections.abc import Iterable

import numpy as np

from lowrank_speech.features.batches import batch_numbers
from lowrank_speech.features.kept import KeptCuts, ListedCuts
from lowrank_speech.training.config import TrainConfig

MOST_COUNTED = 100_000  # utterances times epochs: two to four seconds


def batching(config: TrainConfig, seed: int, epoch: int) -> tuple[float, int, int, float | None]:
    """How ``batch_numbers`` makes the batches of an epoch; as long as the slowest speed makes utterances, they fit."""
    slowest, quadratic = min((1.0, *config.speed)), config.quadratic_seconds
    # d seconds become d / slowest, which count as that + d² / (slowest² quadratic).
    return config.batch_seconds * slowest, seed, epoch, quadratic and quadratic * slowest


def plan(
    train: KeptCuts | ListedCuts, config: TrainConfig, seed: int, world: int = 1, window: float | None = None
) -> tuple[int, list[int]]:
    """The steps of a run by ``world`` processes, and the largest batch (numbers of cuts; see ``survey``).

    Epochs differ by some batches. Where counting them all takes seconds, the first one stands for them.
    """
    counted = config.epochs if len(train) * config.epochs <= MOST_COUNTED else 1
    steps, candidates = 0, []
    for epoch in range(counted):
        batches, largest = survey(batch_numbers(train, *batching(config, seed, epoch)), train.durations, window)
        steps += -(-batches // (config.accumulate * world))
        candidates.append(largest)
    _, largest = survey(candidates, train.durations, window)
    return min(steps * config.epochs // counted, config.max_steps or math.inf), largest


def survey(batches: Iterable[list[int]], durations: np.ndarray, window: float | None = None) -> tuple[int, list[int]]:
    """How many batches (numbers of cuts) there are, and which has most seconds, padding included; of equal ones that
    with the longest cut. ``window``: seconds to which a model pads every utterance.
    """
    count, largest, most = 0, [], (0.0, 0.0)
    for batch in batches:
        longest = float(durations[batch].max())
        size = max(longest, window or 0.0) * len(batch), longest
        count += 1
        if size > most:
            largest, most = batch, size
    return count, largest
