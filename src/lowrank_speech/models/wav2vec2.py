"""The family wav2vec2: waveform in, a frozen convolutional front end, a transformer encoder.

wav2vec 2.0, XLS-R, MMS, HuBERT, WavLM and data2vec-audio share it. Functions on a ``SpeechModel`` of the family.
B batch, T samples, F frames, C features, D hidden size.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


def front_end(model: Any) -> list[nn.Parameter]:
    """Parameters of the convolutions, which fine-tuning always keeps frozen."""
    return list(model.body.feature_extractor.parameters())


def feature_size(model: Any) -> int:
    """Numbers C in a frame of the features that ``states`` takes."""
    return model.config.conv_dim[-1]


def window_seconds(model: Any) -> float | None:
    """None: an utterance may have any length."""
    return None


def frame_rate(model: Any) -> float | None:
    """Frames in a second at the encoder's entrance."""
    return 16_000 / math.prod(model.config.conv_stride)


def frames_of(model: Any, cut: Any) -> int:
    """Number of encoder frames of a cut with front-end features or a recording."""
    if getattr(cut, "has_features", False):
        frames = torch.tensor(cut.num_frames)
    else:
        frames = conv_lengths(model, torch.tensor(cut.num_samples))
    return int(after_adapter(model, frames))


def states(model: Any, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Waveforms (B, T) or front-end output (B, F, C), and (B,) lengths -> encoder states (B, F', D) and (B,)."""
    frames = _front_lengths(model, features, lengths)
    if features.dim() == 2:
        features = conv_features(model, features, lengths)
    hidden = model.body.feature_projection(model.masked(features, frames))
    hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # HuBERT gives the projection alone
    return adapted(model, encoded(model, hidden, frames), frames)


def encoded(model: Any, hidden: Tensor, frames: Tensor) -> Tensor:
    """The encoder's states (B, F, D) for ``hidden`` (B, F, D), of which ``frames`` (B,) are no padding.

    Training computes them at the next of ``model.buckets`` frames, where the model has any: what is compiled for a
    length then meets few of them.
    """
    longest = hidden.shape[1]
    size = next((n for n in model.buckets if n >= longest), longest) if model.training else longest
    hidden = nn.functional.pad(hidden, (0, 0, 0, size - longest))
    # A bool mask: with an int64 one transformers zeroes the wrong rows.
    return model.body.encoder(hidden, attention_mask=valid(hidden, frames)).last_hidden_state[:, :longest]


def output_lengths(model: Any, features: Tensor, lengths: Tensor) -> Tensor:
    """Valid lengths (B,) of the encoder states that ``states`` gives for ``features``; computes no state."""
    return after_adapter(model, _front_lengths(model, features, lengths))


def _front_lengths(model: Any, features: Tensor, lengths: Tensor) -> Tensor:
    return conv_lengths(model, lengths) if features.dim() == 2 else lengths


def valid(hidden: Tensor, frames: Tensor) -> Tensor:
    """Bool (B, F): the frames of ``hidden`` (B, F, D) that are no padding."""
    return torch.arange(hidden.shape[1], device=hidden.device)[None, :] < frames[:, None]


# -- the convolutional front end ---------------------------------------------------------------------------------------


def conv_lengths(model: Any, samples: Tensor) -> Tensor:
    """Number of front-end frames for waveforms of ``samples`` samples (int64, any shape)."""
    # HuBERT's length function knows no adapter, as its model has none.
    options = {"add_adapter": False} if hasattr(model.config, "add_adapter") else {}
    return model.hf._get_feat_extract_output_lengths(samples, **options).clamp(min=0)


def conv_features(model: Any, waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Output of the convolutional front end: waveforms (B, T) -> (B, F, C).

    With ``feat_extract_norm='group'`` (the base sizes of wav2vec 2.0, HuBERT, WavLM) the first layer normalises over
    time, padding included, so each utterance is computed alone: a batch must give what single utterances give.
    """
    if _norm_over_time(model) and len(waveforms) > 1:
        alone = [_convolve(model, w[None, :n])[0] for w, n in zip(waveforms, lengths.tolist(), strict=True)]
        return nn.utils.rnn.pad_sequence(alone, batch_first=True)
    return _convolve(model, waveforms)


def _convolve(model: Any, waveforms: Tensor) -> Tensor:
    # The layers one by one: called as a whole, transformers asks for the gradient of the samples too (for its
    # checkpointing), and the backward of the first convolution takes ten times as long.
    layers, hidden = list(model.body.feature_extractor.conv_layers), waveforms[:, None]
    trains = torch.is_grad_enabled() and any(p.requires_grad for p in front_end(model))
    run = _through if trains or _norm_over_time(model) else _in_pieces
    return run(layers, hidden).transpose(1, 2)


def _norm_over_time(model: Any) -> bool:
    return getattr(model.config, "feat_extract_norm", "layer") == "group"


def _through(layers: list[nn.Module], hidden: Tensor) -> Tensor:
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def _in_pieces(layers: list[nn.Module], hidden: Tensor) -> Tensor:
    """Output of ``layers`` for ``hidden`` (B, C, T), computed some frames at a time; the same to rounding.

    XLS-R's first layer makes 6.5 MB of a second of speech, three times over, the last one 0.1. Pieces need a fraction
    of the memory, and on a CPU they stay in its cache: 1.2 to 3 times as fast (benchmarks/front_end.py).
    """
    reach, stride = 1, 1  # samples that one frame sees, and from one frame to the next
    for layer in layers:
        reach += (layer.conv.kernel_size[0] - 1) * stride
        stride *= layer.conv.stride[0]
    frames = max((hidden.shape[2] - reach) // stride + 1, 0)
    # In samples, whatever the stride. CPU: by measurement; a GPU wants large products, 20 s bound its memory.
    samples = 320_000 // len(hidden) if hidden.is_cuda else min(32_000 // len(hidden), 8000)
    piece = max(samples, 4000) // stride or 1
    if frames <= piece:
        return _through(layers, hidden)
    pieces = [
        _through(layers, hidden[:, :, start * stride : (min(start + piece, frames) - 1) * stride + reach])
        for start in range(0, frames, piece)
    ]
    return torch.cat(pieces, 2)


# -- the convolutional adapter that some checkpoints put on top (add_adapter) ------------------------------------------


def after_adapter(model: Any, frames: Tensor) -> Tensor:
    """Number of frames that the adapter leaves of ``frames``; all of them where there is none."""
    if getattr(model.body, "adapter", None) is not None:
        for _ in range(model.config.num_adapter_layers):
            frames = torch.div(frames - 1, model.config.adapter_stride, rounding_mode="floor") + 1
    return frames


def adapted(model: Any, hidden: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """States (B, F, D) and their lengths (B,) after the adapter.

    Its convolutions see across the end of an utterance, so each is computed alone.
    """
    adapter = getattr(model.body, "adapter", None)
    if adapter is None:
        return hidden, frames
    if len(hidden) == 1:
        return adapter(hidden[:, : int(frames)]), after_adapter(model, frames)
    alone = [adapter(row[None, :n])[0] for row, n in zip(hidden, frames.tolist(), strict=True)]
    return nn.utils.rnn.pad_sequence(alone, batch_first=True), after_adapter(model, frames)
