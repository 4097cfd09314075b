"""The family w2v-bert: w2v-BERT 2.0, a conformer encoder on stacked log-mel filterbanks; no convolutional front end.

B batch, F frames of 20 ms, C features (two frames of mel bands), D hidden size. Source: Barrault et al., "Seamless:
Multilingual Expressive and Streaming Speech Translation", 2023.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lowrank_speech.errors import UserError
from lowrank_speech.models.families.encoders import Encoder
from lowrank_speech.models.families.layers import groups

RATE = 16_000
FRAME, SHIFT, STACKED = 400, 160, 2  # samples, samples, frames; as in SeamlessM4TFeatureExtractor


class W2vBert(Encoder):
    FAMILY = "w2v-bert"
    STEMS: ClassVar = {"wav2vec2-bert": "Wav2Vec2Bert"}
    # ffn1 and ffn2 of a conformer block; its pointwise convolutions are not linear layers.
    LAYERS = groups({"": "*encoder.layers.*.ffn[12].*_dense"}, {"": "*encoder.layers.*.self_attn.linear_[qkvo]*"})
    LORA = (
        "*encoder.layers.*.self_attn.linear_q",
        "*encoder.layers.*.self_attn.linear_v",
        "*encoder.layers.*.ffn[12].*_dense",
    )

    @classmethod
    def check_import(cls, config: Any, folder: Path, task: str) -> None:
        positions = getattr(config, "position_embeddings_type", "relative_key")
        if positions not in ("relative_key", None):
            raise UserError(
                f"{folder}/config.json: position_embeddings_type {positions!r} is not supported; use a checkpoint "
                f"with relative_key, such as w2v-BERT 2.0"
            )

    # -- lengths and inputs ------------------------------------------------------------------------------------------

    @classmethod
    def inputs(cls, config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> dict[str, Any]:
        bands, stride = preprocessor.get("num_mel_bins", 80), preprocessor.get("stride", STACKED)
        wanted = config["feature_projection_input_dim"]
        if stride != STACKED or bands * stride != wanted:
            raise UserError(
                f"{where}: num_mel_bins {bands} and stride {stride} don't fit the model, which takes {STACKED} stacked "
                f"frames of {wanted / STACKED:g} bins (feature_projection_input_dim {wanted}); use the model's own file"
            )
        return {"kind": "fbank", "n_mels": bands}

    @property
    def feature_size(self) -> int:
        return self.config.feature_projection_input_dim

    @property
    def frame_rate(self) -> float:
        return RATE / (SHIFT * STACKED)

    @property
    def feature_shift(self) -> float:
        return SHIFT * STACKED / RATE

    def frames_of(self, cut: Any) -> int:
        """Number of encoder frames of a cut with filterbanks or a recording."""
        if getattr(cut, "has_features", False):
            frames = cut.num_frames
        else:
            frames = max(1 + (cut.num_samples - FRAME) // SHIFT, 0) // STACKED
        return int(self.after_adapter(torch.tensor(frames)))

    # -- forward -----------------------------------------------------------------------------------------------------

    def states(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Stacked filterbanks (B, F, C) and (B,) lengths -> encoder states (B, F', D) and (B,)."""
        hidden, _ = self.body.feature_projection(self.masked(features, lengths, STACKED))
        hidden = self.encoded(hidden, lengths)
        if self.body.intermediate_ffn is not None:
            hidden = hidden + 0.5 * self.body.intermediate_ffn(hidden)
        return self.adapted(hidden, lengths)

    def output_lengths(self, features: Tensor, lengths: Tensor) -> Tensor:
        return self.after_adapter(lengths)

    def layer_lengths(self, features: Tensor, lengths: Tensor) -> Tensor:
        return lengths  # the adapter comes after the layers
