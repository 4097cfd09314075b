"""Settings of a task, as the stages that train and decode read them."""

from typing import Literal

from lowrank_speech.settings import REQUIRED, Positive, Range, Seed, key, settings


@settings
class Segment:
    """Utterances are cut to a length."""

    seconds: Positive | None = key(
        None, "cut utterances to at most this length, dev and test in the middle; null: do not cut"
    )
    crop: Range | None = key(
        None,
        "training: a length in seconds from this range, and a place, are drawn for each utterance in each epoch; null: "
        "at one place in all epochs, of `seconds`",
    )

    def __post_init__(self) -> None:
        if self.crop is not None and self.crop[0] <= 0:
            raise ValueError(f"crop is {list(self.crop)}; its lengths in seconds must be above 0")


@settings
class Cut:
    """The piece of each utterance that a test set has."""

    seconds: Positive = key(REQUIRED, "length of the pieces")
    place: Literal["middle", "random"] = key("middle", "where the piece is cut; random: drawn for each utterance")
    shorter: Literal["set-aside", "keep"] = key("set-aside", "what happens to utterances that are shorter")
    seed: Seed = key(0, "seed of the random places")


Role = Literal["train", "dev", "test"]


@settings
class Shared:
    """What the splits of a language recognition task may share, although results then hold for less."""

    speakers: tuple[Role, ...] = key((), "roles that may have speakers in common, such as [train, dev]")
    sources: tuple[Role, ...] = key((), "roles that may have sources in common")
    sessions: tuple[Role, ...] = key((), "roles that may have sessions in common")

    def __post_init__(self) -> None:
        for what in ("speakers", "sources", "sessions"):
            roles = getattr(self, what)
            if len(set(roles)) < len(roles) or len(roles) == 1:
                raise ValueError(f"{what} is {list(roles)}; name two or three different roles that may share {what}")


@settings
class Task:
    """What is recognised."""

    type: Literal["asr", "lid"] = key(..., "asr: speech recognition; lid: spoken language recognition")
    languages: tuple[str, ...] | None = key(None, "lid: the classes; null: the languages of the training split")
    segment: Segment | None = key(None, "lid: length of the utterances; null: do not cut")
    channel: Literal["narrow", "mulaw", "gsm", "mp3"] | None = key(
        None, "lid: bandwidth and codec that all speech of train, dev and test goes through; null: as it is"
    )

    def __post_init__(self) -> None:
        cut = self.segment is not None and (self.segment.seconds, self.segment.crop) != (None, None)
        if self.type == "asr" and cut:
            raise ValueError(
                "segment cuts the audio, but not the transcript; only tasks of type lid take it: remove the key"
            )
        if self.type == "asr" and self.channel is not None:
            raise ValueError("channel: only tasks of type lid take this key; remove it")
        if self.type == "lid" and self.languages is not None and len(self.languages) < 2:
            raise ValueError(f"languages is {list(self.languages)}; name at least two")
