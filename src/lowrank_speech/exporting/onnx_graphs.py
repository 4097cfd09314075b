"""What the ONNX graphs compute: torch modules around a ``SpeechModel``, for a batch of utterances of different lengths.

    Encoding         an encoder and its head                 samples or features, lengths -> log_probs (and frames)
    WhisperEncoding  Whisper's encoder and a classifier      features, lengths -> log_probs
    Prefill          Whisper's encoder                       features -> keys and values of the cross-attention
    Step             Whisper's decoder with its cache        tokens, keys and values -> log_probs, keys and values

The normalisation of samples is in the graph. Where the model runs one utterance at a time because its layers would read
padding, these modules mask the padding instead. B batch, T samples, F frames, C features or mel bands, V symbols.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_speech.models.heads.base import within
from lowrank_speech.models.speech import SpeechModel

EPSILON = 1e-7  # of transformers' Wav2Vec2FeatureExtractor


class Encoding(nn.Module):
    """Samples (B, T) or features (B, F, C), and lengths (B,) -> what the model's head computes.

    ``normalise``: samples get zero mean and unit variance first. CTC: log_probs (B, F, V) and frames (B,);
    classification: log_probs (B, N); without a head: states (B, F, D) and frames (B,).
    """

    def __init__(self, model: SpeechModel, normalise: bool):
        super().__init__()
        self.model, self.normalise = model, normalise
        if getattr(model.body, "adapter", None) is not None:
            model.adapted = functools.partial(_adapted, model)

    @property
    def takes_samples(self) -> bool:
        return bool(self.model.front_end())

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        if self.takes_samples:
            if self.normalise:
                features = _normalised(features, lengths)
            features, lengths = _convolved(self.model, features, lengths), self.model.conv_lengths(lengths)
        states, frames = self.model.states(features, lengths)
        if self.model.head is None:
            return states, frames
        log_probs = self.model.head_logits(states, frames).log_softmax(-1)
        return (log_probs, frames) if self.model.task == "ctc" else (log_probs,)


def _normalised(samples: Tensor, lengths: Tensor) -> Tensor:
    """Zero mean and unit variance over the valid samples."""
    valid, n = within(lengths, samples.shape[1]), lengths[:, None]
    mean = (samples * valid).sum(1, keepdim=True) / n
    centred = (samples - mean) * valid
    return centred / torch.sqrt(centred.square().sum(1, keepdim=True) / n + EPSILON)


def _convolved(model: SpeechModel, samples: Tensor, lengths: Tensor) -> Tensor:
    """The convolutional front end: samples (B, T) -> (B, F, C)."""
    hidden = samples[:, None]
    for layer in model.body.feature_extractor.conv_layers:
        norm = getattr(layer, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):  # over time: leave the padding out
            hidden = layer.conv(hidden)
            frames = torch.div(lengths - layer.conv.kernel_size[0], layer.conv.stride[0], rounding_mode="floor") + 1
            hidden = layer.activation(_group_normed(norm, hidden, frames))
        else:
            hidden = layer(hidden)
    return hidden.transpose(1, 2)


def _group_normed(norm: nn.GroupNorm, hidden: Tensor, frames: Tensor) -> Tensor:
    """The norm of each channel of ``hidden`` (B, C, F) over its valid ``frames`` (B,)."""
    valid, n = within(frames, hidden.shape[2])[:, None], frames[:, None, None]
    mean = (hidden * valid).sum(2, keepdim=True) / n
    centred = (hidden - mean) * valid
    variance = centred.square().sum(2, keepdim=True) / n
    return centred / torch.sqrt(variance + norm.eps) * norm.weight[:, None] + norm.bias[:, None]


def _adapted(model: SpeechModel, hidden: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """The convolutional adapter on top: states (B, F, D) and (B,) -> the same, shorter."""
    adapter = model.body.adapter
    if adapter.proj is not None:
        hidden = adapter.proj_layer_norm(adapter.proj(hidden))
    if model.family == "w2v-bert":
        return _conformer_adapted(model, hidden, frames)
    for layer in adapter.layers:
        hidden = hidden * within(frames, hidden.shape[1])[..., None]
        hidden = layer(hidden.transpose(1, 2)).transpose(1, 2)
        frames = torch.div(frames - 1, model.config.adapter_stride, rounding_mode="floor") + 1
    return hidden, frames


def _conformer_adapted(model: SpeechModel, hidden: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    for layer in model.body.adapter.layers:
        mask = within(frames, hidden.shape[1])
        frames = torch.div(frames - 1, model.config.adapter_stride, rounding_mode="floor") + 1
        hidden = layer(hidden * mask[..., None], attention_mask=mask, sub_sampled_lengths=frames)
    return hidden, frames


class WhisperEncoding(nn.Module):
    """Log-mel features (B, C, window), padded as transformers' extractor does, and lengths (B,) in frames of 10 ms ->
    log_probs (B, N) of the classes."""

    def __init__(self, model: SpeechModel):
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        states = model.mixed(lambda: model.body.encoder(features).last_hidden_state)
        frames = torch.div(lengths.clamp(max=model.window) + 1, 2, rounding_mode="floor")
        return (model.head_logits(states, frames).log_softmax(-1),)


class Prefill(nn.Module):
    """Log-mel features (B, C, window) -> keys and values of each decoder layer's cross-attention, (B, heads, F, d)."""

    def __init__(self, model: SpeechModel):
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        states = self.model.body.encoder(features).last_hidden_state
        found: list[Tensor] = []
        for layer in self.model.body.decoder.layers:
            attention = layer.encoder_attn
            for projection in (attention.k_proj, attention.v_proj):
                found.append(projection(states).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
        return tuple(found)


class SmallTable(nn.Module):
    """A token embedding with rows of 8-bit integers, and a scale for each."""

    def __init__(self, table: Tensor):
        super().__init__()
        scale = table.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("rows", (table / scale).round().to(torch.int8))

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows[ids].float() * self.scale[ids]


def part_embedding(model: SpeechModel) -> None:
    """Part (in place) a dense embedding from the output projection that it is tied to: a ``SmallTable``, and a matrix
    of its own, which can be quantised like any other. Without this, both stay in float32."""
    projection = model.projection() if model.decodes else None
    if projection is not None:
        weight = model.body.decoder.embed_tokens.weight.detach()
        model.body.decoder.embed_tokens = SmallTable(weight)
        projection.weight = nn.Parameter(weight.clone(), requires_grad=False)


class Step(nn.Module):
    """Tokens (B, L) after the P tokens in the cache -> log_probs (B, L, V), and the cache with L more.

    ``cache``: keys and values of each layer's self-attention, (B, heads, P, d); ``cross``: those of ``Prefill``.
    """

    def __init__(self, model: SpeechModel):
        super().__init__()
        self.model = model
        decoder = inspect.signature(model.body.decoder.forward).parameters
        self.argument = "cache" if "cache" in decoder else "past_key_values"  # its name before transformers 5.2

    def forward(self, tokens: Tensor, cache: Sequence[Tensor], cross: Sequence[Tensor]) -> tuple[Tensor, ...]:
        from transformers.cache_utils import DynamicCache, EncoderDecoderCache

        own, seen = DynamicCache(), DynamicCache()
        for i in range(len(cache) // 2):
            own.update(cache[2 * i], cache[2 * i + 1], i)
            seen.update(cross[2 * i], cross[2 * i + 1], i)
        both = EncoderDecoderCache(own, seen)
        both.is_updated = dict.fromkeys(range(len(cache) // 2), True)
        # The decoder only asks for the size of the states: it reads keys and values from the cache.
        states = cross[0].transpose(1, 2).flatten(2)
        given: dict[str, Any] = {self.argument: both}
        out = self.model.body.decoder(input_ids=tokens, encoder_hidden_states=states, use_cache=True, **given)
        log_probs = self.model.hf.proj_out(out.last_hidden_state).log_softmax(-1)
        layers = own.layers
        return log_probs, *(part for layer in layers for part in (layer.keys, layer.values))
