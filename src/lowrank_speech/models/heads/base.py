"""The interface of task heads: small modules from encoder states to logits, independent of families and transformers.

To add a head, add a file here and a line in ``heads.registry``:

    @settings
    class MySettings:
        kind: Literal["mine"] = key("mine", "...")
        ...                                     # its sizes, with defaults

    class MyHead(Head):
        KIND, SETTINGS, TASK = "mine", MySettings, "classify"

        def __init__(self, settings, width, outputs):
            super().__init__(settings)
            ...                                 # modules; in the model, their parameters are called ``head.*``

        def forward(self, states, frames): ...  # (B, F, D), (B,) -> (B, F, V) for "ctc", (B, N) for "classify"

A classifier may read the last layer or a learnt weighted sum of all layers (key ``layers``; ``mixing.LayerSum``), and
may have factors: ``factorised`` replaces linear layers by them (see ``training.head_ranks``).

A model folder stores a head's weights as ``head.*`` and its settings in config.json. Heads that transformers also has
(``NAMES``) are stored under transformers' names, so that its own classes load the folder.

B batch, F frames, D size of the encoder's states, V symbols, N classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowrank_speech.lowrank.structure import apply_plan, low_rank_layers
from lowrank_speech.models.mixing import LayerSum


class Head(nn.Module):
    """A task's head. ``settings``: an object of the class's ``SETTINGS``."""

    KIND: ClassVar[str]
    SETTINGS: ClassVar[type]
    TASK: ClassVar[str]
    """``ctc``: a symbol's logits for each frame; ``classify``: the classes' logits for each utterance."""
    NAMES: ClassVar[Mapping[str, str]] = {}
    """Child module -> its name in transformers' class for the task. Empty if transformers does not have this head."""
    DECODER: ClassVar[bool] = False
    """Whether the decoder's own output is the classifier (``language_tokens``); then the model has its decoder."""
    OUTPUT: ClassVar[str] = "classifier"
    """The layer that stays dense when the head is factorised: its size follows from the classes."""

    def __init__(self, settings: Any):
        super().__init__()
        self.settings = settings
        self.mix: LayerSum | None = None  # the weights of the encoder's layers; None: only the last one counts

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        """Logits for encoder states (B, F, D), of which ``frames`` (B,) are valid; padding must not affect them."""
        raise NotImplementedError

    def initialise(self, std: float) -> None:
        """Initialise the weights with torch's global generator; ``std``: the body config's ``initializer_range``."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for layer in low_rank_layers(self).values():
            nn.init.orthogonal_(layer.first.weight)  # keeps the variance of the inputs, so that of the outputs too

    @property
    def known(self) -> bool:
        """Whether transformers may have a class with this head."""
        return bool(self.NAMES) and self.mix is None and not low_rank_layers(self)

    def factorised(self, plan: Mapping[str, int]) -> "Head":
        """Replace the layers of ``plan`` (name -> rank) by uninitialised factors. Returns itself."""
        return apply_plan(self, plan)

    @classmethod
    def settings_of(cls, config: Any) -> Any:
        """The settings that transformers' ``config`` implies, for folders and config sections that set none."""
        return cls.SETTINGS()

    @classmethod
    def outputs_of(cls, config: Any) -> int:
        """The number of outputs in transformers' ``config``."""
        return config.vocab_size if cls.TASK == "ctc" else config.num_labels

    @classmethod
    def configure(cls, config: Any, settings: Any, outputs: int, labels: Sequence[str] = ()) -> None:
        """Set the head's ``outputs``, and the ``labels`` of classes, in transformers' ``config`` (in place)."""
        if cls.TASK == "ctc":
            config.vocab_size = outputs
        else:
            config.num_labels = outputs
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: i for i, label in enumerate(labels)}


def draw_linear(layer: nn.Linear, std: float) -> None:
    """Initialise a layer as transformers does: normal with ``std``, bias 0."""
    layer.reset_parameters()  # transformers' constructor also draws these first
    layer.weight.data.normal_(0.0, std)
    layer.bias.data.zero_()


def within(frames: Tensor, length: int) -> Tensor:
    """Mask of valid frames, bool (B, ``length``), from their numbers (B,)."""
    return torch.arange(length, device=frames.device)[None, :] < frames[:, None]
