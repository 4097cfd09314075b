"""The input of decoders, batch by batch: a network with features, or stored emissions.

Inputs   a model folder, or a folder of the stage emissions; test cuts
Output   batches as in ``decoding.base``, and the time that decoding takes
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
from lowrank_speech.features.inputs import Inputs, inputs_of
from lowrank_speech.features.kept import numbered
from lowrank_speech.features.store import fitting
from lowrank_speech.lang.select import SetAside, fits_window
from lowrank_speech.models import mean_logmel
from lowrank_speech.models.device import pick_device
from lowrank_speech.models.folder import load_model

T = TypeVar("T")
Batch = dict[str, Any]


class Network:
    """The model of a system, on ``device`` (auto, cpu, cuda)."""

    reads = "model"

    def __init__(self, folder: str | Path, device: str = "auto"):
        self.folder, self.device = Path(folder), pick_device(device)
        control = mean_logmel.load(folder)
        self.model = (load_model(folder) if control is None else control).to(self.device)
        self.task, self.lang_sha256 = self.model.task, self.model.meta.lang_sha256
        self.resources: dict[str, Any] = {}
        self._loader = Loader(inputs_of(folder) if control is None else Inputs("logmel", n_mels=mean_logmel.BANDS))

    def usable(
        self, cuts: Iterable[Any], path: str | Path, set_aside: SetAside, any_length: bool = False
    ) -> Iterator[Any]:
        """Yield the cuts (from the file ``path``) that the model accepts; set aside those longer than its window,
        unless the decoder takes cuts of ``any_length``."""
        if self.model.family == mean_logmel.NAME:
            cuts = mean_logmel.usable(cuts, path)
        window = None if any_length else self.model.window_seconds
        return fits_window(fitting(cuts, self.model.feature_size, path), window, set_aside)

    def batches(self, cuts: list[Any], batch_seconds: float) -> Iterator[Batch]:
        """Yield all cuts once, longest first, with at most ``batch_seconds`` per batch, padding included."""
        for batch in self._loader.all(cuts, batch_seconds):
            yield batch | {name: batch[name].to(self.device) for name in ("features", "lengths")}

    def peak(self) -> int | None:
        """Peak of the memory that CUDA allocated, in bytes; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None


class Stored:
    """Stored emissions, in a folder of the stage emissions.

    ``device``: where the decoder computes; one that can use CUDA sets it by ``asked`` (auto, cpu, cuda).
    """

    reads = "emissions"

    def __init__(self, folder: str | Path, asked: str = "auto"):
        self.folder, self.device, self.asked = Path(folder), torch.device("cpu"), asked
        self._emissions = Emissions(folder)
        self.task, self.lang_sha256 = self._emissions.task, self._emissions.lang_sha256
        self.resources: dict[str, Any] = {}

    def usable(
        self, cuts: Iterable[Any], path: str | Path, set_aside: SetAside, any_length: bool = False
    ) -> Iterator[Any]:
        """Yield the cuts (from the file ``path``) with emissions; set aside those that the network could not process.

        UserError: other cuts have no emissions.
        """
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
        """Yield all cuts once, longest first, with at most ``batch_seconds`` per batch, padding included."""
        cuts = numbered(cuts)
        for numbers in longest_first(cuts, batch_seconds):
            batch = [cuts[i] for i in numbers]
            arrays = [torch.from_numpy(self._emissions[cut.id]) for cut in batch]
            yield {
                "cuts": batch,
                "log_probs": torch.nn.utils.rnn.pad_sequence(arrays, batch_first=True),
                "frames": torch.tensor([len(array) for array in arrays]),
                "frame_seconds": [
                    spoken_seconds(cut) / max(len(array), 1) for cut, array in zip(batch, arrays, strict=True)
                ],
            }

    def peak(self) -> int | None:
        """None: use the peak of the process."""
        return None


@dataclass
class Clock:
    """Measures seconds of work and of speech. The first batch runs twice, to warm up, and counts once."""

    device: torch.device
    seconds: float = 0.0
    speech: float = 0.0

    def over(self, batches: Iterable[Batch], work: Callable[[Batch], T]) -> Iterator[tuple[Batch, T]]:
        """Yield (batch, work(batch)) for each batch. Only ``work`` is timed: no reading, and no work of the caller."""
        for number, batch in enumerate(batches):
            with torch.inference_mode():
                if number == 0:
                    work(batch)  # warm up caches and lazy imports
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
    """Duration of a cut. For a whole recording with stored features it is the recording's, not that of the frames."""
    if getattr(cut, "has_features", False) and abs(cut.duration - cut.features.duration) < 1e-6:
        return float((cut.custom or {}).get("seconds", cut.duration))
    return float(cut.duration)
