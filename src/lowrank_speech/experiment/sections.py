"""Sections of the config that only the workflow reads. The other sections are settings classes of stages."""

from typing import Any, Literal

from lowrank_speech.settings import REQUIRED, CountOrZero, Positive, Seed, key, settings
from lowrank_speech.stages.task import Shared


@settings
class SplitName:
    """A split of a corpus."""

    split: str = key(REQUIRED, "a split of the corpus")
    corpus: str | None = key(None, "corpus of the split; null: the task's corpus")


@settings
class TestSet(SplitName):
    """A test set: a split, or a piece of each of its utterances."""

    seconds: Positive | None = key(None, "lid: cut each utterance to this length; null: as `segment` of the task says")
    place: Literal["middle", "random"] = key("middle", "where the piece is cut; random: drawn from the seed")
    shorter: Literal["set-aside", "keep"] = key("set-aside", "what happens to utterances that are shorter")


@settings
class TaskSection:
    """The splits and decoders of a task."""

    corpus: str = key(REQUIRED, "the corpus of the splits below")
    train: str = key(REQUIRED, "the split to train on")
    dev: str = key(REQUIRED, "the split that chooses the epoch")
    test: str | tuple[str, ...] | dict[str, TestSet] = key(
        REQUIRED, "test sets: a split, a list of splits, or name -> {corpus, split}, and for lid the length of pieces"
    )
    decoders: tuple[str, ...] | None = key(None, "names under `decoders`; null: greedy (asr) or scores (lid)")
    allow_shared: Shared | None = key(
        None, "lid: roles that may share speakers, sources or sessions, which else is an error; the report warns"
    )
    backends: tuple[str, ...] | None = key(
        None, "lid: names under `backends`, trained on the scores of dev; null: none"
    )


@settings
class BaseSection:
    """What the pipeline does with a base."""

    lang: str | None = key(None, "the token set; source: scratch and recognition need one")
    features: Literal["conv", "waveform", "fbank", "logmel"] = key(
        REQUIRED, "inputs to compute once and store: conv, fbank or logmel, by family; waveform: store nothing"
    )
    features_dtype: Literal["float32", "float16"] | None = key(None, "number format of stored features; null: float32")


@settings
class MethodSection:
    """How a method adapts a base."""

    adapt: Literal["none", "head", "full", "lora"] = key(
        REQUIRED, "what trains: none (only a head that the task needs and the base lacks), head, full, or lora"
    )
    seed: Seed | None = key(None, "seed of the training; null: the experiment's seed")
    sweep: dict[str, tuple[Any, ...]] | None = key(
        None,
        "keys of the method (seed, training.lr ...) -> lists of values; the method stands for one method for each "
        "combination (docs/training.md, Sweeps)",
    )
    control: Literal["mean-logmel", "shuffled-labels"] | None = key(
        None,
        "lid: a system that cannot know languages, to compare with: a linear classifier on the mean log-mel instead of "
        "the base (adapt: none), or training on shuffled labels",
    )
    shuffle: Literal["utterances", "speakers"] | None = key(
        None, "control: shuffled-labels: what the languages are permuted over; null: utterances"
    )


@settings
class DistilSection:
    """Which speech a method learns from its teacher alone."""

    untranscribed: SplitName | tuple[SplitName, ...] | None = key(
        None, "a split of further speech, or a list of them: only the teacher's terms count there, never transcripts"
    )


@settings
class DecoderSection:
    """What the workflow does with a decoder."""

    tune: dict[str, tuple[float, ...]] | None = key(
        None, "numeric keys of the decoder -> values to try on the dev split of the task; the best ones are used"
    )


@settings
class BackendSection:
    """What the workflow does with a back end."""

    decoder: str | None = key(None, "the decoder of the task whose scores it reads; null: the first one")


@settings
class PretrainSection:
    """Where a base from scratch is pretrained."""

    corpus: str = key(REQUIRED, "the corpus of the splits")
    train: str = key(REQUIRED, "the split to pretrain on")
    dev: str = key(REQUIRED, "the split that chooses the epoch")


@settings
class CalibrateSection:
    """Which utterances calibration sees."""

    corpus: str = key(REQUIRED, "corpus of the utterances")
    split: str = key(REQUIRED, "split of the utterances")
    trial: CountOrZero = key(
        16, "further utterances, which measure what ranks cost (allocate) and how far a low-rank model is from the base"
    )


@settings
class LangSection:
    """Which transcripts a token set is made from."""

    corpora: tuple[str, ...] = key(REQUIRED, "corpora whose transcripts are read")
    splits: tuple[str, ...] = key(REQUIRED, "splits to read of each corpus")


@settings
class DevSplit:
    """A split to measure something on."""

    corpus: str = key(REQUIRED, "its corpus")
    split: str = key(REQUIRED, "its name")


@settings
class LmSection:
    """Which transcripts a language model is made from, and measured on."""

    lang: str = key(REQUIRED, "the token set whose normaliser (and tokens, for unit: token) it uses")
    corpora: tuple[str, ...] | None = key(
        None, "corpora whose transcripts are read; null: those of the token set; []: none"
    )
    splits: tuple[str, ...] | None = key(None, "training splits to read of each corpus; null: those of the token set")
    dev: DevSplit | None = key(None, "measure perplexity and unknown words on the transcripts of this split")
