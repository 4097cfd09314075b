"""The interface of all losses, from the cut to the gradient.

    prepare   called once per cut before the first step: the target as JSON, stored with the cut, or why it has none
    fit       called before build, with the targets of the training cuts, for a loss that learns from them as a whole
    build     called before the first step: makes the loss's own head, if it has one; that head is not saved
    collate   targets of a batch -> tensors
    forward   the loss of a batch, and with ``errors`` the counts for the dev metric
    units     over how many labels (tokens, utterances) that loss is a mean, without computing it
    logits    the model's predictions behind the loss, and ``predicted``, which of them count: for distillation.
              ``untranscribed`` makes their target where there is no transcript
    observe   called after each update with what ``forward`` saw in it; ``end_epoch`` after each epoch
    save      called at the end: files beside the model

To add a loss, write a file with a subclass of ``Loss`` and name it in ``registry``.

Shapes: B batch, F frames, D size of the encoder states, V vocabulary, L target length.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.select import Languages, Reason
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import TrainConfig


@dataclass
class Materials:
    """The arguments from which losses are built.

    lang        normaliser and token set; only recognition has one
    tokens      token set of a decoder: that of ``lang``, or Whisper's own
    positions   maximum number of tokens that the decoder takes
    labels      the languages to distinguish. Losses share this list: if the config does not name the languages, it is
                filled while cuts are prepared
    device      where the loss is computed
    """

    recipe: TrainConfig
    lang: Lang | None = None
    tokens: Any = None
    positions: int | None = None
    labels: list[str] = field(default_factory=list)
    device: str = "auto"


class Utterance:
    """What losses need of a cut. Its text is normalised only once, even if several losses use it.

    ``frames``: a function that returns the number of encoder frames of a cut.
    """

    def __init__(self, cut: Any, lang: Lang | None, frames: Callable[[Any], int]):
        self.cut, self.lang, self._frames = cut, lang, frames
        self.language: str | None = cut.supervisions[0].language

    @cached_property
    def text(self) -> str | Reason:
        """The normalised text, or why it cannot be used."""
        said = self.cut.supervisions[0].text
        text = self.lang.normalise(said, self.language) if said else ""
        if not text:
            return Reason(self.lang.usable(said, self.language), repr(said))
        if self.lang.tokens is not None:
            left = set("".join(text.split()))
            if len(self.lang.tokens.unseen("".join(left))) == len(left):  # a training would only learn <unk>
                return Reason("no character of the token set", repr(said))
        return text

    @cached_property
    def frames(self) -> int:
        """Number of encoder frames, at the training's highest speed."""
        return self._frames(self.cut)


class Errors(NamedTuple):
    """The dev metric's counts in a batch: errors, units, and for CTC the utterances whose greedy path is only blank."""

    errors: int
    units: int
    blank: int | None = None


class Term(NamedTuple):
    """A loss over a batch: mean per unit, number of units, number of utterances left out, counts for the dev metric.

    ``logits``: those that the loss was computed from; None if it has none to distil (see ``Loss.logits``). ``seen``:
    numbers for ``Loss.observe``, which gets their sum over the batches of an update.
    """

    mean: Tensor
    units: int
    impossible: int = 0
    errors: Errors | None = None
    logits: Tensor | None = None
    seen: Tensor | None = None


class TargetError(ValueError):
    """Targets and output layer do not match; the message is one line."""


class Loss(nn.Module):
    """The base class. ``auxiliary``: added to the loss of the task, with its own head that is not saved.

    name          its name in the registry and in the targets of a cut
    tasks         tasks of a model (``SpeechModel.task``) whose loss it can be
    beside        tasks for which it can be an auxiliary loss
    wants_labels  whether it distinguishes languages
    backend       the library that computes it, if there is a choice (``backend`` and ``version``)
    observes      how many numbers ``observe`` wants
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()
    wants_labels: ClassVar[bool] = False
    backend: Any = None
    observes: int = 0

    def __init__(self, materials: Materials, auxiliary: bool = False):
        super().__init__()
        self.materials, self.auxiliary = materials, auxiliary

    def prepare(self, utterance: Utterance) -> Any | Reason:
        """The JSON-serialisable target of an utterance, or why it has none."""
        raise NotImplementedError

    def check(self, languages: Languages) -> None:
        """Raise UserError if the training cuts, which have these languages, do not suffice."""

    def fit(self, targets: Callable[[], Iterable[Any]]) -> None:
        """Learn from the targets of all training cuts, which ``targets()`` reads. Every process calls this."""

    def build(self, model: SpeechModel) -> None:
        """Initialise the loss's own head with torch's generator; called once, when the model is complete."""

    def untranscribed(self, tokens: Sequence[int] | None) -> Any:
        """A target for ``logits`` and ``predicted`` alone, of an utterance without a transcript; JSON-serialisable.

        ``tokens``: what the decoder reads, its prompt included; None if no decoder reads, because there is none, or
        because only the encoder learns.
        """
        raise NotImplementedError

    def collate(self, targets: Sequence[Any]) -> Any:
        """Tensors of the targets of a batch."""
        raise NotImplementedError

    def forward(self, model: SpeechModel, states: Tensor, frames: Tensor, target: Any, errors: bool = False) -> Term:
        """The loss for encoder states (B, F, D) with (B,) valid frames, and a ``target`` from ``collate``."""
        raise NotImplementedError

    def units(self, target: Any, frames: Callable[[], Tensor]) -> int:
        """The number of units of a batch; ``frames()`` returns the (B,) valid frames of its encoder states."""
        raise NotImplementedError

    def logits(self, model: SpeechModel, states: Tensor, frames: Tensor, target: Any) -> Tensor:
        """The logits (B, ..., V) of ``model`` from which ``forward`` computes the loss; arguments as there."""
        raise NotImplementedError

    def predicted(self, target: Any, frames: Tensor, size: int) -> Tensor:
        """Which logits are predictions: bool, of the shape of ``logits`` without V, on the device of ``frames``.

        Padding and prompts are not. ``size``: the number of frames with padding.
        """
        raise NotImplementedError

    def observe(self, total: Tensor) -> None:
        """Use the sum of ``Term.seen`` (float64, on the CPU) over all batches of all processes in an update."""
        raise NotImplementedError

    def end_epoch(self) -> None:
        """Called when an epoch and its evaluation are over."""

    def save(self, folder: Path) -> list[Path]:
        """Write what belongs beside the model to ``folder``; returns the files."""
        return []
