"""The training recipe (``TrainConfig``), and how a stage runs (``Runtime``). Defaults suit fine-tuning."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from lowrank_speech.settings import (
    BelowOne,
    Count,
    CountOrZero,
    Large,
    LargeOrZero,
    NotNegative,
    Positive,
    Range,
    Share,
    key,
    settings,
)

Precision = Literal["fp32", "bf16", "fp16"]
RECORDINGS = ("*.wav", "*.flac", "*.ogg")
"""Files of ``noise.folder`` that are used."""


def _above_zero(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] <= 0:
        raise ValueError(f"is {list(pair)}; both values must be above 0")
    return pair


@settings
class SpecAugment:
    """Masks on the model's input features (log-mel or front-end output), drawn for each utterance."""

    time_masks: CountOrZero = key(2, "number of time masks")
    time_width: CountOrZero = key(10, "maximum width of a time mask, in frames")
    time_share: Share = key(0.1, "maximum width of a time mask, as a share of the utterance")
    feature_masks: CountOrZero = key(2, "number of frequency masks")
    feature_width: CountOrZero = key(8, "maximum width of a frequency mask, in bands")


@settings
class Noise:
    """Noise added to the samples of training utterances, drawn again in each epoch."""

    snr: Range = key((5.0, 20.0), "lowest and highest signal-to-noise ratio, dB")
    kinds: tuple[Literal["white", "pink", "brown", "hum"], ...] = key(
        ("white", "pink", "brown", "hum"), "kinds of noise to draw from"
    )
    folder: Annotated[str, Field(min_length=1)] | None = key(None, "folder of recordings, used as one more kind")
    probability: Share = key(0.5, "share of the utterances that get noise")

    def __post_init__(self) -> None:
        if not self.kinds and self.folder is None:
            raise ValueError("noise has neither kinds nor a folder; set kinds to some of white, pink, brown, hum")
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"noise.kinds names a kind twice: {', '.join(self.kinds)}; name each kind once")

    def recordings(self) -> dict[str, Path]:
        """The recordings of ``folder``: noise/NAME -> path, sorted; empty without a folder."""
        if self.folder is None:
            return {}
        found = {path for pattern in RECORDINGS for path in Path(self.folder).rglob(pattern) if path.is_file()}
        return {f"noise/{path.relative_to(self.folder).as_posix()}": path for path in sorted(found)}


@settings
class Reverberation:
    """Simulated rooms for training utterances, drawn again in each epoch."""

    rt60: Annotated[Range, AfterValidator(_above_zero)] = key(
        (0.2, 0.8), "shortest and longest time in which the sound decays by 60 dB, seconds"
    )
    direct: Range = key((0.0, 15.0), "lowest and highest direct-to-reverberant ratio, dB")
    probability: Share = key(0.5, "share of the utterances that get reverberation")


@settings
class CtcConfig:
    """CTC: its variants, and the library that computes CTC and LF-MMI; see docs/training.md and docs/k2.md."""

    backend: Literal["auto", "k2", "torch"] = key("auto", "auto: k2 if it works with this torch and device, else torch")
    # With 10, k2's own default, the loss is up to 3e-2 off on flat posteriors; from 20 on it equals torch's to 3e-5.
    output_beam: Positive = key(20.0, "k2 prunes paths that are this much (nats) less likely than the best one")
    prior_scale: Annotated[float, Field(ge=0, le=1)] = key(
        0.0, "CTC: share of the labels' log priors to subtract, for less peaky outputs, such as 0.3; 0: none"
    )
    delay_penalty: Annotated[float, Field(ge=0, le=1)] = key(
        0.0, "CTC: cost (nats) of a label per frame that it comes later, such as 0.01; 0: none"
    )

    @property
    def variant(self) -> str | None:
        """A key that changes the loss; None: it is plain CTC."""
        return next((name for name in ("prior_scale", "delay_penalty") if getattr(self, name)), None)


@settings
class LfmmiConfig:
    """LF-MMI, for `loss: lfmmi`. `ctc` chooses the library."""

    order: Annotated[int, Field(ge=1, le=6)] = key(2, "order of the token n-gram of the denominator")
    den_scale: Positive = key(1.0, "scale of the denominator")


@settings
class AamConfig:
    """The additive angular margin of `loss: aam`."""

    margin: Annotated[float, Field(ge=0, lt=1.5)] = key(0.2, "margin on the angle of the true class, in radians")


@settings
class FactorSgd:
    """SGD for the factors of low-rank layers, as in Kaldi; everything else keeps AdamW."""

    lr: Positive = key(0.05, "peak learning rate, on the same schedule")
    momentum: BelowOne = key(0.9, "momentum")


@settings
class Runtime:
    """How a stage runs. Nothing here changes a result, so no hash includes it."""

    device: Literal["auto", "cpu", "cuda"] = key(
        "auto", "where to compute; cuda also requests one GPU per process from the scheduler", runtime=True
    )
    workers: Annotated[int, Field(ge=0, le=256)] = key(
        0, "processes that load data ahead; 0: the training process loads it", runtime=True
    )
    save_minutes: Positive = key(10.0, "minutes between saves within an epoch", runtime=True)
    tensorboard: bool = key(False, "write event files for TensorBoard to D/logs/", runtime=True)
    dry_run: bool | None = key(
        None, "try the largest batch first, to see whether it fits into memory; null: only on CUDA", runtime=True
    )


@settings
class TrainConfig:
    """The training recipe: all keys that affect the result. See docs/training.md."""

    epochs: Count = key(10, "passes over the training cuts")
    max_steps: Large | None = key(None, "stop after this many steps, even if epochs are left")
    batch_seconds: Positive = key(60.0, "seconds of speech in a batch, padding included")
    quadratic_seconds: Positive | None = key(
        None, "an utterance of d seconds counts as d + d² / this, so long utterances get smaller batches"
    )
    lr: Positive = key(1e-4, "peak learning rate")
    head_lr: Positive = key(1e-3, "peak learning rate of a new head")
    warmup: Share = key(0.1, "share of all steps in which the learning rate rises")
    hold: Share = key(0.4, "share of all steps in which it then stays at the peak, before it falls linearly")
    final: Share = key(0.05, "learning rate at the end, as a share of the peak")
    weight_decay: NotNegative = key(0.01, "AdamW's weight decay, only for matrices")
    clip: Positive = key(1.0, "maximum norm of the gradient")
    dropout: BelowOne | None = key(None, "dropout of the whole model; null: the base's own")
    freeze_encoder_steps: LargeOrZero = key(0, "steps at the start in which only the head trains")
    train_front_end: bool = key(False, "train wav2vec 2.0's convolutions too; needs features: waveform")
    label_smoothing: BelowOne = key(0.0, "label smoothing of the cross-entropy losses")
    loss: str | None = key(None, "name of the task's loss (a file in training/losses); null: the default loss")
    aam: AamConfig = key(None, "loss: aam", default_factory=AamConfig)
    ctc: CtcConfig = key(None, "CTC, and the library that computes CTC and LF-MMI", default_factory=CtcConfig)
    lfmmi: LfmmiConfig = key(None, "LF-MMI, for `loss: lfmmi`", default_factory=LfmmiConfig)
    ctc_weight: NotNegative = key(0.0, "Whisper from scratch: weight of a CTC loss on the encoder")
    language_weight: NotNegative = key(0.0, "weight of a language classification loss beside recognition")
    spec_augment: SpecAugment | None = key(None, "masks on the model's input features")
    speed: tuple[Positive, ...] = key((), "speed factors to draw from, such as [0.9, 1.0, 1.1]")
    noise: Noise | None = key(None, "noise added to the samples; needs features: waveform")
    reverberation: Reverberation | None = key(None, "simulated rooms for the samples; needs features: waveform")
    evaluate_every: Count = key(1, "epochs between evaluations on dev")
    keep: Literal["best", "last"] = key("best", "the result: the weights of the best epoch on dev, or of the last one")
    patience: Count | None = key(None, "stop after this many evaluations without improvement")
    average: Count | None = key(None, "average the weights of this many last evaluations, if that is no worse on dev")
    blank_patience: Count | None = key(
        None, "CTC: fail after this many evaluations in a row whose output is only blank"
    )
    bad_patience: CountOrZero = key(
        10, "fail after more than this many steps in a row whose loss or gradient is not finite"
    )
    precision: Precision = key("fp32", "number format of the computation (fp16: CUDA only); trained weights stay fp32")
    frozen_dtype: Precision = key("fp32", "number format of frozen matrices: fp32, or the same as precision")
    gradient_checkpointing: bool = key(False, "recompute each layer's activations in the backward pass, to save memory")
    accumulate: Count = key(1, "batches per update")
    processes: Annotated[int, Field(ge=1, le=1024)] = key(
        1, "processes on this machine that share the training, each with `accumulate` batches per update"
    )
    optimiser: Literal["adamw", "adamw8bit"] = key("adamw", "adamw8bit: 8-bit state, needs the package bitsandbytes")
    factor_sgd: FactorSgd | None = key(None, "SGD for the factors of low-rank layers, as in Kaldi")
    compile: bool = key(False, "compile the encoder and decoder layers (torch.compile); needs a C++ compiler")
    compile_buckets: Count | None = key(
        None, "pad batches to this many lengths, and compile the encoder for each of them"
    )

    def __post_init__(self) -> None:
        if self.frozen_dtype not in ("fp32", self.precision):
            raise ValueError(
                f"frozen_dtype is {self.frozen_dtype} and precision is {self.precision}: frozen_dtype must be fp32 or "
                f"the same as precision; set precision: {self.frozen_dtype}"
            )
        variant = self.ctc.variant
        if self.loss == "lfmmi" and variant is not None:
            raise ValueError(f"ctc.{variant} changes CTC, but loss is lfmmi; set ctc.{variant}: 0")
        if self.warmup + self.hold > 1:
            raise ValueError(
                f"warmup is {self.warmup:g} and hold is {self.hold:g}: they are shares of all steps, so their sum must "
                f"be at most 1"
            )
        if self.compile_buckets is not None and not self.compile:
            raise ValueError("compile_buckets needs compile: true; set it, or remove compile_buckets")

    @property
    def changes_samples(self) -> bool:
        """Whether training utterances are augmented before features are computed."""
        return bool(self.speed) or self.noise is not None or self.reverberation is not None

    @property
    def auxiliary(self) -> dict[str, float]:
        """The weights of auxiliary losses by name, from all keys that end in ``_weight``."""
        end = "_weight"
        return {f.name.removesuffix(end): getattr(self, f.name) for f in fields(self) if f.name.endswith(end)}
