"""CTC head: dropout and one linear layer over each frame; symbol 0 is the blank. transformers: ``...ForCTC``."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from lowrank_speech.models.heads.base import Head, draw_linear
from lowrank_speech.settings import BelowOne, key, settings

BLANK = 0


@settings
class CtcSettings:
    kind: Literal["ctc"] = key("ctc", "a linear layer over each frame")
    dropout: BelowOne = key(0.0, "dropout before the linear layer, in training")


class CtcHead(Head):
    """States (B, F, D) -> logits (B, F, V)."""

    KIND, SETTINGS, TASK = "ctc", CtcSettings, "ctc"
    NAMES: ClassVar = {"linear": "lm_head"}

    def __init__(self, settings: CtcSettings, width: int, outputs: int):
        super().__init__(settings)
        self.dropout = nn.Dropout(settings.dropout)
        self.linear = nn.Linear(width, outputs)

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        return self.linear(self.dropout(states))

    def initialise(self, std: float) -> None:
        draw_linear(self.linear, std)

    @classmethod
    def settings_of(cls, config: Any) -> CtcSettings:
        return CtcSettings(dropout=getattr(config, "final_dropout", 0.0))

    @classmethod
    def configure(cls, config: Any, settings: CtcSettings, outputs: int, labels: Sequence[str] = ()) -> None:
        super().configure(config, settings, outputs, labels)
        config.final_dropout = settings.dropout
        config.pad_token_id = BLANK  # transformers' CTC loss uses this id as the blank
