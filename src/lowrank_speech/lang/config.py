"""Settings of token sets: one class for each kind, and the table from kind to class.

>>> read({"kind": "char", "min_count": 2}, "langs.chars")
Char(kind='char', for_='ctc', min_count=2, normalise=NormaliseConfig(case='lower', ...))
"""

from collections.abc import Mapping
from typing import Any, Literal

from lowrank_speech import settings
from lowrank_speech.errors import UserError
from lowrank_speech.lang.normalise import NormaliseConfig
from lowrank_speech.settings import REQUIRED, Count, key

For = Literal["ctc", "seq2seq"]
FOR = "ctc, or seq2seq: adds the special symbols of a Whisper decoder"
MIN_COUNT = "characters that occur less often become <unk>"
NORMALISE = "how transcripts are normalised, in training and in scoring"


@settings.settings
class Char:
    """Characters."""

    kind: Literal["char"] = key(REQUIRED, "characters")
    for_: For = key("ctc", FOR, alias="for")
    min_count: Count = key(1, MIN_COUNT)
    normalise: NormaliseConfig = key(None, NORMALISE, default_factory=NormaliseConfig)


@settings.settings
class Pieces:
    """Pieces of a sentencepiece model; see ``lang.pieces``."""

    kind: Literal["sentencepiece"] = key(REQUIRED, "pieces of a sentencepiece model")
    for_: For = key("seq2seq", FOR, alias="for")
    vocab_size: Count = key(500, "number of pieces, including <blk> and <unk>")
    model_type: Literal["unigram", "bpe"] = key("unigram", "algorithm of sentencepiece")
    byte_fallback: bool = key(False, "write unknown characters as bytes instead of <unk>; uses 256 of the pieces")
    min_count: Count = key(1, MIN_COUNT)
    normalise: NormaliseConfig = key(None, NORMALISE, default_factory=NormaliseConfig)


@settings.settings
class WhisperTokenizer:
    """The tokenizer of a published Whisper, which comes with the model. Only the text can be set."""

    kind: Literal["whisper"] = key(REQUIRED, "the tokenizer of a published Whisper")
    leading_space: bool = key(
        False, "begin each text with a blank, as published Whispers write it (except in languages without blanks)"
    )
    normalise: NormaliseConfig = key(None, NORMALISE, default_factory=NormaliseConfig)


KINDS: dict[str, type] = {"char": Char, "sentencepiece": Pieces, "whisper": WhisperTokenizer}


def read(section: Any, where: str) -> Char | Pieces | WhisperTokenizer:
    """Read and check the settings of a token set, called ``where`` in messages. UserError: not valid."""
    if not isinstance(section, Mapping):
        raise UserError(f"{where}: expected a mapping with keys, got {section!r}")
    kind = section.get("kind")
    if kind not in KINDS:
        raise UserError(f"{where}.kind: unknown kind {kind!r}; expected one of: {', '.join(KINDS)}")
    return settings.read(KINDS[kind], section, where)
