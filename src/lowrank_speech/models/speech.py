"""One model for training and decoding: a Hugging Face model of one of the families with its task.

``SpeechModel`` holds a model of transformers' own class in ``.hf`` and adds what the pipeline needs and transformers
lacks: cached front-end output as input, frame lengths, masked pooling, and the low-rank plan that was applied.

    family     task       class of .hf
    wav2vec2   ctc        Wav2Vec2ForCTC
    wav2vec2   classify   Wav2Vec2ForSequenceClassification
    wav2vec2   body       Wav2Vec2Model                  (a pretrained encoder without a head)
    whisper    seq2seq    WhisperForConditionalGeneration
    whisper    classify   WhisperForAudioClassification

Dimension letters: B batch, T samples, F frames, C features, D hidden size, V vocabulary, L target length.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_speech.errors import UserError

HF_CLASS = {
    ("wav2vec2", "ctc"): "Wav2Vec2ForCTC",
    ("wav2vec2", "classify"): "Wav2Vec2ForSequenceClassification",
    ("wav2vec2", "body"): "Wav2Vec2Model",
    ("whisper", "seq2seq"): "WhisperForConditionalGeneration",
    ("whisper", "classify"): "WhisperForAudioClassification",
}
FAMILY_OF = {"wav2vec2": "wav2vec2", "whisper": "whisper"}  # transformers' model_type -> family

# Where the pretrained body stands inside each class; heads are all that stands outside it.
BODY_PREFIX = {
    "Wav2Vec2ForCTC": "wav2vec2.",
    "Wav2Vec2ForSequenceClassification": "wav2vec2.",
    "Wav2Vec2Model": "",
    "WhisperForConditionalGeneration": "model.",
    "WhisperForAudioClassification": "",
}
HEADS = {
    "Wav2Vec2ForCTC": ("lm_head",),
    "Wav2Vec2ForSequenceClassification": ("projector", "classifier"),
    "Wav2Vec2Model": (),
    "WhisperForConditionalGeneration": (),
    "WhisperForAudioClassification": ("projector", "classifier"),
}


def hf_class(family: str, task: str) -> type:
    """Transformers' class for a family and a task; UserError where the two don't go together."""
    import transformers

    try:
        return getattr(transformers, HF_CLASS[family, task])
    except KeyError:
        tasks = sorted(t for f, t in HF_CLASS if f == family)
        raise UserError(f"the family {family!r} has no task {task!r}; it has: {', '.join(tasks) or 'none'}") from None


@dataclass
class Meta:
    """What a model folder says beside transformers' own config (key ``lowrank_speech`` of config.json)."""

    family: str
    task: str
    plan: dict[str, int] | None = None  # name of a factorised layer (relative to .hf) -> rank
    labels: list[str] = field(default_factory=list)  # classify: languages in the order of the outputs
    lang_sha256: str | None = None  # of the token table that the head's outputs stand for
    priors: list[float] = field(default_factory=list)  # classify: share of each label in training


class SpeechModel(nn.Module):
    """A model of one family with one task; see the module's table. ``meta`` travels with it into the folder."""

    def __init__(self, hf: nn.Module, meta: Meta):
        super().__init__()
        self.hf = hf
        self.meta = meta

    # -- shape and parts ------------------------------------------------------------------------------------------

    @property
    def family(self) -> str:
        return self.meta.family

    @property
    def task(self) -> str:
        return self.meta.task

    @property
    def plan(self) -> dict[str, int] | None:
        return self.meta.plan

    @plan.setter
    def plan(self, value: Mapping[str, int] | None) -> None:
        self.meta.plan = dict(value) if value else None

    @property
    def config(self) -> Any:
        """Transformers' config of the model."""
        return self.hf.config

    @property
    def body(self) -> nn.Module:
        """The pretrained part without the head."""
        prefix = BODY_PREFIX[HF_CLASS[self.family, self.task]].rstrip(".")
        return self.hf.get_submodule(prefix) if prefix else self.hf

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names (relative to ``.hf``) of the modules that adaptation adds to a base."""
        return HEADS[HF_CLASS[self.family, self.task]]

    def front_end(self) -> list[nn.Parameter]:
        """Parameters of the convolutional front end of wav2vec 2.0, which fine-tuning always keeps frozen.

        Whisper's two convolutions are part of its encoder and are fine-tuned with it, as is usual.
        """
        return list(self.body.feature_extractor.parameters()) if self.family == "wav2vec2" else []

    def dense_parameters(self) -> int:
        """Number of parameters of the same model without factorisation."""
        if not self.plan:
            return self.parameters_total()
        with torch.device("meta"):
            dense = hf_class(self.family, self.task)(self.config)
        dense.tie_weights()
        return sum(p.numel() for p in dense.parameters())

    def parameters_total(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(p.numel() for p in self.hf.parameters())

    # -- wav2vec 2.0 -----------------------------------------------------------------------------------------------

    def conv_lengths(self, samples: Tensor) -> Tensor:
        """Number of front-end frames for waveforms of ``samples`` samples (int64, any shape)."""
        return self.hf._get_feat_extract_output_lengths(samples, add_adapter=False).clamp(min=0)

    def frames_of(self, cut: Any) -> int:
        """Number of encoder frames of a Lhotse cut, by the model's own length functions."""
        if self.family == "whisper":
            mel = cut.num_frames if getattr(cut, "has_features", False) else -(-(cut.num_samples + 200) // 160)
            return (min(mel, self.window) + 1) // 2
        if getattr(cut, "has_features", False):
            frames = torch.tensor(cut.num_frames)
        else:
            frames = self.conv_lengths(torch.tensor(cut.num_samples))
        return int(self._after_adapter(frames))

    def _after_adapter(self, frames: Tensor) -> Tensor:
        if self.body.adapter is not None:
            for _ in range(self.config.num_adapter_layers):
                frames = torch.div(frames - 1, self.config.adapter_stride, rounding_mode="floor") + 1
        return frames

    def conv_features(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Output of the convolutional front end: waveforms (B, T) -> (B, F, C).

        With ``feat_extract_norm='group'`` (wav2vec 2.0 base) the first layer normalises over time, padding
        included, so each utterance is computed alone: a batch must give what single utterances give.
        """
        if self.config.feat_extract_norm == "group" and len(waveforms) > 1:
            alone = [self._convolve(w[None, :n])[0] for w, n in zip(waveforms, lengths.tolist(), strict=True)]
            return nn.utils.rnn.pad_sequence(alone, batch_first=True)
        return self._convolve(waveforms)

    def _convolve(self, waveforms: Tensor) -> Tensor:
        # The layers one by one: called as a whole, transformers asks for the gradient of the samples too (for its
        # checkpointing), and the backward of the first convolution takes ten times as long.
        hidden = waveforms[:, None]
        for layer in self.body.feature_extractor.conv_layers:
            hidden = layer(hidden)
        return hidden.transpose(1, 2)

    def _wav2vec2_states(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if features.dim() == 2:
            frames = self.conv_lengths(lengths)
            features = self.conv_features(features, lengths)
        else:
            frames = lengths
        hidden, _ = self.body.feature_projection(features)
        # A bool mask: with an int64 one transformers zeroes the wrong rows.
        mask = torch.arange(hidden.shape[1], device=hidden.device)[None, :] < frames[:, None]
        hidden = self.body.encoder(hidden, attention_mask=mask).last_hidden_state
        if self.body.adapter is not None:
            hidden = self.body.adapter(hidden)
        return hidden, self._after_adapter(frames)

    # -- Whisper ---------------------------------------------------------------------------------------------------

    @property
    def window(self) -> int:
        """Whisper's fixed number of input frames of 10 ms (3,000 for the published models)."""
        return self.config.max_source_positions * 2

    @property
    def window_seconds(self) -> float | None:
        """The longest utterance that the model takes, in seconds; None where there is no limit."""
        # Two more frames see the end of an utterance that fills the window; Whisper's extractor drops them.
        return (self.window + 2) / 100 if self.family == "whisper" else None

    def pad_mel(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel (B, F, C), padded to the model's window with each utterance's floor: -> (B, C, window).

        Whisper's features are clipped at 8 below the utterance's log10 maximum, then (x + 4) / 4: silence is the
        maximum minus 2, which is what WhisperFeatureExtractor yields for the zeros it appends.
        """
        batch, frames, bands = features.shape
        longest = int(lengths.max())
        if longest > self.window + 2:
            raise UserError(
                f"an utterance of {longest / 100:.2f} s is longer than the Whisper window of {self.window / 100:.2f} "
                f"s; cut it, set it aside (max_seconds), or use a base with a longer window"
            )
        valid = torch.arange(frames, device=features.device)[None, :] < lengths[:, None]
        floor = features.masked_fill(~valid[..., None], float("-inf")).amax(dim=(1, 2)) - 2.0
        padded = floor[:, None, None].expand(batch, self.window, bands).clone()
        keep = min(frames, self.window)
        padded[:, :keep] = torch.where(valid[:, :keep, None], features[:, :keep], padded[:, :keep])
        return padded.transpose(1, 2)

    def _whisper_states(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body.encoder(self.pad_mel(features, lengths)).last_hidden_state
        return hidden, torch.div(lengths.clamp(max=self.window) + 1, 2, rounding_mode="floor")

    # -- forward ---------------------------------------------------------------------------------------------------

    def states(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder states and their valid lengths.

        ``features``: waveforms (B, T) or front-end output (B, F, C) for wav2vec 2.0, log-mel (B, F, C) for Whisper;
        ``lengths``: (B,) valid samples or frames. Returns (B, F', D) and (B,) int64.
        """
        if self.family == "wav2vec2":
            return self._wav2vec2_states(features, lengths)
        return self._whisper_states(features, lengths)

    def ctc_logits(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, F, V) and frame lengths (B,) for CTC; symbol 0 is blank."""
        hidden, frames = self.states(features, lengths)
        return self.hf.lm_head(self.hf.dropout(hidden)), frames

    def class_logits(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, N) of the classes: projected states averaged over the valid frames, then a linear layer.

        Equal to Wav2Vec2ForSequenceClassification; unlike WhisperForAudioClassification, Whisper's padding is left out
        of the mean (it would be most of the 30 s window).
        """
        hidden, frames = self.states(features, lengths)
        hidden = self.hf.projector(hidden)
        mask = torch.arange(hidden.shape[1], device=hidden.device)[None, :] < frames[:, None]
        pooled = (hidden * mask[..., None]).sum(1) / frames.clamp(min=1)[:, None]
        return self.hf.classifier(pooled)

    def seq2seq_logits(self, features: Tensor, lengths: Tensor, decoder_input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decoder logits (B, L, V) for ``decoder_input`` (B, L); encoder states (B, F', D) and their lengths (B,)."""
        hidden, frames = self.states(features, lengths)
        decoded = self.body.decoder(input_ids=decoder_input, encoder_hidden_states=hidden, use_cache=False)
        return self.hf.proj_out(decoded.last_hidden_state), hidden, frames
