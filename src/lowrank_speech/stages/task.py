"""Settings of a task, as the stages that train and decode read them."""

from typing import Literal

from lowrank_speech.settings import Positive, key, settings


@settings
class Segment:
    """Utterances are cut to a length."""

    seconds: Positive | None = key(None, "cut utterances to at most this length; null: do not cut")


@settings
class Task:
    """What is recognised."""

    type: Literal["asr", "lid"] = key(..., "asr: speech recognition; lid: spoken language recognition")
    languages: tuple[str, ...] | None = key(None, "lid: the classes; null: the languages of the training split")
    segment: Segment | None = key(None, "lid: length of the utterances; null: do not cut")

    def __post_init__(self) -> None:
        if self.type == "asr" and self.segment is not None and self.segment.seconds is not None:
            raise ValueError(
                "segment cuts the audio, but not the transcript; only tasks of type lid take it: remove the key"
            )
        if self.type == "lid" and self.languages is not None and len(self.languages) < 2:
            raise ValueError(f"languages is {list(self.languages)}; name at least two")
