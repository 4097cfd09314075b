"""The text that each token writes, as bytes of UTF-8, in which a blank begins a word.

Language models of words or characters and hot words see the text of a label sequence, however it is cut into tokens:
the character ``|`` writes a blank, the piece ``▁the`` writes `` the``. Repeated, leading and trailing blanks do not
count, as in ``Tokens.decode``.
"""

import re
from typing import Any

from lowrank_speech.lang.normalise import UNKNOWN
from lowrank_speech.lang.tokens import BOUNDARY

SPACE = ord(" ")
PIECE_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def spellings(lang: Any) -> list[bytes]:
    """The bytes that each token of ``lang`` (a ``lang.load.Lang`` of characters or pieces) writes, by id."""
    pieces = lang.kind == "sentencepiece"
    tokens = lang.tokens
    found = []
    for number, symbol in enumerate(tokens.symbols):
        if number == tokens.blank or number >= tokens.first_special:
            found.append(b"")
        elif number == tokens.unk:
            found.append(UNKNOWN.encode())
        elif pieces and (byte := _BYTE.fullmatch(symbol)):
            found.append(bytes([int(byte[1], 16)]))
        else:
            found.append(symbol.replace(PIECE_SPACE if pieces else BOUNDARY, " ").encode())
    return found
