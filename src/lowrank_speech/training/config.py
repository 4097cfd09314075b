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

    Times are in epochs or steps, batches in seconds of speech. The learning rate warms up linearly over ``warmup`` of
    all steps, holds for ``hold`` of them and falls linearly to ``final`` times the peak (wav2vec 2.0's three stages).
    ``average``: the mean of the weights at the last so many evaluations. ``blank_patience``: so many evaluations in a
    row at which CTC's output is blank alone end the run. ``save_minutes``: time between saves within an epoch.
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
    average: int | None = None
    blank_patience: int | None = None
    save_minutes: float = 10.0
    tensorboard: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_seconds <= 0:
            raise ValueError(f"epochs ({self.epochs}) and batch_seconds ({self.batch_seconds}) must be positive")
        if not 0 <= self.warmup + self.hold <= 1:
            raise ValueError(
                f"warmup + hold is {self.warmup + self.hold}: they are shares of all steps, at most 1 together"
            )
        for name in ("average", "blank_patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be 1 or more, or null")
        for name in ("lr", "head_lr", "save_minutes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")
