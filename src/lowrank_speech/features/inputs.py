"""Compute a model's input from a cut's samples: the waveform itself, filterbanks, or Whisper's log-mel."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lhotse.audio.utils import AudioLoadingError
from torch import Tensor

from lowrank_speech.errors import UserError
from lowrank_speech.features.fbank import stacked_fbank
from lowrank_speech.features.logmel import log_mel
from lowrank_speech.models.preprocessor import read_preprocessor
from lowrank_speech.models.registry import family_class, family_of

RATE = 16_000


@dataclass(frozen=True)
class Inputs:
    """The kind of a model's input, and its options.

    waveform  (T,) float32; with ``normalise``, zero mean and unit variance per utterance, as Wav2Vec2FeatureExtractor
    fbank     w2v-BERT's (F, 2 * n_mels) float32
    logmel    Whisper's (F, n_mels) float32
    """

    kind: Literal["waveform", "fbank", "logmel"]
    normalise: bool = True
    n_mels: int = 80

    def __call__(self, cut: Any, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The input for a cut; ``change`` may alter its samples. Raises UserError with its id if it is too short."""
        try:
            audio = torch.from_numpy(np.ascontiguousarray(cut.load_audio()[0], dtype=np.float32))
        except (AudioLoadingError, OSError, RuntimeError) as error:
            raise UserError(
                f"utterance {cut.id}: {_unreadable(cut, error)}; restore the file, or remove the utterance from the "
                f"corpus"
            ) from error
        try:
            return self.of(audio if change is None else change(audio))
        except ValueError as error:
            raise UserError(f"utterance {cut.id}: {error}; raise the corpus's min_seconds") from error

    def of(self, audio: Tensor) -> Tensor:
        """The input for samples (T,) at 16 kHz, float32 in [-1, 1]. Raises ValueError if they are too few."""
        if self.kind == "logmel":
            return log_mel(audio, self.n_mels)
        if self.kind == "fbank":
            return stacked_fbank(audio, self.n_mels)
        if self.normalise:
            audio = (audio - audio.mean()) / torch.sqrt(audio.var(unbiased=False) + 1e-7)
        return audio


def _unreadable(cut: Any, error: Exception) -> str:
    """Which recording of ``cut`` cannot be read, and why."""
    parts = [track.cut for track in cut.tracks] if hasattr(cut, "tracks") else [cut]
    recordings = [part.recording for part in parts if getattr(part, "recording", None) is not None]
    paths = [Path(source.source) for recording in recordings for source in recording.sources if source.type == "file"]
    for path in paths:
        if not path.is_file():
            return f"{path} does not exist"
        if not path.stat().st_size:
            return f"{path} is empty"
    # Lhotse lists the error of each of its back ends, one per line; the first one, libsndfile, is the one for speech.
    said = str(error).strip().splitlines() or [type(error).__name__]
    reason = next((line.rpartition(">: ")[2] for line in said if line.startswith("Exception #")), said[0])
    return f"{', '.join(map(str, paths))} cannot be read ({reason})"


def inputs_of(folder: str | Path) -> Inputs:
    """The inputs of the model in ``folder``, from its config.json and the settings of its feature extractor.

    Raises UserError if the folder is not a model folder, or the extractor's settings do not fit the model.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise UserError(f"{folder} is not a model folder: config.json is missing; give the folder of a model")
    config = json.loads(file.read_text(encoding="utf-8"))
    family = family_class(family_of(config.get("model_type"), str(file)))
    found = read_preprocessor(folder)
    return Inputs(**family.inputs(config, found.settings, str(found.file)))
