"""What every loss has in common: one protocol from the cut to the gradient.

    prepare   once for each cut, before the first step: the target as JSON, kept with the cut, or why there is none
    build     before the first step: weights of its own, if it has a head that is thrown away afterwards
    collate   targets of a batch -> tensors
    forward   the loss of a batch, and with ``errors`` what the dev metric counts
    units     how many labels (tokens, utterances) that loss is a mean over, before anything is computed

To add a loss, write a file with a subclass of ``Loss`` and name it in ``registry``.

Letters: B batch, F frames, D size of the encoder states, V vocabulary, L target length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.select import Languages, Reason
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import TrainConfig


@dataclass
class Materials:
    """What losses are made from.

    lang        normaliser and token set; recognition has one
    tokens      token set of a decoder: that of ``lang``, or Whisper's own
    positions   the most tokens that the decoder takes
    labels      the languages to tell apart. Losses share this list: where the config does not name the languages, it
                is filled while cuts are prepared
    device      where the loss is computed
    """

    recipe: TrainConfig
    lang: Lang | None = None
    tokens: Any = None
    positions: int | None = None
    labels: list[str] = field(default_factory=list)
    device: str = "auto"


class Utterance:
    """What losses read of a cut. Its text is normalised once, whatever number of losses reads it.

    ``frames``: a function that gives the encoder frames of a cut.
    """

    def __init__(self, cut: Any, lang: Lang | None, frames: Callable[[Any], int]):
        self.cut, self.lang, self._frames = cut, lang, frames
        self.language: str | None = cut.supervisions[0].language

    @cached_property
    def text(self) -> str | Reason:
        """The normalised text, or why nothing can be learnt from it."""
        said = self.cut.supervisions[0].text
        text = self.lang.normalise(said, self.language) if said else ""
        if not text:
            return Reason(self.lang.usable(said, self.language), repr(said))
        if self.lang.tokens is not None:
            left = set("".join(text.split()))
            if len(self.lang.tokens.unseen("".join(left))) == len(left):  # a training would learn <unk> only
                return Reason("no character of the token set", repr(said))
        return text

    @cached_property
    def frames(self) -> int:
        """Encoder frames, at the highest speed that the training asks for."""
        return self._frames(self.cut)


class Errors(NamedTuple):
    """What the dev metric counts in a batch: errors, units, and for CTC the utterances whose greedy path is blank."""

    errors: int
    units: int
    blank: int | None = None


class Term(NamedTuple):
    """A loss over a batch: the mean per unit, the number of units, utterances left out, and the dev metric's counts."""

    mean: Tensor
    units: int
    impossible: int = 0
    errors: Errors | None = None


class TargetError(ValueError):
    """Targets and output layer do not fit together; the message is one line."""


class Loss(nn.Module):
    """The base class. ``auxiliary``: beside the loss of the task, with a head of its own that is not saved.

    name          under which the registry and the targets of a cut know it
    tasks         tasks of a model (``SpeechModel.task``) of which it is the loss
    beside        tasks beside whose loss it may be auxiliary
    wants_labels  whether it tells languages apart
    backend       what computes it, where there is a choice (``backend`` and ``version``)
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[tuple[str, ...]] = ()
    wants_labels: ClassVar[bool] = False
    backend: Any = None

    def __init__(self, materials: Materials, auxiliary: bool = False):
        super().__init__()
        self.materials, self.auxiliary = materials, auxiliary

    def prepare(self, utterance: Utterance) -> Any | Reason:
        """The target of an utterance, of types that JSON has; or why there is none."""
        raise NotImplementedError

    def check(self, languages: Languages) -> None:
        """UserError where the training cuts, which have these languages, do not suffice."""

    def build(self, model: SpeechModel) -> None:
        """Draw the weights of its own head, from torch's generator; called once, when the model is complete."""

    def collate(self, targets: Sequence[Any]) -> Any:
        """Tensors of the targets of a batch."""
        raise NotImplementedError

    def forward(self, model: SpeechModel, states: Tensor, frames: Tensor, target: Any, errors: bool = False) -> Term:
        """The loss for encoder states (B, F, D) with (B,) valid frames, and a ``target`` that ``collate`` gave."""
        raise NotImplementedError

    def units(self, target: Any, frames: Callable[[], Tensor]) -> int:
        """The units of a batch; ``frames()`` gives the (B,) valid frames of its encoder states."""
        raise NotImplementedError
