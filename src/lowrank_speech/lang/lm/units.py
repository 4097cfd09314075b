"""The words of a language model: what a transcript becomes for each unit.

word        the words of the normalised transcript
token       the ids of the token set as decimal numbers, such as "17"; its <unk> is the model's <unk>
character   the characters of the normalised transcript; ``|`` stands between words
"""

import logging
from collections.abc import Callable, Sequence

from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm.ngrams import UNK
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.normalise import UNKNOWN
from lowrank_speech.lang.tokens import BOUNDARY

log = logging.getLogger("lowrank_speech")

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


def check_words(words: Sequence[str], unit: str, lang: Lang, where: str) -> None:
    """Compare the words of a model that another program made with what a transcript becomes.

    UserError: they cannot be of this unit. Warns if most words are never asked for, because the normaliser writes them
    otherwise (upper case, for example).
    """
    if unit == "character":
        wrong = next((word for word in words if len(word) > 1), None)
        if wrong is not None:
            raise UserError(f"{where}: the word {wrong!r} is not one character; set unit: word, or give another model")
    elif unit == "token":
        known = {token_symbol(i, lang.tokens.unk) for i in range(lang.tokens.size)}
        wrong = next((word for word in words if word not in known), None)
        if wrong is not None:
            raise UserError(
                f"{where}: the word {wrong!r} is not a token; with unit: token, the words are the ids of the token "
                f"set, 0 to {lang.tokens.size - 1}"
            )
    else:
        changed = [word for word in words if lang.normalise(word) != word]
        if 2 * len(changed) > len(words):
            log.warning(
                "lm: %d of the %d words of %s are never found, because transcripts are normalised otherwise, such as "
                "%r to %r; convert the model, or change `normalise` of the token set",
                len(changed),
                len(words),
                where,
                changed[0],
                lang.normalise(changed[0]),
            )
