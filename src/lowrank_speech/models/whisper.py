"""The family whisper: log-mel in, padded to a fixed window. Functions on a ``SpeechModel`` of the family.

B batch, F frames, C mel bands, D hidden size.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_speech.errors import UserError


def front_end(model: Any) -> list[nn.Parameter]:
    """Empty: Whisper's two convolutions are part of its encoder and are fine-tuned with it, as is usual."""
    return []


def feature_size(model: Any) -> int:
    """Numbers C in a frame of the features that ``states`` takes."""
    return model.config.num_mel_bins


def window(model: Any) -> int:
    """The fixed number of input frames of 10 ms (3,000 for the published models)."""
    return model.config.max_source_positions * 2


def window_seconds(model: Any) -> float | None:
    """The longest utterance that the model takes, in seconds."""
    # Two more frames see the end of an utterance that fills the window; Whisper's extractor drops them.
    return (window(model) + 2) / 100


def frame_rate(model: Any) -> float | None:
    """None: the encoder always computes the whole window."""
    return None


def frames_of(model: Any, cut: Any) -> int:
    """Number of encoder frames of a cut with log-mel or a recording."""
    mel = cut.num_frames if getattr(cut, "has_features", False) else -(-(cut.num_samples + 200) // 160)
    return (min(mel, window(model)) + 1) // 2


def states(model: Any, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Log-mel (B, F, C) and (B,) lengths -> encoder states (B, window / 2, D) and their valid lengths (B,)."""
    # Masked after it was padded: the padding's value comes from the utterance's maximum, which a mask may hide.
    padded = pad_mel(model, features, lengths).transpose(1, 2)
    seen = model.masked(padded, lengths.clamp(max=window(model))).transpose(1, 2)
    return model.body.encoder(seen).last_hidden_state, output_lengths(model, features, lengths)


def output_lengths(model: Any, features: Tensor, lengths: Tensor) -> Tensor:
    """Valid lengths (B,) of the encoder states that ``states`` gives for ``features``; computes no state."""
    return torch.div(lengths.clamp(max=window(model)) + 1, 2, rounding_mode="floor")


def pad_mel(model: Any, features: Tensor, lengths: Tensor) -> Tensor:
    """Log-mel (B, F, C), padded to the model's window with each utterance's floor: -> (B, C, window).

    Whisper's features are log10 of at least 1e-10, clipped at 8 below the utterance's maximum, then (x + 4) / 4: the
    zeros that WhisperFeatureExtractor appends become the maximum minus 2, and never less than -1.5.
    """
    batch, frames, bands = features.shape
    size, longest = window(model), int(lengths.max())
    if longest > size + 2:
        raise UserError(
            f"an utterance of {longest / 100:.2f} s is longer than the Whisper window of {size / 100:.2f} "
            f"s; cut it, set it aside (max_seconds), or use a base with a longer window"
        )
    valid = torch.arange(frames, device=features.device)[None, :] < lengths[:, None]
    floor = features.masked_fill(~valid[..., None], float("-inf")).amax(dim=(1, 2)) - 2.0
    floor = floor.clamp(min=(math.log10(1e-10) + 4) / 4)
    padded = floor[:, None, None].expand(batch, size, bands).clone()
    keep = min(frames, size)
    padded[:, :keep] = torch.where(valid[:, :keep, None], features[:, :keep], padded[:, :keep])
    return padded.transpose(1, 2)
