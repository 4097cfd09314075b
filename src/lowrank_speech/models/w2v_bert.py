"""The family w2v-bert: w2v-BERT 2.0, a conformer encoder on stacked log-mel filterbanks; no convolutional front end.

Functions on a ``SpeechModel`` of the family. B batch, F frames of 20 ms, C features (two frames of mel bands), D hidden
size. Source: Barrault et al., "Seamless: Multilingual Expressive and Streaming Speech Translation", 2023.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lowrank_speech.models.wav2vec2 import adapted, after_adapter, encoded

FRAME, SHIFT, STACKED = 400, 160, 2  # samples, samples, frames; as in SeamlessM4TFeatureExtractor


def front_end(model: Any) -> list[nn.Parameter]:
    """Nothing of the model is a front end."""
    return []


def feature_size(model: Any) -> int:
    """Numbers C in a frame of the features that ``states`` takes."""
    return model.config.feature_projection_input_dim


def window_seconds(model: Any) -> float | None:
    """None: an utterance may have any length."""
    return None


def frame_rate(model: Any) -> float | None:
    """Frames in a second at the encoder's entrance."""
    return 16_000 / (SHIFT * STACKED)


def frames_of(model: Any, cut: Any) -> int:
    """Number of encoder frames of a cut with filterbanks or a recording."""
    if getattr(cut, "has_features", False):
        frames = cut.num_frames
    else:
        frames = max(1 + (cut.num_samples - FRAME) // SHIFT, 0) // STACKED
    return int(after_adapter(model, torch.tensor(frames)))


def output_lengths(model: Any, features: Tensor, lengths: Tensor) -> Tensor:
    """Valid lengths (B,) of the encoder states that ``states`` gives for ``features``; computes no state."""
    return after_adapter(model, lengths)


def states(model: Any, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Stacked filterbanks (B, F, C) and (B,) lengths -> encoder states (B, F', D) and (B,)."""
    hidden, _ = model.body.feature_projection(model.masked(features, lengths, STACKED))
    hidden = encoded(model, hidden, lengths)
    if model.body.intermediate_ffn is not None:
        hidden = hidden + 0.5 * model.body.intermediate_ffn(hidden)
    return adapted(model, hidden, lengths)
