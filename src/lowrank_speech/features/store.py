"""Store model inputs: one HDF5 file per split beside its cuts, with Lhotse's own reader and writer.

Storage is lossless, because a lossy cache (lilcom) changes error rates (icefall#1571). Cuts refer to the file only by
its name, so that a folder can be moved; ``load_cuts`` prepends the folder again.
"""

import json
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet, Features, MonoCut, NumpyHdf5Writer
from lhotse.utils import fastcopy

from lowrank_speech.artefact import atomic, gzipped
from lowrank_speech.errors import UserError


def load_cuts(path: str | Path, lazy: bool = False) -> CutSet:
    """Cuts of a split; their features are in the folder of ``path``."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; run the stage that writes these cuts")
    cuts = CutSet(_Read(path))
    return cuts if lazy else cuts.to_eager()


class _Read:
    """Iterates over the cuts of a file, with full paths of their features."""

    def __init__(self, path: Path):
        self.path = path

    def __iter__(self) -> Iterator[Any]:
        found, number = iter(CutSet.from_jsonl_lazy(self.path)), 0
        while True:
            try:
                cut = next(found, None)
                if cut is None:
                    return
                if not (math.isfinite(cut.duration) and cut.duration > 0):
                    raise ValueError(f"the duration of {cut.id} is {cut.duration}")
            # Not gzip, not JSON, another manifest, a truncated file: Lhotse has no exception of its own for these.
            except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, AttributeError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise UserError(
                    f"{self.path}: cut number {number + 1} cannot be read ({reason}); run the stage that wrote the "
                    f"file again"
                ) from error
            number += 1
            yield cut.with_features_path_prefix(self.path.parent) if getattr(cut, "has_features", False) else cut


def fitting(cuts: Iterable[Any], size: int, path: str | Path) -> Iterator[Any]:
    """Yield ``cuts`` (from the file ``path``). Raises UserError if a cut's stored features are not of size ``size``."""
    for cut in cuts:
        if getattr(cut, "has_features", False) and cut.num_features != size:
            raise UserError(
                f"{path}: utterance {cut.id} has features of size {cut.num_features} ({cut.features.type}), but the "
                f"model takes size {size}; give the features that the stage features wrote for this base"
            )
        yield cut


def read_features(cut: Any) -> np.ndarray:
    """The stored features (F, C) of ``cut``, float32. Raises UserError with its id if they cannot be read."""
    try:
        return np.asarray(cut.load_features(), dtype=np.float32)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"utterance {cut.id}: its features in {cut.features.storage_path} cannot be read ({reason}); run the stage "
            f"features again"
        ) from error


def with_features(cut, key: str, storage: str, array: np.ndarray, shift: float, kind: str) -> MonoCut:
    """A copy of ``cut`` with stored features: ``array`` (F, C), one frame every ``shift`` seconds."""
    duration = array.shape[0] * shift
    features = Features(
        type=kind,
        num_frames=array.shape[0],
        num_features=array.shape[1],
        frame_shift=shift,
        sampling_rate=16_000,
        start=0.0,
        duration=duration,
        storage_type=NumpyHdf5Writer.name,
        storage_path=storage,
        storage_key=key,
        channels=0,
        recording_id=cut.id,
    )
    (supervision,) = cut.supervisions
    # fastcopy keeps alignments and custom fields.
    supervision = fastcopy(supervision, recording_id=cut.id, start=0.0, duration=duration, channel=0)
    # Keep the true duration: the last hop of the front end may cover a little more or less.
    custom = {**(getattr(cut, "custom", None) or {}), "seconds": cut.duration}
    return MonoCut(
        id=cut.id, start=0.0, duration=duration, channel=0, supervisions=[supervision], features=features, custom=custom
    )


def write_split(
    arrays: Iterable[tuple[object, np.ndarray]], path: str | Path, shift: float, kind: str
) -> tuple[int, int]:
    """Write (cut, array (F, C)) pairs as ``path`` (.jsonl.gz) and the HDF5 file beside it; returns (cuts, frames)."""
    path = Path(path)
    storage = path.with_name(path.name.removesuffix(".jsonl.gz") + ".h5")
    counts = [0, 0]
    with atomic(storage) as temporary_h5:

        def stored() -> Iterator[MonoCut]:
            with NumpyHdf5Writer(temporary_h5) as writer:
                for cut, array in arrays:
                    key = writer.write(cut.id, array)
                    counts[0] += 1
                    counts[1] += len(array)
                    yield with_features(cut, key, storage.name, array, shift, kind)

        write_cuts(path, stored())
    return counts[0], counts[1]


def write_cuts(path: str | Path, cuts: Iterable[Any]) -> int:
    """Write cuts as gzipped JSON lines, which Lhotse's CutSet.from_file reads; returns the number of cuts."""
    count = 0
    with gzipped(path) as file:
        for cut in cuts:
            file.write((json.dumps(cut.to_dict(), ensure_ascii=False) + "\n").encode())
            count += 1
    return count
