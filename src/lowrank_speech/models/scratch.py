"""Make a small model of a family with random weights, to be pretrained here (``source: scratch``)."""

from collections.abc import Mapping
from typing import Any, Literal

from lowrank_speech.models.gabor import gabor_start
from lowrank_speech.models.registry import FAMILIES, family_class
from lowrank_speech.models.speech import SpeechModel


def from_scratch(
    family: str,
    overrides: Mapping[str, Any],
    tokens: Any,
    seed: int,
    front_end: Literal["gabor", "random"] = "gabor",
) -> SpeechModel:
    """A model that recognises speech with ``tokens`` (a token set, ``lang.tokens``), in eval mode.

    ``overrides``: keys of the family's transformers config; ``front_end``: how to initialise the first convolution of
    wav2vec2. Raises UserError if the family cannot be made from scratch, or a key does not exist.
    """
    model = family_class(family).scratch(overrides, tokens, seed)
    if FAMILIES[family].front_end and front_end == "gabor":
        gabor_start(model.body.feature_extractor)
    return model
