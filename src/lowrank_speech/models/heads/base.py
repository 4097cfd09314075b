"""What a task head is: a small module from encoder states to logits. It knows no family and nothing of transformers.

A head is one file here and one line in ``heads.registry``:

    @settings
    class MySettings:
        kind: Literal["mine"] = key("mine", "...")
        ...                                     # its sizes, with defaults

    class MyHead(Head):
        KIND, SETTINGS, TASK = "mine", MySettings, "classify"

        def __init__(self, settings, width, outputs):
            super().__init__(settings)
            ...                                 # modules; their parameters have names below ``head.`` in the model

        def forward(self, states, frames): ...  # (B, F, D), (B,) -> (B, F, V) for "ctc", (B, N) for "classify"

A model folder stores a head's weights as ``head.*`` and its settings in config.json. Heads that transformers knows too
(``NAMES``) are stored as transformers does, so that its own classes load the folder.

B batch, F frames, D size of the encoder's states, V symbols, N classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Head(nn.Module):
    """A task's head. ``settings``: an object of the class's ``SETTINGS``."""

    KIND: ClassVar[str]
    SETTINGS: ClassVar[type]
    TASK: ClassVar[str]
    """``ctc``: a symbol's logits for each frame; ``classify``: the classes' logits for each utterance."""
    NAMES: ClassVar[Mapping[str, str]] = {}
    """Child module -> its name in transformers' class for the task. Empty: transformers has no such head."""

    def __init__(self, settings: Any):
        super().__init__()
        self.settings = settings

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        """Logits from encoder states (B, F, D), of which ``frames`` (B,) are valid; padding changes no valid output."""
        raise NotImplementedError

    def initialise(self, std: float) -> None:
        """Draw new weights from torch's global generator; ``std``: what the body's config initialises with."""
        for module in self.modules():
            if module is not self and hasattr(module, "reset_parameters"):
                module.reset_parameters()

    @classmethod
    def settings_of(cls, config: Any) -> Any:
        """The settings that transformers' ``config`` implies, where a folder or a config section says nothing else."""
        return cls.SETTINGS()

    @classmethod
    def outputs_of(cls, config: Any) -> int:
        """The number of outputs in transformers' ``config``."""
        return config.vocab_size if cls.TASK == "ctc" else config.num_labels

    @classmethod
    def configure(cls, config: Any, settings: Any, outputs: int, labels: Sequence[str] = ()) -> None:
        """Note the head in transformers' ``config``, in place: its ``outputs``, and of classes their ``labels``."""
        if cls.TASK == "ctc":
            config.vocab_size = outputs
        else:
            config.num_labels = outputs
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: i for i, label in enumerate(labels)}


def draw_linear(layer: nn.Linear, std: float) -> None:
    """New weights as transformers draws them: normal with ``std``, bias 0."""
    layer.reset_parameters()  # what transformers' constructor draws first
    layer.weight.data.normal_(0.0, std)
    layer.bias.data.zero_()


def within(frames: Tensor, length: int) -> Tensor:
    """Bool (B, F = ``length``): the frames that are valid."""
    return torch.arange(length, device=frames.device)[None, :] < frames[:, None]
