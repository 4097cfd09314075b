"""Make batches of Lhotse cuts by duration.

One batch is a dict (B batch, T samples, F frames, C features):

    cuts       list of B Lhotse cuts
    features   float32 (B, T) waveforms, (B, F, C) front-end output or log-mel, zero beyond the lengths
    lengths    int64 (B,) valid samples or frames

The input of a cut is its stored features; for other cuts ``Inputs`` computes it. Only the durations decide which cuts
form a batch. Cuts, samples and arrays are read when the batch is made, in worker processes if there are any. All
processes make the same batch.
"""

import contextlib
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lhotse import CutSet
from torch import Tensor
from torch.utils.data import DataLoader

from lowrank_speech.errors import UserError
from lowrank_speech.features import workers
from lowrank_speech.features.inputs import RATE, Inputs
from lowrank_speech.features.kept import KeptCuts, ListedCuts, numbered
from lowrank_speech.features.store import read_features

if TYPE_CHECKING:
    from lowrank_speech.features.augment import Augmentation
    from lowrank_speech.features.crops import Cropped, Crops

Cuts = KeptCuts | ListedCuts | CutSet


class Loader:
    """Cuts -> batches. Keeps up to ``memory`` seconds of computed inputs in memory: short corpora are read only once.

    ``workers``: processes that prefetch batches; 0: the main process makes each batch on demand. ``augmentation``
    changes the samples of training batches; ``crops`` takes other pieces of the cuts in each epoch.
    """

    def __init__(
        self,
        inputs: Inputs,
        memory: float = 0.0,
        workers: int = 0,
        augmentation: "Augmentation | None" = None,
        crops: "Crops | None" = None,
    ):
        self.inputs, self.workers, self.augmentation, self.crops = inputs, workers, augmentation, crops
        # Workers live only for one epoch, so they cannot reuse inputs.
        self._left, self._kept = 0.0 if workers else memory, {}

    def one(self, cut: Any, draw: tuple[int, int] | None = None) -> Tensor:
        """The model's input for one cut: its stored features (F, C), or computed from its samples.

        ``draw``: (seed, epoch) of the augmentation; None: do not change the samples.
        """
        if getattr(cut, "has_features", False):
            return torch.from_numpy(read_features(cut))
        if draw is not None and self.augmentation is not None:
            return self.inputs(cut, lambda samples: self.augmentation(samples, *draw, cut.id))
        if draw is not None and self.crops is not None:
            return self.inputs(cut)  # the next epoch has another piece
        name = draw is None, cut.id  # dev and train may share an id
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
        """The batches of one epoch; see ``batch_indices``. Skips the first ``skip`` batches without reading them.

        Each of ``world`` processes makes every ``world``-th batch; batches of other processes have only ``cuts``.
        """
        cuts = numbered(cuts)
        if self.crops is not None:
            cuts = self.crops.of(cuts, epoch)
        indices = batch_indices(cuts, batch_seconds, seed, epoch, quadratic_seconds)
        dealt = ((batch, i % world == rank) for i, batch in enumerate(indices))
        return self.load(cuts, islice(dealt, skip, None), (seed, epoch))

    def all(self, cuts: Cuts, batch_seconds: float, rank: int = 0, world: int = 1) -> Iterator[dict[str, Any]]:
        """All cuts once, longest first, in batches of at most ``batch_seconds`` including padding.

        Each of ``world`` processes gets every ``world``-th batch.
        """
        cuts = numbered(cuts)
        dealt = ((batch, True) for batch in longest_first(cuts, batch_seconds))
        return self.load(cuts, islice(dealt, rank, None, world))

    def load(
        self,
        cuts: "KeptCuts | ListedCuts | Cropped",
        batches: Iterable[tuple[list[int], bool]],
        draw: tuple[int, int] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Make ``batches`` of ``cuts``, in order, in the workers if there are any.

        A batch is given as indices of cuts, and whether to make it (True) or to return only its cuts (False).
        """
        made = _Made(self, cuts, draw)
        if not self.workers:
            yield from (made[batch] for batch in batches)
            return
        # The loader needs its own generator: it would draw from torch's global one, which dropout uses.
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
    """The dataset of a ``DataLoader``, indexed by the indices of a batch's cuts and whether to make the batch."""

    def __init__(self, loader: Loader, cuts: "KeptCuts | ListedCuts | Cropped", draw: tuple[int, int] | None):
        self.loader, self.cuts, self.draw = loader, cuts, draw

    def __getitem__(self, batch: tuple[list[int], bool]) -> dict[str, Any] | UserError:
        indices, whole = batch
        cuts = [self.cuts[i] for i in indices]
        try:
            return self.loader.collate(cuts, self.draw) if whole else {"cuts": cuts}
        except UserError as error:
            if torch.utils.data.get_worker_info() is None:
                raise
            return error  # torch would add a traceback to the message of a worker's exception


def _as_it_is(batch: Any) -> Any:
    return batch


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Use one torch thread, as in a worker; with more threads, sums would round differently."""
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)


def batch_indices(
    cuts: "KeptCuts | ListedCuts | Cropped",
    batch_seconds: float,
    seed: int,
    epoch: int,
    quadratic_seconds: float | None = None,
) -> Iterator[list[int]]:
    """The batches of one epoch as lists of cut indices: cuts of similar durations in a batch, batches in random order.

    Depends only on durations, ``seed`` and ``epoch``. The longest cut times the number of cuts is at most
    ``batch_seconds``, unless a single cut is longer. With ``quadratic_seconds`` q, a cut of d seconds counts as
    d + d² / q, so long cuts get smaller batches.

    All cuts stand in a line by duration, each takes as much of it as it is long, and every epoch moves each cut forward
    by a random stretch of up to ``_stretch`` seconds. Batches are cut from the line, one after the other, as full as
    possible, and then shuffled. So each cut meets all others of its length over the epochs, and only one batch is
    incomplete.

    Lhotse's DynamicBucketingSampler pads up to eight times as much with its ten buckets. With a hundred it pads as
    little, but takes 30 times as long, exceeds ``batch_seconds`` and, in a corpus of few batches, makes half-full ones
    of the same cuts in every epoch (benchmarks/RESULTS-loader.md).
    """
    sizes = np.asarray(cuts.durations)
    if quadratic_seconds is not None:
        sizes = sizes + sizes**2 / quadratic_seconds
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(sizes)).astype(np.int32)  # so that equal durations come in random order
    order = order[np.argsort(sizes[order], kind="stable")]
    places = np.cumsum(sizes[order])
    if len(places):
        places += _stretch(places[-1], batch_seconds) * generator.random(len(places))
    order = order[np.argsort(places, kind="stable")]
    ends = _ends(sizes, order, batch_seconds)
    for number in generator.permutation(len(ends)).tolist():
        yield order[ends[number - 1] if number else 0 : ends[number]].tolist()


def _stretch(total: float, batch_seconds: float) -> float:
    """How many seconds a cut may move in the line by duration of ``total`` seconds.

    A hundredth of the line costs at most 3 % of padding. Cuts change partners if it is at least four batches; a corpus
    of few batches would pad too much with more than a sixth of the line.
    """
    return min(max(4 * batch_seconds, total / 100), total / 6)


def _ends(sizes: np.ndarray, order: np.ndarray, batch_seconds: float) -> "array[int]":
    """Where the batches end in ``order``: each takes cuts while the largest size times their number fits."""
    ends, begin, longest = array("q"), 0, 0.0
    for first in range(0, len(order), 2**16):  # Python's floats need much more memory than NumPy's
        for i, size in enumerate(sizes[order[first : first + 2**16]].tolist(), first):
            longest = max(longest, size)
            if i > begin and longest * (i + 1 - begin) > batch_seconds:
                ends.append(i)
                begin, longest = i, size
    if begin < len(order):
        ends.append(len(order))
    return ends


def longest_first(cuts: KeptCuts | ListedCuts, batch_seconds: float) -> Iterator[list[int]]:
    """All cuts once, longest first, as lists of indices of at most ``batch_seconds`` each, including padding."""
    batch: list[int] = []
    for number in np.argsort(-cuts.durations, kind="stable").tolist():
        if batch and cuts.durations[batch[0]] * (len(batch) + 1) > batch_seconds:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def segment(cuts: CutSet, seconds: float | None, seed: int | None = None) -> CutSet:
    """Cut every utterance to at most ``seconds``, at a position drawn from ``seed`` and its id (None: the middle)."""
    if seconds is None:
        return cuts
    if seconds <= 0:
        raise UserError(f"segment.seconds is {seconds}; it must be above 0")
    return cuts.map(partial(piece, seconds=seconds, seed=seed))


def piece(cut: Any, seconds: float, seed: int | None = None, place: float | None = None) -> Any:
    """At most ``seconds`` of a cut, with its id.

    ``place``: the share of the rest that is before it, 0 ... 1; None: drawn from ``seed`` and the id, or without a
    ``seed`` the middle.
    """
    spare = cut.duration - seconds
    if spare <= 0:
        return cut
    if place is None:
        place = 0.5 if seed is None else torch.rand((), generator=_generator(seed, cut.id)).item()
    offset = spare * place
    # Use whole frames: half a frame more would read one that does not exist. In floating point 2.3 / 0.02 is below 115.
    shift = cut.frame_shift if getattr(cut, "has_features", False) else 1 / RATE
    first, number = (int(x / shift + 1e-6) for x in (offset, seconds))
    return cut.truncate(offset=first * shift, duration=number * shift, preserve_id=True)


def _generator(seed: int, name: str) -> torch.Generator:
    # Torch's generator on the CPU only uses the lower 32 bits of a seed.
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
