"""The training recipe (``TrainConfig``), and how a stage runs (``Runtime``). Defaults suit a fine-tuning."""

from dataclasses import fields
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


def _above_zero(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] <= 0:
        raise ValueError(f"is {list(pair)}; both values must be above 0")
    return pair


@settings
class SpecAugment:
    """Masks on the model's input features (log-mel or front-end output), drawn for each utterance."""

    time_masks: CountOrZero = key(2, "masks over time")
    time_width: CountOrZero = key(10, "the most frames that one of them covers")
    time_share: Share = key(0.1, "the most that one of them covers of the utterance, as a share")
    feature_masks: CountOrZero = key(2, "masks over frequency bands")
    feature_width: CountOrZero = key(8, "the most bands that one of them covers")


@settings
class Noise:
    """Noise added to the samples of training utterances, drawn anew in each epoch."""

    snr: Range = key((5.0, 20.0), "lowest and highest ratio to the speech, dB")
    kinds: tuple[Literal["white", "pink", "brown", "hum"], ...] = key(
        ("white", "pink", "brown", "hum"), "kinds of noise, of which one is drawn"
    )
    folder: Annotated[str, Field(min_length=1)] | None = key(None, "folder of recordings, which are one more kind")
    probability: Share = key(0.5, "share of the utterances that get noise")

    def __post_init__(self) -> None:
        if not self.kinds and self.folder is None:
            raise ValueError("noise has neither kinds nor a folder: name one of white, pink, brown, hum")
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"noise.kinds names a kind twice: {', '.join(self.kinds)}; name each kind once")


@settings
class Reverberation:
    """Rooms for training utterances, drawn anew in each epoch."""

    rt60: Annotated[Range, AfterValidator(_above_zero)] = key(
        (0.2, 0.8), "shortest and longest time in which the sound decays by 60 dB, seconds"
    )
    direct: Range = key((0.0, 15.0), "lowest and highest ratio of direct to reverberant sound, dB")
    probability: Share = key(0.5, "share of the utterances that are put in a room")


@settings
class CtcConfig:
    """Who computes CTC losses; see docs/k2.md."""

    backend: Literal["auto", "k2", "torch"] = key("auto", "auto: k2 where it works with this torch and device")
    # 10, k2's own default, is up to 3e-2 off on flat posteriors; from 20 on the loss is torch's to 3e-5.
    output_beam: Positive = key(20.0, "k2 prunes paths that are this much (nats) less likely than the best one")


@settings
class FactorSgd:
    """SGD for the factors of low-rank layers, as in Kaldi; everything else keeps AdamW."""

    lr: Positive = key(0.05, "peak learning rate, on the same schedule")
    momentum: BelowOne = key(0.9, "momentum")


@settings
class Runtime:
    """How a stage runs: nothing here changes a result, and no hash sees it."""

    device: Literal["auto", "cpu", "cuda"] = key(
        "auto", "where to compute; cuda also asks the scheduler for a GPU for each process", runtime=True
    )
    workers: Annotated[int, Field(ge=0, le=256)] = key(
        0, "processes that read ahead; 0: the training reads for itself", runtime=True
    )
    save_minutes: Positive = key(10.0, "minutes between saves within an epoch", runtime=True)
    tensorboard: bool = key(False, "write event files for TensorBoard to D/logs/", runtime=True)
    dry_run: bool | None = key(
        None, "compute the largest batch first, to see whether it fits; null: on CUDA", runtime=True
    )


@settings
class TrainConfig:
    """The recipe of a training: all that decides its result. Times are in epochs or steps; see docs/training.md."""

    epochs: Count = key(10, "passes over the training cuts")
    max_steps: Large | None = key(None, "stop after this many steps, even if epochs are left")
    batch_seconds: Positive = key(60.0, "seconds of speech in a batch, padding included")
    quadratic_seconds: Positive | None = key(
        None, "an utterance of d seconds counts as d + d² / this: long ones come in smaller batches"
    )
    lr: Positive = key(1e-4, "peak learning rate")
    head_lr: Positive = key(1e-3, "peak learning rate of a new head")
    warmup: Share = key(0.1, "share of all steps in which the rate rises")
    hold: Share = key(0.4, "share of all steps in which it then stays; after that it falls linearly")
    final: Share = key(0.05, "the rate at the end, as a share of the peak")
    weight_decay: NotNegative = key(0.01, "AdamW's weight decay, of matrices")
    clip: Positive = key(1.0, "the largest norm of the gradient")
    dropout: BelowOne | None = key(None, "dropout of the whole model; null: the base's own")
    freeze_encoder_steps: LargeOrZero = key(0, "steps at the start in which only the head trains")
    train_front_end: bool = key(False, "train wav2vec 2.0's convolutions too; needs features: waveform")
    label_smoothing: BelowOne = key(0.0, "label smoothing of the cross-entropies")
    loss: str | None = key(None, "the task's loss by its name in training/losses; null: the usual one of the task")
    ctc: CtcConfig = key(None, "who computes CTC losses", default_factory=CtcConfig)
    ctc_weight: NotNegative = key(0.0, "Whisper from scratch: weight of a CTC on the encoder")
    language_weight: NotNegative = key(0.0, "weight of a language classification beside recognition")
    spec_augment: SpecAugment | None = key(None, "masks on the model's input features")
    speed: tuple[Positive, ...] = key((), "factors of the speed, of which one is drawn, such as [0.9, 1.0, 1.1]")
    noise: Noise | None = key(None, "noise added to the samples; needs features: waveform")
    reverberation: Reverberation | None = key(None, "rooms for the samples; needs features: waveform")
    evaluate_every: Count = key(1, "epochs between evaluations on dev")
    keep: Literal["best", "last"] = key("best", "the result: the epoch that is best on dev, or the last one")
    patience: Count | None = key(None, "stop after this many evaluations without a better one")
    average: Count | None = key(
        None, "take the mean of the weights at this many last evaluations, where dev finds it no worse"
    )
    blank_patience: Count | None = key(
        None, "CTC: end the run after this many evaluations in a row whose output is only blank"
    )
    bad_patience: CountOrZero = key(
        10, "end the run after more steps in a row than this whose loss or gradient is not finite"
    )
    precision: Precision = key("fp32", "format of the computation (fp16: CUDA only); weights that train stay fp32")
    frozen_dtype: Precision = key("fp32", "format in which frozen matrices are held: fp32, or the same as precision")
    gradient_checkpointing: bool = key(False, "compute activations of a layer again in the backward pass: less memory")
    accumulate: Count = key(1, "batches of one update")
    processes: Annotated[int, Field(ge=1, le=1024)] = key(
        1, "processes on this machine that share the training, with `accumulate` batches each"
    )
    optimiser: Literal["adamw", "adamw8bit"] = key("adamw", "adamw8bit: state in 8 bits, by the package bitsandbytes")
    factor_sgd: FactorSgd | None = key(None, "SGD for the factors of low-rank layers, as in Kaldi")
    compile: bool = key(False, "compile the layers of encoder and decoder (torch.compile); needs a C++ compiler")
    compile_buckets: Count | None = key(
        None, "pad batches to this many lengths, and compile the encoder for each of them"
    )

    def __post_init__(self) -> None:
        if self.frozen_dtype not in ("fp32", self.precision):
            raise ValueError(
                f"frozen_dtype is {self.frozen_dtype}, precision {self.precision}: frozen weights are held in fp32 or "
                f"in the format of the computation; set precision: {self.frozen_dtype}"
            )
        if self.warmup + self.hold > 1:
            raise ValueError(
                f"warmup is {self.warmup:g} and hold {self.hold:g}: they are shares of all steps, at most 1 together"
            )
        if self.compile_buckets is not None and not self.compile:
            raise ValueError("compile_buckets is given, and compile is false: set compile: true, or remove it")

    @property
    def changes_samples(self) -> bool:
        """Whether training utterances are augmented before features are computed."""
        return bool(self.speed) or self.noise is not None or self.reverberation is not None

    @property
    def auxiliary(self) -> dict[str, float]:
        """The weights of auxiliary losses by name: all keys that end in ``_weight``."""
        end = "_weight"
        return {f.name.removesuffix(end): getattr(self, f.name) for f in fields(self) if f.name.endswith(end)}
