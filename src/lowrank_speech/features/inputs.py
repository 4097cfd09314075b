"""What a model eats, computed from a cut's samples: the waveform itself or Whisper's log-mel spectrogram."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lowrank_speech.features.logmel import log_mel

RATE = 16_000


@dataclass(frozen=True)
class Inputs:
    """``kind`` waveform: (T,) float32, with ``normalise`` at zero mean and unit variance per utterance, as
    Wav2Vec2FeatureExtractor does; logmel: (F, n_mels) float32."""

    kind: Literal["waveform", "logmel"]
    normalise: bool = True
    n_mels: int = 80

    def __call__(self, cut: Any) -> Tensor:
        audio = torch.from_numpy(np.ascontiguousarray(cut.load_audio()[0], dtype=np.float32))
        if self.kind == "logmel":
            return log_mel(audio, self.n_mels)
        if self.normalise:
            audio = (audio - audio.mean()) / torch.sqrt(audio.var(unbiased=False) + 1e-7)
        return audio


def inputs_of(folder: str | Path, family: str, n_mels: int = 80) -> Inputs:
    """The inputs of the model in ``folder``; its ``preprocessor_config.json`` says whether waveforms are normalised."""
    if family == "whisper":
        return Inputs("logmel", n_mels=n_mels)
    file = Path(folder) / "preprocessor_config.json"
    normalise = json.loads(file.read_text(encoding="utf-8")).get("do_normalize", True) if file.is_file() else True
    return Inputs("waveform", normalise=normalise)
