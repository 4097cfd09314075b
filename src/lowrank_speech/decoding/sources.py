"""What decoders read, batch by batch: a network that is run on features, or emissions that were stored.

Inputs   a model folder, or a folder of the stage emissions; test cuts
Output   batches as in ``decoding.base``, and the time that decoding them took
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from lowrank_speech.decoding.emissions import Emissions
from lowrank_speech.errors import UserError
from lowrank_speech.features.batches import Loader, longest_first
from lowrank_speech.features.inputs import inputs_of
from lowrank_speech.features.kept import numbered
from lowrank_speech.features.store import fitting
from lowrank_speech.lang.select import SetAside, fits_window
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.folder import load_model

T = TypeVar("T")
Batch = dict[str, Any]


class Network:
    """A system's model, ready to be run on the device ``device`` (auto, cpu, cuda)."""

    reads = "model"

    def __init__(self, folder: str | Path, device: str = "auto"):
        self.folder, self.device = Path(folder), pick_device(device)
        self.model = load_model(folder).to(self.device)
        self.task, self.lang_sha256 = self.model.task, self.model.meta.lang_sha256
        self._loader = Loader(inputs_of(folder))

    def usable(self, cuts: Iterable[Any], path: str | Path, set_aside: SetAside) -> Iterator[Any]:
        """The cuts (of the file ``path``) that the model takes; longer ones than its window are set aside."""
        return fits_window(fitting(cuts, self.model.feature_size, path), self.model.window_seconds, set_aside)

    def batches(self, cuts: list[Any], batch_seconds: float) -> Iterator[Batch]:
        """All cuts once, longest first, at most ``batch_seconds`` (padding included) a batch."""
        for batch in self._loader.all(cuts, batch_seconds):
            yield batch | {name: batch[name].to(self.device) for name in ("features", "lengths")}

    def peak(self) -> int | None:
        """CUDA's peak of allocated bytes; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None


class Stored:
    """Emissions in a folder of the stage emissions."""

    reads = "emissions"

    def __init__(self, folder: str | Path):
        self.folder, self.device = Path(folder), torch.device("cpu")
        self._emissions = Emissions(folder)
        self.task, self.lang_sha256 = self._emissions.task, self._emissions.lang_sha256

    def usable(self, cuts: Iterable[Any], path: str | Path, set_aside: SetAside) -> Iterator[Any]:
        """The cuts (of the file ``path``), which all have emissions but for those that the network could not take."""
        for cut in cuts:
            if cut.id in self._emissions:
                yield cut
            elif (reason := self._emissions.set_aside.get(cut.id)) is not None:
                set_aside.add(cut.id, *reason)
            else:
                raise UserError(
                    f"{self.folder}: utterance {cut.id} of {path} has no emissions; run the stage emissions on it"
                )

    def batches(self, cuts: list[Any], batch_seconds: float) -> Iterator[Batch]:
        """All cuts once, longest first, at most ``batch_seconds`` (padding included) a batch."""
        cuts = numbered(cuts)
        for numbers in longest_first(cuts, batch_seconds):
            batch = [cuts[i] for i in numbers]
            arrays = [torch.from_numpy(self._emissions[cut.id]) for cut in batch]
            yield {
                "cuts": batch,
                "log_probs": torch.nn.utils.rnn.pad_sequence(arrays, batch_first=True),
                "frames": torch.tensor([len(array) for array in arrays]),
            }

    def peak(self) -> int | None:
        """None: the process's own peak counts."""
        return None


@dataclass
class Clock:
    """Seconds of work and of speech so far; the first batch runs twice and counts once."""

    device: torch.device
    seconds: float = 0.0
    speech: float = 0.0

    def over(self, batches: Iterable[Batch], work: Callable[[Batch], T]) -> Iterator[tuple[Batch, T]]:
        """(batch, work(batch)) of every batch, timed; reading and what the caller does in between are left out."""
        for number, batch in enumerate(batches):
            with torch.inference_mode():
                if number == 0:
                    work(batch)  # the first call pays for caches and lazy imports
                start = self._now()
                found = work(batch)
                self.seconds += self._now() - start
            self.speech += sum(spoken_seconds(cut) for cut in batch["cuts"])
            yield batch, found

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def spoken_seconds(cut: Any) -> float:
    """The seconds of speech in a cut: of whole stored features those of the recording, not of their frames."""
    if getattr(cut, "has_features", False) and abs(cut.duration - cut.features.duration) < 1e-6:
        return float((cut.custom or {}).get("seconds", cut.duration))
    return float(cut.duration)
