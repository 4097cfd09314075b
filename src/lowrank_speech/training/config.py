"""The training recipe's settings. Defaults are those of a fine-tuning of a pretrained model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

MOST_WORKERS, MOST = 256, 1_000_000


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

    def __post_init__(self) -> None:
        for name in ("time_masks", "time_width", "feature_masks", "feature_width"):
            _check(name, getattr(self, name), lambda x: x >= 0, "0 or more")
        _check("time_share", self.time_share, lambda x: 0 <= x <= 1, "in [0, 1]")


@dataclass(frozen=True)
class Noise:
    """Noise added to the samples of a share (``probability``) of the training utterances, drawn anew in each epoch.

    ``snr``: lowest and highest ratio to the speech, dB. ``kinds``: of those of ``corpora.noise`` that need no talkers.
    ``folder``: recordings, which count as one more kind.
    """

    snr: tuple[float, ...] = (5.0, 20.0)
    kinds: tuple[Literal["white", "pink", "brown", "hum"], ...] = ("white", "pink", "brown", "hum")
    folder: str | None = None
    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_range("snr", self.snr)
        _check("noise.probability", self.probability, lambda x: 0 <= x <= 1, "in [0, 1]")
        if not self.kinds and self.folder is None:
            raise ValueError("noise has neither kinds nor a folder: name one of white, pink, brown, hum")


@dataclass(frozen=True)
class Reverberation:
    """Rooms for a share (``probability``) of the training utterances, drawn anew in each epoch.

    ``rt60``: shortest and longest time in which the sound decays by 60 dB, seconds. ``direct``: lowest and highest
    ratio of direct to reverberant sound, dB.
    """

    rt60: tuple[float, ...] = (0.2, 0.8)
    direct: tuple[float, ...] = (0.0, 15.0)
    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_range("rt60", self.rt60)
        _check_range("direct", self.direct)
        _check("reverberation.probability", self.probability, lambda x: 0 <= x <= 1, "in [0, 1]")
        if self.rt60[0] <= 0:
            raise ValueError(f"rt60 is {self.rt60[0]}: it must be positive")


def _check(name: str, value: float | None, holds: Callable[[float], bool], what: str) -> None:
    # Of NaN nothing holds.
    if value is not None and not (holds(value) and math.isfinite(value)):
        raise ValueError(f"{name} is {value}: it must be {what}")


def _check_range(name: str, values: tuple[float, ...]) -> None:
    if len(values) != 2 or not all(map(math.isfinite, values)) or values[0] > values[1]:
        raise ValueError(f"{name} is {list(values)}: give the lowest and the highest value")


@dataclass(frozen=True)
class CtcConfig:
    """Who computes CTC losses. ``auto``: k2 where it works with this torch and device, else torch; see docs/k2.md.

    ``output_beam``: k2 alone. Paths that are so much (in nats) less likely than the best one are pruned: 10, k2's own
    default, is up to 3e-2 off on flat posteriors; from 20 on the loss is torch's to 3e-5.
    """

    backend: Literal["auto", "k2", "torch"] = "auto"
    output_beam: float = 20.0

    def __post_init__(self) -> None:
        _check("output_beam", self.output_beam, lambda x: x > 0, "positive")


@dataclass(frozen=True)
class FactorSgd:
    """SGD for the factors of low-rank layers, where all else has AdamW; ``lr``: its peak, on the same schedule."""

    lr: float = 0.05
    momentum: float = 0.9

    def __post_init__(self) -> None:
        _check("factor_sgd.lr", self.lr, lambda x: x > 0, "positive")
        _check("factor_sgd.momentum", self.momentum, lambda x: 0 <= x < 1, "in [0, 1)")


@dataclass(frozen=True)
class TrainConfig:
    """Recipe of one training run; see docs/training.md.

    Times are in epochs or steps, batches in seconds of speech; with ``quadratic_seconds`` q an utterance of d seconds
    counts as d + d² / q. ``workers``: processes that read ahead. ``speed``, ``noise`` and ``reverberation`` change the
    samples (``features.augment``), which stored features do not have.

    The learning rate warms up linearly over ``warmup`` of all steps, holds for ``hold`` of them and falls linearly to
    ``final`` times the peak (wav2vec 2.0's three stages). ``average``: the mean of the weights at the last so many
    evaluations. ``blank_patience``: so many evaluations in a row at which CTC's output is blank alone end the run;
    ``bad_patience``: more steps in a row than that whose loss or gradient is not finite do.
    ``save_minutes``: time between saves within an epoch.

    ``accumulate``: batches of one update. ``processes``: how many of them share the work, each with ``accumulate``
    batches. ``frozen_dtype``: in what frozen matrices are held; ``precision``: in what is computed, weights that train
    stay float32. ``dry_run``: the largest batch first, to see whether it fits (None: on CUDA). ``compile_buckets``: to
    how many lengths batches are padded, for each of which the encoder is compiled (None: once for all lengths).
    """

    epochs: int = 10
    max_steps: int | None = None
    batch_seconds: float = 60.0
    quadratic_seconds: float | None = None
    workers: int = 0
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
    speed: tuple[float, ...] = ()
    noise: Noise | None = None
    reverberation: Reverberation | None = None
    evaluate_every: int = 1
    keep: Literal["best", "last"] = "best"
    patience: int | None = None
    average: int | None = None
    blank_patience: int | None = None
    bad_patience: int = 10
    save_minutes: float = 10.0
    tensorboard: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    frozen_dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    accumulate: int = 1
    processes: int = 1
    optimiser: Literal["adamw", "adamw8bit"] = "adamw"
    factor_sgd: FactorSgd | None = None
    compile: bool = False
    compile_buckets: int | None = None
    dry_run: bool | None = None

    def __post_init__(self) -> None:
        for name in ("batch_seconds", "lr", "head_lr", "clip", "save_minutes", "quadratic_seconds"):
            _check(name, getattr(self, name), lambda x: x > 0, "positive")
        for name in ("epochs", "max_steps", "accumulate", "processes", "evaluate_every", "patience", "average"):
            _check(name, getattr(self, name), lambda x: x >= 1, "1 or more")
        for name in ("blank_patience", "compile_buckets"):
            _check(name, getattr(self, name), lambda x: x >= 1, "1 or more")
        _check("workers", self.workers, lambda x: x <= MOST_WORKERS, f"at most {MOST_WORKERS}")
        for name in ("accumulate", "average", "processes"):
            _check(name, getattr(self, name), lambda x: x <= MOST, f"at most {MOST}")
        for name in (
            "workers",
            "bad_patience",
            "freeze_encoder_steps",
            "weight_decay",
            "ctc_weight",
            "language_weight",
        ):
            _check(name, getattr(self, name), lambda x: x >= 0, "0 or more")
        for name in ("warmup", "hold", "final"):
            _check(name, getattr(self, name), lambda x: 0 <= x <= 1, "in [0, 1]")
        for name in ("dropout", "label_smoothing"):
            _check(name, getattr(self, name), lambda x: 0 <= x < 1, "in [0, 1)")
        if self.frozen_dtype not in ("fp32", self.precision):
            raise ValueError(
                f"frozen_dtype is {self.frozen_dtype}, precision {self.precision}: frozen weights are held in fp32 or "
                f"in what is computed in; set precision: {self.frozen_dtype}"
            )
        if self.warmup + self.hold > 1:
            raise ValueError(
                f"warmup + hold is {self.warmup + self.hold}: they are shares of all steps, at most 1 together"
            )
        if any(not (factor > 0 and math.isfinite(factor)) for factor in self.speed):
            raise ValueError(f"speed is {list(self.speed)}: factors must be positive, such as [0.9, 1.0, 1.1]")
        if self.compile_buckets is not None and not self.compile:
            raise ValueError("compile_buckets is given, and compile is false: set compile: true, or remove it")

    @property
    def changes_samples(self) -> bool:
        """Whether training utterances are augmented before features are computed."""
        return bool(self.speed) or self.noise is not None or self.reverberation is not None
