"""The token set of a CTC model, from the tokenizer files in its folder: ours, and those of published models.

    vocab.json       characters (Wav2Vec2CTCTokenizer), also phonemes (Wav2Vec2PhonemeCTCTokenizer)
    tokenizer.json   pieces

The blank of a published model may have any number (transformers calls it padding). Here it is always 0: ``order`` says
how to sort the outputs of the model.

V vocabulary.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lowrank_speech.decoding.ctc.spelling import PIECE_SPACE, spellings
from lowrank_speech.errors import UserError
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.normalise import NormaliseConfig, Normaliser
from lowrank_speech.lang.tokens import BOUNDARY

VOCABULARY, PIECES, SETTINGS = "vocab.json", "tokenizer.json", "tokenizer_config.json"
NAMES = {"pad_token": ("<pad>", "[PAD]", "<blk>"), "unk_token": ("<unk>", "[UNK]", "\ufffd")}
"""Usual names of the blank and of the unknown symbol, if no file says them."""
SILENT = ("<s>", "</s>", "[CLS]", "[SEP]", "<mask>", "[MASK]")


class FolderTokens:
    """A token set with the interface of ``lang.tokens``; symbol 0 is the blank, special symbols write nothing."""

    blank = 0

    def __init__(self, symbols: Sequence[str], unk: int, pieces: bool):
        self.symbols, self.unk, self.size = list(symbols), unk, len(symbols)
        self.first_special, self.special, self.language_ids = self.size, {}, {}
        self._ids = {symbol: i for i, symbol in reversed(list(enumerate(symbols))) if symbol and i not in (0, unk)}
        self._space = PIECE_SPACE if pieces else BOUNDARY
        self._spelled = spellings(SimpleNamespace(kind="sentencepiece" if pieces else "char", tokens=self))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; unknown symbols and broken characters become U+FFFD."""
        text = b"".join(self._spelled[i] for i in ids).decode(errors="replace")
        return " ".join(text.split())

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Ids of ``text``: the longest symbols that fit, from the left. ``language`` is not used."""
        longest = max(map(len, self._ids), default=1)
        words = self._space.join(text.split())
        written = self._space + words if self._space == PIECE_SPACE else words
        found, place = [], 0
        while place < len(written):
            sizes = range(min(longest, len(written) - place), 0, -1)
            size = next((n for n in sizes if written[place : place + n] in self._ids), 0)
            found.append(self._ids[written[place : place + size]] if size else self.unk)
            place += size or 1
        return found

    def unseen(self, text: str) -> set[str]:
        """The characters of ``text`` that the set cannot represent."""
        known = {character for symbol in self._ids for character in symbol}
        return {character for character in text if not character.isspace() and character not in known}

    def prompt(self, language: str | None) -> list[int]:
        raise UserError("a token set for CTC has no prompt")


def folder_lang(folder: Path, size: int, sha256: str | None) -> tuple[Lang, list[int]]:
    """The token set in ``folder`` for ``size`` outputs, and the order of these outputs: old numbers, the blank first.

    ``sha256``: identifies the meaning of the model's outputs. UserError: there is no tokenizer, or it does not fit.
    """
    settings = _json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    kind = str(settings.get("tokenizer_class", ""))
    pieces = (folder / PIECES).is_file() and ("Wav2Vec2" not in kind or not (folder / VOCABULARY).is_file())
    if not pieces and not (folder / VOCABULARY).is_file():
        raise UserError(
            f"{folder} has no tokenizer ({VOCABULARY} or {PIECES}), so the outputs of the model have no text; copy it "
            f"from the folder of the trained model, or name the system of the experiment: exp/mine:base/task/method"
        )
    ids = _pieces(folder / PIECES) if pieces else _vocabulary(folder, settings)
    names = {key: _named(settings, key, ids) for key in NAMES}
    if names["pad_token"] is None:
        raise UserError(f"{folder}: its tokenizer has no padding token, which is the blank of CTC; add pad_token")
    symbols = [""] * size
    for symbol, number in ids.items():
        if number < size:
            symbols[number] = symbol
        elif symbol not in SILENT and not _special(settings, symbol):
            raise UserError(
                f"{folder}: its tokenizer has {max(ids.values()) + 1} tokens, but the model has {size} outputs; use "
                f"the tokenizer files of this model"
            )
    blank = ids[names["pad_token"]]
    unk = ids.get(names["unk_token"], -1) if names["unk_token"] is not None else -1
    if blank >= size:
        raise UserError(
            f"{folder}: the blank is token {blank}, but the model has {size} outputs; use its own tokenizer"
        )
    written = [
        "" if symbol in SILENT or i == blank or _special(settings, symbol) else _written(symbol, settings, kind)
        for i, symbol in enumerate(symbols)
    ]
    order = [blank, *(i for i in range(size) if i != blank)]
    tokens = FolderTokens([written[i] for i in order], order.index(unk) if 0 <= unk < size else -1, pieces)
    normaliser = Normaliser(NormaliseConfig(case=_case(written)))
    return Lang("sentencepiece" if pieces else "char", tokens, (), normaliser, sha256), order


def _vocabulary(folder: Path, settings: dict[str, Any]) -> dict[str, int]:
    """Symbol -> number, from vocab.json and added_tokens.json."""
    file = folder / VOCABULARY
    ids = _json(file)
    if any(isinstance(value, dict) for value in ids.values()):  # MMS: one vocabulary for each language
        language = settings.get("target_lang")
        if language not in ids:
            raise UserError(
                f"{file} has several vocabularies; set target_lang in {SETTINGS} to one of: {', '.join(ids)}"
            )
        ids = ids[language]
    if (folder / "added_tokens.json").is_file():
        ids = _json(folder / "added_tokens.json") | ids
    if not all(isinstance(number, int) and number >= 0 for number in ids.values()):
        raise UserError(f"{file} is not a table of symbols and numbers; use the tokenizer files of this model")
    return ids


def _pieces(file: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file)).get_vocab()
    except Exception as error:  # the tokenizers library raises plain exceptions
        raise UserError(f"{file} is broken ({error}); use the tokenizer files of this model") from error


def _written(symbol: str, settings: dict[str, Any], kind: str) -> str:
    if symbol == _content(settings.get("word_delimiter_token", BOUNDARY)):
        return BOUNDARY
    if settings.get("do_lower_case"):
        symbol = symbol.lower()
    return f" {symbol}" if "Phoneme" in kind else symbol


def _named(settings: dict[str, Any], key: str, ids: dict[str, int]) -> str | None:
    said = _content(settings.get(key))
    return said if said in ids else next((name for name in NAMES[key] if name in ids), None)


def _special(settings: dict[str, Any], symbol: str) -> bool:
    return bool(symbol) and symbol in (_content(settings.get(key)) for key in ("bos_token", "eos_token"))


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _case(symbols: Sequence[str]) -> str:
    """The case of the letters of a token set."""
    letters = [character for symbol in symbols for character in symbol if character.lower() != character.upper()]
    if letters and all(character == character.upper() for character in letters):
        return "upper"
    return "keep" if any(character != character.lower() for character in letters) else "lower"


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); use the tokenizer files of this model") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: expected a JSON mapping; use the tokenizer files of this model")
    return found
