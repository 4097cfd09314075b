"""The family wav2vec2: waveform in, a frozen convolutional front end, a transformer encoder.

wav2vec 2.0, XLS-R, MMS, HuBERT, WavLM and data2vec-audio share it. B batch, T samples, F frames, C features, D hidden
size.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_speech.models.build import build, config_with
from lowrank_speech.models.families.corrections import correct
from lowrank_speech.models.families.encoders import Encoder
from lowrank_speech.models.families.layers import groups
from lowrank_speech.models.files import PREPROCESSOR
from lowrank_speech.models.heads.base import Head
from lowrank_speech.models.preprocessor import preprocessor_files
from lowrank_speech.models.speech import Meta, SpeechModel

log = logging.getLogger(__name__)

RATE = 16_000


class Wav2vec2(Encoder):
    FAMILY = "wav2vec2"
    STEMS: ClassVar = {
        "wav2vec2": "Wav2Vec2",
        "hubert": "Hubert",
        "wavlm": "WavLM",
        "data2vec-audio": "Data2VecAudio",
    }
    LAYERS = groups({"": "*encoder.layers.*.feed_forward.*_dense"}, {"": "*encoder.layers.*.attention.*_proj"})
    LORA = (
        "*encoder.layers.*.attention.q_proj",
        "*encoder.layers.*.attention.v_proj",
        "*encoder.layers.*.feed_forward.*_dense",
    )

    def __init__(self, hf: nn.Module, head: Head | None, meta: Meta):
        correct(hf)
        super().__init__(hf, head, meta)

    @classmethod
    def check_import(cls, config: Any, folder: Path, task: str) -> None:
        if not preprocessor_files(folder):
            log.warning(
                "%s has no %s, so samples will be normalised to zero mean and unit variance; if the model was trained "
                "without that, add the file with do_normalize: false", folder, " or ".join(PREPROCESSOR),
            )  # fmt: skip
        if getattr(config, "adapter_attn_dim", None) is not None:
            log.warning(
                "%s has MMS's language adapters in its layers: those in its main weights stay part of the model, but "
                "its adapter.* files are not read",
                folder,
            )

    @classmethod
    def scratch(cls, overrides: Mapping[str, Any], tokens: Any, seed: int) -> SpeechModel:
        from transformers import Wav2Vec2Config

        special = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
        config = config_with(Wav2Vec2Config, overrides, vocab_size=tokens.size, **special)
        torch.manual_seed(seed)
        return build("ctc", config)

    # -- lengths and inputs ------------------------------------------------------------------------------------------

    @classmethod
    def inputs(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> dict[str, Any]:
        return {"kind": "waveform", "normalise": preprocessor.get("do_normalize", True)}

    def front_end(self) -> list[nn.Parameter]:
        return list(self.body.feature_extractor.parameters())

    @property
    def feature_size(self) -> int:
        return self.config.conv_dim[-1]

    @property
    def frame_rate(self) -> float:
        return RATE / math.prod(self.config.conv_stride)

    @property
    def feature_shift(self) -> float:
        return math.prod(self.config.conv_stride) / RATE

    def frames_of(self, cut: Any) -> int:
        """Number of encoder frames of a cut with front-end features or a recording."""
        if getattr(cut, "has_features", False):
            frames = torch.tensor(cut.num_frames)
        else:
            frames = self.conv_lengths(torch.tensor(cut.num_samples))
        return int(self.after_adapter(frames))

    def conv_lengths(self, samples: Tensor) -> Tensor:
        """Number of front-end frames for waveforms of ``samples`` samples (int64, any shape)."""
        # HuBERT has no adapter, so its length function does not have this argument.
        options = {"add_adapter": False} if hasattr(self.config, "add_adapter") else {}
        return self.hf._get_feat_extract_output_lengths(samples, **options).clamp(min=0)

    def stored_features(self, inputs: Tensor) -> Tensor:
        samples = torch.tensor([len(inputs)])
        if int(self.conv_lengths(samples)) < 1:
            raise ValueError(f"{len(inputs) / RATE:.3f} s is too short for one frame of the front end")
        return self.conv_features(inputs[None], samples)[0]

    # -- forward -----------------------------------------------------------------------------------------------------

    def states(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T) or front-end output (B, F, C), and (B,) lengths -> encoder states (B, F', D) and (B,)."""
        frames = self._front_lengths(features, lengths)
        if features.dim() == 2:
            features = self.conv_features(features, lengths)
        hidden = self.body.feature_projection(self.masked(features, frames))
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # HuBERT returns only the projection
        return self.adapted(self.encoded(hidden, frames), frames)

    def output_lengths(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.after_adapter(self._front_lengths(features, lengths))

    def layer_lengths(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self._front_lengths(features, lengths)  # the adapter comes after the layers

    def _front_lengths(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.conv_lengths(lengths) if features.dim() == 2 else lengths

    # -- the convolutional front end ---------------------------------------------------------------------------------

    def conv_features(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Output of the convolutional front end: waveforms (B, T) -> (B, F, C).

        With ``feat_extract_norm='group'`` (the base sizes of wav2vec 2.0, HuBERT, WavLM) the first layer normalises
        over time, including padding. Then the front end runs on one utterance at a time, so that outputs do not depend
        on the batch.
        """
        if self._norm_over_time and len(waveforms) > 1:
            rows = [self._convolve(w[None, :n])[0] for w, n in zip(waveforms, lengths.tolist(), strict=True)]
            return nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return self._convolve(waveforms)

    def _convolve(self, waveforms: Tensor) -> Tensor:
        # Call the layers one by one. The whole module also asks for the gradient of the samples (for transformers'
        # checkpointing), and then the backward pass of the first convolution takes ten times as long.
        layers, hidden = list(self.body.feature_extractor.conv_layers), waveforms[:, None]
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.front_end())
        run = through if trains or self._norm_over_time else in_pieces
        return run(layers, hidden).transpose(1, 2)

    @property
    def _norm_over_time(self) -> bool:
        return getattr(self.config, "feat_extract_norm", "layer") == "group"


def through(layers: Sequence[nn.Module], hidden: Tensor) -> Tensor:
    """Output of ``layers`` for ``hidden`` (B, C, T), over the whole length at once."""
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def in_pieces(layers: Sequence[nn.Module], hidden: Tensor) -> Tensor:
    """Output of ``layers`` for ``hidden`` (B, C, T), computed some frames at a time; the same up to rounding.

    For a second of speech, XLS-R's first layer makes 6.5 MB, three times over, its last one 0.1 MB. Pieces need a
    fraction of the memory, and on a CPU they stay in the cache: 1.2 to 3 times as fast (benchmarks/front_end.py).
    """
    reach, stride = 1, 1  # receptive field of a frame, and distance between frames, in samples
    for layer in layers:
        reach += (layer.conv.kernel_size[0] - 1) * stride
        stride *= layer.conv.stride[0]
    frames = max((hidden.shape[2] - reach) // stride + 1, 0)
    # Piece length in samples. The CPU's was measured; a GPU needs large products, and 20 s limit its memory.
    samples = 320_000 // len(hidden) if hidden.is_cuda else min(32_000 // len(hidden), 8000)
    piece = max(samples, 4000) // stride or 1
    if frames <= piece:
        return through(layers, hidden)
    pieces = [
        through(layers, hidden[:, :, start * stride : (min(start + piece, frames) - 1) * stride + reach])
        for start in range(0, frames, piece)
    ]
    return torch.cat(pieces, 2)
