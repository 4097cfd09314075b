"""Tokens as symbols, for the token error rate: what a decoder put out, and what the token set makes of a reference.

Symbols contain no blanks, and each token has its own, so a line of symbols reads like text and compares like ids.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Symbols(NamedTuple):
    """``of_text(text, language)`` and ``of_ids(ids)`` return a list of symbols, without blanks and special tokens."""

    of_text: Callable[[str, str | None], list[str]]
    of_ids: Callable[[Sequence[int]], list[str]]


def symbols_of(source: Any, lang: Any) -> Symbols:
    """The symbols of the token set that the outputs of ``source`` stand for (``decoding.sources``)."""
    if lang.tokens is None:
        return _of_whisper(source.folder, lang.leading_space)
    tokens = lang.tokens
    special = set(tokens.special.values()) | {tokens.blank}

    def named(ids: Sequence[int]) -> list[str]:
        return [tokens.symbols[i] for i in ids if i not in special]

    return Symbols(lambda text, language: named(tokens.encode(text, language)), named)


def _of_whisper(folder: Any, leading_space: bool) -> Symbols:
    """Those of a published Whisper: its byte-level pieces, in which a blank is ``Ġ``."""
    from lowrank_speech.models.text import WhisperTokens
    from lowrank_speech.models.whisper_vocabulary import open_tokenizer

    tokens, names = WhisperTokens(folder, leading_space), open_tokenizer(folder)

    def named(ids: Sequence[int]) -> list[str]:
        return names.convert_ids_to_tokens([i for i in ids if i < tokens.eot])

    return Symbols(lambda text, language: named(tokens.encode(text, language)), named)
