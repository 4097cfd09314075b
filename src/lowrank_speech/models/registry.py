"""Which families of models there are, and what the workflow needs to know of each before any model is loaded.

A new family is one file in ``models/families`` (a subclass of ``SpeechModel``), and one row and one ``case`` here. This
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
    """What can be known of a family from its name alone.

    model_types   transformers' own names, ``model_type`` in config.json
    features      kinds of features that it reads: the one that the stage features stores, then those made on the fly
    recognises    the task in which it recognises speech: ``ctc`` or ``seq2seq``
    scratch       whether a small model can be made from scratch
    front_end     whether it has a convolutional front end, which fine-tuning keeps frozen
    window        whether utterances are padded to a window that can be cut
    tokenizer     whether published models come with a tokenizer of their own that recognition uses
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
    """The subclass of ``SpeechModel`` of a family; UserError that lists the known ones."""
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
    raise UserError(f"{family!r} is not a known family of models; expected one of: {', '.join(FAMILIES)}")


def family_of(model_type: str | None, where: str) -> str:
    """The family of transformers' ``model_type``; UserError that lists the known ones. ``where``: for the message."""
    for name, family in FAMILIES.items():
        if model_type in family.model_types:
            return name
    known = sorted(kind for family in FAMILIES.values() for kind in family.model_types)
    raise UserError(
        f"{where}: model_type is {model_type!r}; expected one of: {', '.join(known)}; give a model of these"
    )


def scratch_families() -> list[str]:
    """The families of which a model can be made from scratch."""
    return [name for name, family in FAMILIES.items() if family.scratch]
