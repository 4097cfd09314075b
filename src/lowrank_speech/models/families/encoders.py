"""The base class of encoder-only families: transformers' classes, the adapter on top, batches of encoder states.

B batch, F frames, D hidden size.
"""

from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from lowrank_speech.errors import UserError
from lowrank_speech.models.heads.base import within
from lowrank_speech.models.heads.registry import DEFAULT, head_class
from lowrank_speech.models.speech import Meta, SpeechModel

ENDINGS = {"ctc": "ForCTC", "pooled": "ForSequenceClassification"}
"""Kind of head -> suffix of the transformers class with that head."""


class Encoder(SpeechModel):
    """An encoder without a decoder; ``STEMS``: transformers' model type -> stem of its class names."""

    TASKS = ("ctc", "classify", "body")
    STEMS: ClassVar[dict[str, str]]
    KEPT_OUT = ("project_hid", "project_q", "quantizer.*")

    # -- transformers' classes and names -----------------------------------------------------------------------------

    @classmethod
    def bare(cls, config: Any, task: str, decoder: bool = False) -> nn.Module:
        return getattr(transformers, f"{cls.STEMS[config.model_type]}Model")(config)

    @classmethod
    def published(cls, config: Any, task: str) -> str:
        return cls.STEMS[config.model_type] + ("Model" if task == "body" else ENDINGS[DEFAULT[task]])

    @classmethod
    def task_of(cls, architecture: str) -> str:
        ends = {ENDINGS[kind]: task for task, kind in DEFAULT.items()}
        return next((task for end, task in ends.items() if architecture.endswith(end)), "body")

    @classmethod
    def from_transformers(cls, hf: nn.Module, meta: Meta) -> SpeechModel:
        if meta.task == "body":
            return cls(hf, None, meta)
        kind, body = head_class(DEFAULT[meta.task]), getattr(hf, hf.base_model_prefix)
        with torch.device("meta"):
            head = kind(kind.settings_of(hf.config), cls.width_of(hf.config), kind.outputs_of(hf.config))
        for own, theirs in kind.NAMES.items():
            setattr(head, own, getattr(hf, theirs))
        return cls(body, head, meta)

    @classmethod
    def width_of(cls, config: Any) -> int:
        return config.output_hidden_size if getattr(config, "add_adapter", False) else config.hidden_size

    @classmethod
    def check(cls, task: str, config: Any) -> None:
        super().check(task, config)
        if task == "classify" and getattr(config, "add_adapter", False):
            raise UserError(
                f"the {config.model_type} base has a convolutional adapter (add_adapter), with which transformers "
                f"cannot classify; use a checkpoint without it"
            )

    @classmethod
    def prefix(cls, config: Any, task: str, known: bool) -> str:
        if task == "body" or not known:
            return ""
        return getattr(transformers, cls.STEMS[config.model_type] + "Model").base_model_prefix + "."

    @property
    def known_head(self) -> bool:
        return self.head is None or (self.head.KIND in ENDINGS and self.head.known)

    @property
    def architecture(self) -> str:
        if self.head is None or not self.known_head:
            return type(self.hf).__name__
        return self.STEMS[self.config.model_type] + ENDINGS[self.head.KIND]

    # -- the encoder -------------------------------------------------------------------------------------------------

    def encoded(self, hidden: Tensor, frames: Tensor) -> Tensor:
        """The encoder's states (B, F, D) for ``hidden`` (B, F, D), of which ``frames`` (B,) are valid.

        In training, ``hidden`` is padded to the next length in ``buckets``, if the model has any, so that layers are
        compiled for only a few lengths.
        """
        longest = hidden.shape[1]
        size = next((n for n in self.buckets if n >= longest), longest) if self.training else longest
        hidden = nn.functional.pad(hidden, (0, 0, 0, size - longest))
        # The mask must be bool: with an int64 mask transformers zeroes the wrong rows.
        mask = within(frames, size)
        return self.mixed(lambda: self.body.encoder(hidden, attention_mask=mask).last_hidden_state)[:, :longest]

    # -- the convolutional adapter on top of some checkpoints (add_adapter) ------------------------------------------

    def after_adapter(self, frames: Tensor) -> Tensor:
        """Number of frames after the adapter, or ``frames`` without an adapter."""
        if getattr(self.body, "adapter", None) is not None:
            for _ in range(self.config.num_adapter_layers):
                frames = torch.div(frames - 1, self.config.adapter_stride, rounding_mode="floor") + 1
        return frames

    def adapted(self, hidden: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """States (B, F, D) and their lengths (B,) after the adapter.

        Its convolutions would read the padding after an utterance, so it runs on one utterance at a time.
        """
        adapter = getattr(self.body, "adapter", None)
        if adapter is None:
            return hidden, frames
        if len(hidden) == 1:
            return adapter(hidden[:, : int(frames)]), self.after_adapter(frames)
        rows = [adapter(row[None, :n])[0] for row, n in zip(hidden, frames.tolist(), strict=True)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), self.after_adapter(frames)
