"""The training recipe's settings. Defaults are those of a fine-tuning of a pretrained model."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class SpecAugment:
    """Masks on the model's input features (log-mel or front-end output), drawn per utterance.

    ``time_share``: the most that one time mask may cover of the utterance.
    """

    time_masks: int = 2
    time_width: int = 10
    time_share: float = 0.1
    feature_masks: int = 2
    feature_width: int = 8


@dataclass(frozen=True)
class CtcConfig:
    """Who computes CTC losses. ``auto``: k2 where it works with this torch and device, else torch; see docs/k2.md.

    ``output_beam``: k2 alone. Paths that are so much (in nats) less likely than the best one are pruned: 10, k2's own
    default, is up to 3e-2 off on flat posteriors; from 20 on the loss is torch's to 3e-5.
    """

    backend: Literal["auto", "k2", "torch"] = "auto"
    output_beam: float = 20.0

    def __post_init__(self) -> None:
        if self.output_beam <= 0:
            raise ValueError(f"output_beam is {self.output_beam}: it must be positive")


@dataclass(frozen=True)
class TrainConfig:
    """Recipe of one training run; see docs/training.md.

    ``accumulate``: batches of one update. ``processes``: how many of them share the work, each with ``accumulate``
    batches. ``frozen_dtype``: in what frozen matrices are held; ``precision``: in what is computed, weights that train
    stay float32. ``dry_run``: the largest batch first, to see whether it fits (None: on CUDA).

    Times are in epochs or steps, batches in seconds of speech. The learning rate warms up linearly over ``warmup`` of
    all steps, holds for ``hold`` of them and falls linearly to ``final`` times the peak (wav2vec 2.0's three stages).
    """

    epochs: int = 10
    max_steps: int | None = None
    batch_seconds: float = 60.0
    lr: float = 1e-4
    head_lr: float = 1e-3
    warmup: float = 0.1
    hold: float = 0.4
    final: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    dropout: float | None = None
    freeze_encoder_steps: int = 0
    train_front_end: bool = False
    label_smoothing: float = 0.0
    ctc: CtcConfig = field(default_factory=CtcConfig)
    ctc_weight: float = 0.0
    language_weight: float = 0.0
    spec_augment: SpecAugment | None = None
    evaluate_every: int = 1
    keep: Literal["best", "last"] = "best"
    patience: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    frozen_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    accumulate: int = 1
    processes: int = 1
    optimiser: Literal["adamw", "adamw8bit"] = "adamw"
    compile: bool = False
    dry_run: bool | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_seconds <= 0:
            raise ValueError(f"epochs ({self.epochs}) and batch_seconds ({self.batch_seconds}) must be positive")
        if self.accumulate < 1 or self.processes < 1:
            raise ValueError(f"accumulate ({self.accumulate}) and processes ({self.processes}) must be 1 or more")
        if self.frozen_dtype not in ("fp32", self.precision):
            raise ValueError(
                f"frozen_dtype is {self.frozen_dtype}, precision {self.precision}: frozen weights are held in fp32 or "
                f"in what is computed in; set precision: {self.frozen_dtype}"
            )
        if not 0 <= self.warmup + self.hold <= 1:
            raise ValueError(
                f"warmup + hold is {self.warmup + self.hold}: they are shares of all steps, at most 1 together"
            )
        for name in ("lr", "head_lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")
