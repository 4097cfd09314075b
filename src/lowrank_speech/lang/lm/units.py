"""The words of a language model: what a transcript becomes for each unit.

word        the words of the normalised transcript
token       the ids of the token set as decimal numbers, such as "17"; its <unk> is the model's <unk>
character   the characters of the normalised transcript; ``|`` stands between words
"""

from collections.abc import Callable

from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm.ngrams import UNK
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.normalise import UNKNOWN
from lowrank_speech.lang.tokens import BOUNDARY

UNITS = ("word", "token", "character")

Splitter = Callable[[str, str | None], list[str]]


def splitter(unit: str, lang: Lang) -> Splitter:
    """A function from a normalised text and its language to the model's words. UserError: no token set for tokens."""
    if unit == "word":
        return lambda text, language: text.split()
    if unit == "character":
        return lambda text, language: [UNK if c == UNKNOWN else c for c in BOUNDARY.join(text.split())]
    if unit != "token":
        raise UserError(f"unit: {unit!r} is not valid; expected one of: {', '.join(UNITS)}")
    if lang.tokens is None:
        raise UserError("unit: token needs a token set of kind char or sentencepiece; kind whisper has none of its own")
    tokens = lang.tokens
    symbols = [token_symbol(i, tokens.unk) for i in range(tokens.size)]
    return lambda text, language: [symbols[i] for i in tokens.encode(text, language)]


def token_symbol(token: int, unk: int) -> str:
    """The model's word for the id of a token; ``unk`` is the id of the token set's <unk>."""
    return UNK if token == unk else str(token)
