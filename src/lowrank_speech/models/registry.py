"""The model families, and what the workflow needs to know about each before it loads a model.

To add a family, add a file to ``models/families`` (a subclass of ``SpeechModel``), and a row and a ``case`` here. This
module imports neither torch nor transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lowrank_speech.errors import UserError

if TYPE_CHECKING:
    from lowrank_speech.models.speech import SpeechModel


@dataclass(frozen=True)
class Family:
    """The properties of a family.

    model_types   transformers' names, ``model_type`` in config.json
    features      kinds of input features: first the kind that the stage features stores, then those made on the fly
    recognises    the task in which it recognises speech: ``ctc`` or ``seq2seq``
    scratch       whether a small model can be made from scratch
    front_end     whether it has a convolutional front end, which fine-tuning keeps frozen
    window        whether utterances are padded to a window that can be shortened
    tokenizer     whether published models have their own tokenizer that recognition uses
    """

    model_types: Sequence[str]
    features: Sequence[str]
    recognises: str = "ctc"
    scratch: bool = False
    front_end: bool = False
    window: bool = False
    tokenizer: bool = False


FAMILIES = {
    "wav2vec2": Family(
        ("wav2vec2", "hubert", "wavlm", "data2vec-audio"), ("conv", "waveform"), scratch=True, front_end=True
    ),
    "w2v-bert": Family(("wav2vec2-bert",), ("fbank", "waveform")),
    "whisper": Family(("whisper",), ("logmel", "waveform"), "seq2seq", scratch=True, window=True, tokenizer=True),
}


def family_class(family: str) -> "type[SpeechModel]":
    """The subclass of ``SpeechModel`` for a family. Raises UserError with the known families if it does not exist."""
    match family:
        case "wav2vec2":
            from lowrank_speech.models.families.wav2vec2 import Wav2vec2

            return Wav2vec2
        case "w2v-bert":
            from lowrank_speech.models.families.w2v_bert import W2vBert

            return W2vBert
        case "whisper":
            from lowrank_speech.models.families.whisper import Whisper

            return Whisper
    raise UserError(f"{family!r} is not a known model family; expected one of: {', '.join(FAMILIES)}")


def family_of(model_type: str | None, where: str) -> str:
    """The family of transformers' ``model_type``. Raises UserError with the known types; ``where``: for its message."""
    for name, family in FAMILIES.items():
        if model_type in family.model_types:
            return name
    known = sorted(kind for family in FAMILIES.values() for kind in family.model_types)
    raise UserError(
        f"{where}: model_type is {model_type!r}; expected one of: {', '.join(known)}; use a model of one of these types"
    )


def scratch_families() -> list[str]:
    """The families that support models from scratch."""
    return [name for name, family in FAMILIES.items() if family.scratch]
