"""What comes out of a model: the text of a recording, or its language."""

from dataclasses import dataclass

from lowrank_speech.decoding.base import Segment, Word

__all__ = ["Identification", "Segment", "Transcript", "Word"]


@dataclass(frozen=True)
class Transcript:
    """The text of a recording.

    text      what was said
    language  its language, as given or detected; None: not known
    seconds   duration of the recording
    words     words with times in seconds, and log probabilities; None: not available, or not asked for
    segments  stretches with times, of Whisper's time stamps; empty: not available
    audio     name of the recording; None for samples
    notes     what people should know: a damaged file, a hypothesis that the decoder stopped
    """

    text: str
    language: str | None
    seconds: float
    words: tuple[Word, ...] | None = None
    segments: tuple[Segment, ...] = ()
    audio: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Identification:
    """The language of a recording.

    language       the most probable one
    probabilities  language -> probability, the highest first; they sum to one
    seconds        duration of the recording
    calibrated     whether a trained back end calibrated the probabilities
    audio, notes   as in ``Transcript``
    """

    language: str
    probabilities: dict[str, float]
    seconds: float
    calibrated: bool = False
    audio: str | None = None
    notes: tuple[str, ...] = ()
