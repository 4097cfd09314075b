"""Settings of the token sets: one class a kind, and the kind -> class table.

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
FOR = "ctc, or seq2seq: with the special symbols of a Whisper decoder"
MIN_COUNT = "characters that are seen less often become <unk>"
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
    vocab_size: Count = key(500, "number of pieces, <blk> and <unk> included")
    model_type: Literal["unigram", "bpe"] = key("unigram", "how pieces are found")
    byte_fallback: bool = key(False, "write unknown characters as bytes: 256 of the pieces, and nothing is <unk>")
    min_count: Count = key(1, MIN_COUNT)
    normalise: NormaliseConfig = key(None, NORMALISE, default_factory=NormaliseConfig)


@settings.settings
class Own:
    """The tokenizer that comes with a published Whisper: only the normaliser is set."""

    kind: Literal["whisper"] = key(REQUIRED, "the tokenizer of a published Whisper")
    normalise: NormaliseConfig = key(None, NORMALISE, default_factory=NormaliseConfig)


KINDS: dict[str, type] = {"char": Char, "sentencepiece": Pieces, "whisper": Own}


def read(section: Any, where: str) -> Char | Pieces | Own:
    """A token set's settings, checked, by their kind; ``where`` names the section in messages. UserError."""
    if not isinstance(section, Mapping):
        raise UserError(f"{where}: expected a mapping with keys, got {section!r}")
    kind = section.get("kind")
    if kind not in KINDS:
        raise UserError(f"{where}.kind: {kind!r} does not exist; expected one of: {', '.join(KINDS)}")
    return settings.read(KINDS[kind], section, where)
