"""Settings of a base: a published model, or how to make one from scratch. Imports neither torch nor transformers."""

from typing import Any, Literal

from lowrank_speech.models.registry import FAMILIES, scratch_families
from lowrank_speech.settings import REQUIRED, Positive, key, settings

STEP = 0.02  # seconds: Whisper's encoder has a position for each
FamilyName = Literal[tuple(FAMILIES)]


@settings
class BaseSettings:
    """A pretrained model: a hub name, a folder, or a model that is initialised from the seed and pretrained here."""

    family: FamilyName = key(
        REQUIRED, "wav2vec2 (also XLS-R, MMS, HuBERT, WavLM, data2vec-audio), w2v-bert (w2v-BERT 2.0), or whisper"
    )
    source: str = key(
        REQUIRED,
        "hub name (owner/name), folder, name of a folder below $SPEECH_MODELS, or scratch: a small model that is "
        "pretrained here",
        min_length=1,
    )
    revision: str | None = key(None, "hub name: the commit to use")
    window: Positive | None = key(
        None, "published Whisper: seconds to which utterances are padded, a multiple of 0.02; null: as published"
    )
    model: dict[str, Any] = key({}, "scratch: keys of the family's transformers config", default_factory=dict)
    front_end: Literal["gabor", "random"] = key("gabor", "scratch wav2vec2: initialisation of the first convolution")

    def __post_init__(self) -> None:
        if self.source == "scratch" and not FAMILIES[self.family].scratch:
            raise ValueError(
                f"source: scratch supports only {' and '.join(scratch_families())}; {self.family} needs a hub name or "
                f"a folder"
            )
        if self.source != "scratch" and self.model:
            raise ValueError(f"model is only for source: scratch, but source is {self.source!r}; remove it")
        if self.window is None:
            return
        if not FAMILIES[self.family].window:
            raise ValueError(f"window: {self.family} models have no window; remove the key")
        if self.source == "scratch":
            raise ValueError("window: for source: scratch set model.max_source_positions (20 ms each) instead")
        if not (self.window < 1e6 and abs(self.window / STEP - round(self.window / STEP)) < 1e-6):
            raise ValueError(f"window is {self.window:g}; it must be a multiple of {STEP} s, Whisper's step")
