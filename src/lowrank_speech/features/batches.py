"""Batches by duration from Lhotse cuts.

One batch is a dict (B batch, T samples, F frames, C features):

    cuts       list of B Lhotse cuts
    features   float32 (B, T) waveforms, (B, F, C) front-end output or log-mel, zero beyond the lengths
    lengths    int64 (B,) valid samples or frames

Cuts with stored features give those; from the others ``Inputs`` computes what the model eats. Which cuts make a batch
is decided from their durations alone; cuts, samples and arrays are read when the batch is made, by worker processes
where there are some. A batch does not depend on who makes it.
"""

import contextlib
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lhotse import CutSet
from lhotse.dataset import DynamicBucketingSampler
from torch import Tensor
from torch.utils.data import DataLoader

from lowrank_speech.errors import UserError
from lowrank_speech.features import workers
from lowrank_speech.features.inputs import RATE, Inputs
from lowrank_speech.features.kept import KeptCuts, ListedCuts, numbered
from lowrank_speech.features.store import read_features

if TYPE_CHECKING:
    from lowrank_speech.features.augment import Augmentation

# Of a cut that is alone in its batch; the training says how many there are.
warnings.filterwarnings("ignore", message="We have exceeded the max_duration constraint")

BUFFER = 20_000  # cuts among which Lhotse's sampler draws

Cuts = KeptCuts | ListedCuts | CutSet


class Loader:
    """Cuts -> batches. ``memory`` seconds of computed inputs are kept, so that short corpora are read once.

    ``workers``: processes that make batches ahead; 0: the batch is made when it is asked for. ``augmentation`` changes
    the samples of training batches.
    """

    def __init__(
        self, inputs: Inputs, memory: float = 0.0, workers: int = 0, augmentation: "Augmentation | None" = None
    ):
        self.inputs, self.workers, self.augmentation = inputs, workers, augmentation
        # What a worker keeps ends with it, after one epoch.
        self._left, self._kept = 0.0 if workers else memory, {}

    def one(self, cut: Any, draw: tuple[int, int] | None = None) -> Tensor:
        """The model's input for one cut: stored features (F, C), else computed from its samples.

        ``draw``: (seed, epoch) that the augmentation draws by; None: the samples as they are.
        """
        if getattr(cut, "has_features", False):
            return torch.from_numpy(read_features(cut))
        if draw is not None and self.augmentation is not None:
            return self.inputs(cut, lambda samples: self.augmentation(samples, *draw, cut.id))
        name = draw is None, cut.id  # dev may have an id of train's
        kept = self._kept.get(name)
        if kept is None:
            kept = self.inputs(cut)
            if self._left >= cut.duration:
                self._left -= cut.duration
                self._kept[name] = kept
        return kept

    def collate(self, cuts: list[Any], draw: tuple[int, int] | None = None) -> dict[str, Any]:
        """The batch of ``cuts``; see the module's docstring."""
        with _one_thread():
            inputs = [self.one(cut, draw) for cut in cuts]
        lengths = torch.tensor([len(x) for x in inputs])
        return {"cuts": cuts, "features": torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True), "lengths": lengths}

    def train(
        self,
        cuts: Cuts,
        batch_seconds: float,
        seed: int,
        epoch: int,
        quadratic_seconds: float | None = None,
        skip: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> Iterator[dict[str, Any]]:
        """The batches of one epoch; see ``batch_numbers``. Of the first ``skip`` nothing is read.

        Of ``world`` processes each makes every ``world``-th batch; those of others have nothing but their ``cuts``.
        """
        cuts = numbered(cuts)
        numbers = batch_numbers(cuts, batch_seconds, seed, epoch, quadratic_seconds)
        dealt = ((batch, i % world == rank) for i, batch in enumerate(numbers))
        return self.load(cuts, islice(dealt, skip, None), (seed, epoch))

    def all(self, cuts: Cuts, batch_seconds: float, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """All cuts once, longest first, at most ``batch_seconds`` (padding included) a batch.

        Of ``world`` processes each gets every ``world``-th batch.
        """
        cuts = numbered(cuts)
        dealt = ((batch, True) for batch in longest_first(cuts, batch_seconds))
        return self.load(cuts, islice(dealt, rank, None, world))

    def load(
        self,
        cuts: KeptCuts | ListedCuts,
        batches: Iterable[tuple[list[int], bool]],
        draw: tuple[int, int] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """The batches of ``cuts`` by their numbers, in that order, by the workers if there are some.

        With the numbers comes whether the batch is to be made, or its cuts suffice.
        """
        made = _Made(self, cuts, draw)
        if not self.workers:
            yield from (made[batch] for batch in batches)
            return
        # A generator of its own: the loader would draw from torch's, which dropout uses.
        loader = DataLoader(
            made,
            batch_size=None,
            sampler=batches,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            worker_init_fn=partial(workers.start_worker, training=os.getpid()),
            multiprocessing_context=workers.context(),
            generator=torch.Generator(),
        )
        for batch in workers.batches_of(loader):
            if isinstance(batch, UserError):
                raise batch
            yield batch


class _Made:
    """What a ``DataLoader`` indexes: by the numbers of a batch's cuts, and whether it is to be made."""

    def __init__(self, loader: Loader, cuts: KeptCuts | ListedCuts, draw: tuple[int, int] | None):
        self.loader, self.cuts, self.draw = loader, cuts, draw

    def __getitem__(self, batch: tuple[list[int], bool]) -> dict[str, Any] | UserError:
        numbers, whole = batch
        cuts = [self.cuts[i] for i in numbers]
        try:
            return self.loader.collate(cuts, self.draw) if whole else {"cuts": cuts}
        except UserError as error:
            if torch.utils.data.get_worker_info() is None:
                raise
            return error  # a worker's exceptions come with a traceback in their message


def _as_it_is(batch: Any) -> Any:
    return batch


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Torch in one thread, as in a worker: sums rounded otherwise would tell workers and the main process apart."""
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)


class _Length:
    """What Lhotse's sampler looks at in place of a cut; it also notes there which worker got it."""

    __slots__ = ("dataloading_info", "duration", "number")

    def __init__(self, number: int, duration: float):
        self.number, self.duration = number, duration


class _Lengths:
    def __init__(self, durations: np.ndarray, seed: int, epoch: int):
        self.durations, self.order = durations, np.arange(len(durations))
        if len(durations) > BUFFER:
            # Lhotse draws among the cuts in its buffer only: of a longer corpus it would mix neighbours.
            self.order = np.random.default_rng([seed, epoch]).permutation(len(durations)).astype(np.int32)

    def __iter__(self) -> Iterator[_Length]:
        return (_Length(int(i), float(self.durations[i])) for i in self.order)


def batch_numbers(
    cuts: KeptCuts | ListedCuts,
    batch_seconds: float,
    seed: int,
    epoch: int,
    quadratic_seconds: float | None = None,
) -> Iterator[list[int]]:
    """The batches of one epoch as lists of the cuts' numbers: Lhotse's dynamic buckets by duration.

    Order and batches are drawn from ``seed`` and ``epoch`` alone. The longest cut times the number of cuts is at most
    ``batch_seconds``, but for a cut that is longer alone: where the one that fills Lhotse's batch is so much longer
    than the others that it does not fit, it comes later, with others of its kind. With ``quadratic_seconds`` q a cut
    of d seconds counts as d + d² / q: long cuts come in smaller batches.
    """
    sizes = cuts.durations if quadratic_seconds is None else cuts.durations + cuts.durations**2 / quadratic_seconds
    late: list[int] = []
    for batch in _lhotses(cuts, batch_seconds, seed, epoch, quadratic_seconds):
        if len(batch) > 1 and len(batch) * sizes[batch].max() > batch_seconds:
            late.append(batch.pop())
        yield batch
        full = len(late) > 1 and len(late) * sizes[late].max() > batch_seconds
        if full:
            yield late[:-1]
            late = late[-1:]
    if late:
        yield late


def _lhotses(
    cuts: KeptCuts | ListedCuts, batch_seconds: float, seed: int, epoch: int, quadratic_seconds: float | None
) -> Iterator[list[int]]:
    """The batches that Lhotse's sampler makes; only the last cut of one may be too long for it."""
    if len(cuts) < 2:  # Lhotse makes no single bucket
        yield from [[0]] * len(cuts)
        return
    sampler = DynamicBucketingSampler(
        _Lengths(cuts.durations, seed, epoch),
        max_duration=batch_seconds,
        quadratic_duration=quadratic_seconds,
        duration_bins=bucket_bounds(cuts.durations),
        buffer_size=BUFFER,
        shuffle=True,
        seed=1000 * seed,  # to which Lhotse adds the epoch
        rank=0,
        world_size=1,
    )
    sampler.set_epoch(epoch)
    for batch in sampler:
        yield [length.number for length in batch]


def bucket_bounds(durations: np.ndarray, number: int | None = None) -> list[float]:
    """Seconds at which the next of at most ``number`` buckets begins, in rising order; each holds an equal share of the
    speech. By default up to ten, of twenty utterances or more.

    Lhotse would estimate them from the first 10,000 cuts, which may all be of one kind.
    """
    ordered, bounds, begin = np.sort(durations), [], 0.0
    total = np.cumsum(ordered)
    share = total[-1] / (number or min(10, max(2, len(durations) // 20)))
    # As lhotse's estimate_duration_buckets: a bucket ends when it has more than its share.
    while (last := int(np.searchsorted(total, begin + share, side="right"))) + 1 < len(ordered):
        bounds.append(float(ordered[last + 1]))
        begin = total[last]
    return bounds


def longest_first(cuts: KeptCuts | ListedCuts, batch_seconds: float) -> Iterator[list[int]]:
    """All cuts once as lists of their numbers, longest first, at most ``batch_seconds`` (padding included) each."""
    batch: list[int] = []
    for number in np.argsort(-cuts.durations, kind="stable").tolist():
        if batch and cuts.durations[batch[0]] * (len(batch) + 1) > batch_seconds:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def segment(cuts: CutSet, seconds: float | None, seed: int | None = None) -> CutSet:
    """Cut every utterance to at most ``seconds``: from a place drawn from ``seed`` and its id, or its middle."""
    if seconds is None:
        return cuts
    if seconds <= 0:
        raise UserError(f"segment.seconds is {seconds}: it must be positive")
    return cuts.map(partial(_window, seconds=seconds, seed=seed))


def _window(cut: Any, seconds: float, seed: int | None) -> Any:
    spare = cut.duration - seconds
    if spare <= 0:
        return cut
    place = 0.5 if seed is None else torch.rand((), generator=_generator(seed, cut.id)).item()
    offset = spare * place
    # A whole number of frames: half a frame more would read one that is not there. In floats 2.3 / 0.02 is below 115.
    shift = cut.frame_shift if getattr(cut, "has_features", False) else 1 / RATE
    first, number = (int(x / shift + 1e-6) for x in (offset, seconds))
    return cut.truncate(offset=first * shift, duration=number * shift, preserve_id=True)


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed((seed << 32) ^ zlib.crc32(name.encode()))
