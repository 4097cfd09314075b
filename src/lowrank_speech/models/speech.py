"""``SpeechModel``: one interface over the families' classes of transformers.

It is a thin ``nn.Module`` around transformers' own model (``.hf``), whose parameter names stay as they are. What the
rest of the package needs beyond the forward pass is here: the names of head and front end, and the low-rank plan that
was applied. Inputs and lengths of the families are in ``wav2vec2``, ``w2v_bert`` and ``whisper``, which all give
``states``, ``output_lengths``, ``frames_of``, ``feature_size``, ``front_end``, ``frame_rate`` and ``window_seconds``;
``classes`` says which class stands for which model and task.

Dimension letters: B batch, T samples, F frames, C features, D hidden size, V vocabulary, L target length.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_speech.models import w2v_bert, wav2vec2, whisper
from lowrank_speech.models.classes import BODY_PREFIX, HEADS, class_name, hf_class
from lowrank_speech.models.corrections import correct

INPUTS = {"wav2vec2": wav2vec2, "w2v-bert": w2v_bert, "whisper": whisper}


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
    """A model of one family with one task. ``meta`` travels with it into the folder."""

    def __init__(self, hf: nn.Module, meta: Meta):
        super().__init__()
        correct(hf)
        self.hf = hf
        self.meta = meta
        # Training alone: encoder frames of compiled layers (see wav2vec2.encoded), and what hides parts of features.
        self.buckets: tuple[int, ...] = ()
        self.mask: Callable[..., Tensor] | None = None

    def train(self, mode: bool = True) -> "SpeechModel":
        """As of ``nn.Module``; batch norms keep the statistics of the pretraining (mHuBERT's position embedding)."""
        super().train(mode)
        for module in self.hf.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

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
    def class_name(self) -> str:
        """Name of transformers' class of ``.hf``."""
        return class_name(self.config.model_type, self.task)

    @property
    def recognises_by(self) -> str:
        """The task in which the family recognises speech: ``ctc`` or ``seq2seq``."""
        return "seq2seq" if self.family == "whisper" else "ctc"

    @property
    def body(self) -> nn.Module:
        """The pretrained part without the head."""
        prefix = BODY_PREFIX[self.class_name].rstrip(".")
        return self.hf.get_submodule(prefix) if prefix else self.hf

    @property
    def head_names(self) -> tuple[str, ...]:
        """Names (relative to ``.hf``) of the modules that adaptation adds to a base."""
        return HEADS[self.class_name]

    def front_end(self) -> list[nn.Parameter]:
        """Parameters of the convolutional front end, which fine-tuning always keeps frozen; empty: there is none."""
        return INPUTS[self.family].front_end(self)

    def dense_parameters(self) -> int:
        """Number of parameters of the same model without factorisation."""
        if not self.plan:
            return self.parameters_total()
        with torch.device("meta"):
            dense = hf_class(self.config.model_type, self.task)(self.config)
        dense.tie_weights()
        return sum(p.numel() for p in dense.parameters())

    def parameters_total(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(p.numel() for p in self.hf.parameters())

    # -- lengths and inputs ---------------------------------------------------------------------------------------

    def frames_of(self, cut: Any) -> int:
        """Number of encoder frames of a Lhotse cut, by the model's own length functions."""
        return INPUTS[self.family].frames_of(self, cut)

    @property
    def feature_size(self) -> int:
        """Numbers C in a frame of the features that ``states`` takes."""
        return INPUTS[self.family].feature_size(self)

    @property
    def width(self) -> int:
        """The size D of the encoder states that ``states`` gives."""
        adapted = getattr(self.config, "add_adapter", False)
        return self.config.output_hidden_size if adapted else self.config.hidden_size

    @property
    def window_seconds(self) -> float | None:
        """The longest utterance that the model takes, in seconds; None where there is no limit."""
        return INPUTS[self.family].window_seconds(self)

    @property
    def frame_rate(self) -> float | None:
        """Frames in a second at the encoder's entrance; None where its length is fixed."""
        return INPUTS[self.family].frame_rate(self)

    @property
    def window(self) -> int:
        """Whisper's fixed number of input frames of 10 ms."""
        return whisper.window(self)

    def conv_lengths(self, samples: Tensor) -> Tensor:
        """Number of frames of wav2vec 2.0's front end for ``samples`` samples (int64, any shape)."""
        return wav2vec2.conv_lengths(self, samples)

    def conv_features(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Output of wav2vec 2.0's front end: waveforms (B, T) -> (B, F, C)."""
        return wav2vec2.conv_features(self, waveforms, lengths)

    def masked(self, features: Tensor, lengths: Tensor, stacked: int = 1) -> Tensor:
        """What the encoder gets to see of its input features (B, F, C), of which ``lengths`` (B,) frames are valid.

        ``stacked``: so many frames of C / stacked bands lie side by side in a row.
        """
        return features if self.mask is None or not self.training else self.mask(features, lengths, stacked)

    def pad_mel(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel (B, F, C), padded to Whisper's window: -> (B, C, window)."""
        return whisper.pad_mel(self, features, lengths)

    # -- forward ---------------------------------------------------------------------------------------------------

    def states(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder states and their valid lengths.

        ``features``: waveforms (B, T) or front-end output (B, F, C) for wav2vec 2.0 and its relatives, stacked
        filterbanks (B, F, C) for w2v-BERT, log-mel (B, F, C) for Whisper; ``lengths``: (B,) valid samples or frames.
        Returns (B, F', D) and (B,) int64.
        """
        return INPUTS[self.family].states(self, features, lengths)

    def output_lengths(self, features: Tensor, lengths: Tensor) -> Tensor:
        """The valid lengths (B,) int64 that ``states`` gives for the same inputs, without computing states."""
        return INPUTS[self.family].output_lengths(self, features, lengths)

    def head_logits(self, states: Tensor, frames: Tensor) -> Tensor:
        """What the task's head makes of encoder states (B, F, D) with (B,) valid frames.

        CTC: logits (B, F, V), symbol 0 is blank. Classes: logits (B, N), projected states averaged over the valid
        frames, then a linear layer; equal to Wav2Vec2ForSequenceClassification. Unlike WhisperForAudioClassification,
        Whisper's padding is left out of the mean (it would be most of the 30 s window).
        """
        if self.task == "ctc":
            return self.hf.lm_head(self.hf.dropout(states))
        hidden = self.hf.projector(states)
        mask = torch.arange(hidden.shape[1], device=hidden.device)[None, :] < frames[:, None]
        pooled = (hidden * mask[..., None]).sum(1) / frames.clamp(min=1)[:, None]
        return self.hf.classifier(pooled)

    def is_head(self, name: str) -> bool:
        """Whether a parameter of ``.hf`` (by its name there) belongs to the head that adaptation adds to a base."""
        return name.split(".")[0] in self.head_names

    def ctc_logits(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, F, V) and frame lengths (B,) for CTC; symbol 0 is blank."""
        states, frames = self.states(features, lengths)
        return self.head_logits(states, frames), frames

    def class_logits(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B, N) of the classes."""
        return self.head_logits(*self.states(features, lengths))

    def seq2seq_logits(self, features: Tensor, lengths: Tensor, decoder_input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decoder logits (B, L, V) for ``decoder_input`` (B, L); encoder states (B, F', D) and their lengths (B,)."""
        hidden, frames = self.states(features, lengths)
        return self.decoder_logits(hidden, decoder_input), hidden, frames

    def decoder_logits(self, states: Tensor, decoder_input: Tensor) -> Tensor:
        """Decoder logits (B, L, V) for encoder states (B, F', D) and ``decoder_input`` (B, L)."""
        decoded = self.body.decoder(input_ids=decoder_input, encoder_hidden_states=states, use_cache=False)
        return self.hf.proj_out(decoded.last_hidden_state)
