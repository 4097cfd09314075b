"""Token sets: normalised text <-> ids, for CTC and for the decoder of a Whisper from scratch.

Characters and pieces are numbered in the same way, so one set fits both kinds of models:

    0                <blk>   the CTC blank; never in a transcript
    1                <unk>   text that the set cannot represent
    2 ... V - 1      characters (first |, the word boundary, then the others sorted by code point), or pieces
    only in sets for seq2seq, in the order of Whisper's tokenizer (no symbol may follow <|notimestamps|>, because
    transformers expects the time stamps there; the end of text is also the padding):
    V, V + 1         <|endoftext|> <|startoftranscript|>
    V + 2 ...        <|de|> <|en|> ...   one per language, sorted
    the last two     <|transcribe|> <|notimestamps|>

tokens.txt has a line ``symbol id`` for each symbol, as in Kaldi and icefall. pieces.model is a sentencepiece model with
the ids 0 and 1 for <blk> and <unk>. It does not contain the special symbols, which follow its pieces.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from lowrank_speech.errors import UserError
from lowrank_speech.lang.normalise import UNKNOWN

BLANK, UNK, BOUNDARY = "<blk>", "<unk>", "|"
EOT, SOT, TRANSCRIBE, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>"


class Tokens(Protocol):
    """Interface of a token set. ``size`` counts all ids, including blank and special symbols."""

    size: int
    blank: int
    unk: int
    symbols: list[str]
    language_ids: dict[str, int]

    def encode(self, text: str, language: str | None = None) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def unseen(self, text: str) -> set[str]: ...
    def prompt(self, language: str | None) -> list[int]: ...


def special_symbols(languages: Iterable[str]) -> list[str]:
    """The symbols that follow the characters or pieces in a set for seq2seq. ValueError: not a language code."""
    languages = sorted(set(languages))
    for language in languages:
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", language) or f"<|{language}|>" in (EOT, TRANSCRIBE):
            raise ValueError(f"{language!r} is not a language code; use one such as en or pt-BR")
    return [EOT, SOT, *(f"<|{language}|>" for language in languages), TRANSCRIBE, NO_TIMESTAMPS]


class _Table:
    """Symbols in the order of their ids, and access to the special symbols."""

    blank = 0

    def __init__(self, symbols: Sequence[str]):
        self.symbols = list(symbols)
        self.size = len(self.symbols)
        self.ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        self.unk = self.ids[UNK]
        # The special symbols come last, if there are any.
        self.first_special = self.ids.get(EOT, self.size)
        between = self.symbols[self.first_special + 2 : -2]
        self.language_ids = {symbol[2:-2]: self.ids[symbol] for symbol in between}

    @property
    def special(self) -> dict[str, int]:
        """Special symbols of a set for seq2seq, with their ids; empty for CTC."""
        return {symbol: i for symbol, i in self.ids.items() if i >= self.first_special}

    def _special(self, symbol: str) -> int:
        if symbol not in self.ids:
            raise UserError(
                f"the token set has no {symbol}, because it was made for CTC; a Whisper from scratch needs one with "
                f"`for: seq2seq`"
            )
        return self.ids[symbol]

    @property
    def eot(self) -> int:
        """End of text; also the padding of a Whisper from scratch."""
        return self._special(EOT)

    @property
    def sot(self) -> int:
        """Start of transcript, the first symbol of every prompt."""
        return self._special(SOT)

    @property
    def transcribe(self) -> int:
        return self._special(TRANSCRIBE)

    @property
    def no_timestamps(self) -> int:
        return self._special(NO_TIMESTAMPS)

    def prompt(self, language: str | None) -> list[int]:
        """The four ids before a transcript in ``language``: start, language, transcribe, no time stamps."""
        start = self.sot
        if language not in self.language_ids:
            raise UserError(
                f"the token set does not have the language {language!r}; expected one of: "
                f"{', '.join(self.language_ids)}; make the token set from transcripts in that language too, or remove "
                f"these utterances"
            )
        return [start, self.language_ids[language], self.transcribe, self.no_timestamps]

    def _written(self, ids: Iterable[int]) -> list[int]:
        """``ids`` without blank and special symbols. ValueError for an id outside the set."""
        ids = list(ids)
        wrong = next((i for i in ids if not 0 <= i < self.size), None)
        if wrong is not None:
            raise ValueError(f"token id {wrong} is not in the token set; expected 0 to {self.size - 1}")
        return [i for i in ids if i != self.blank and i < self.first_special]


class CharTokens(_Table):
    """Characters (code points of NFC text); ``|`` separates words."""

    def __init__(self, symbols: Sequence[str]):
        super().__init__(symbols)
        known = symbols[: self.first_special]
        self._ids = {symbol: i for i, symbol in enumerate(known) if len(symbol) == 1 and symbol != BOUNDARY}
        self._boundary = self.ids[BOUNDARY]

    @classmethod
    def build(cls, characters: Iterable[str], languages: Iterable[str] | None = None) -> "CharTokens":
        """Build a set from ``characters``, for seq2seq if ``languages`` (codes) are given."""
        special = [] if languages is None else special_symbols(languages)
        characters = sorted(c for c in set(characters) if not c.isspace() and c != BOUNDARY)
        return cls([BLANK, UNK, BOUNDARY, *characters, *special])

    @classmethod
    def load(cls, path: str | Path) -> "CharTokens":
        """Read tokens.txt. UserError: the file is not valid; names the line."""
        return cls(_read_symbols(Path(path)))

    def table(self) -> str:
        """Contents of tokens.txt."""
        return "".join(f"{symbol} {i}\n" for i, symbol in enumerate(self.symbols))

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Ids of ``text``. Unknown characters become <unk>. ``language`` is not used."""
        unk, result = self.unk, []
        for n, word in enumerate(text.split()):
            if n:
                result.append(self._boundary)
            result += [self._ids.get(character, unk) for character in word]
        return result

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special symbols; <unk> becomes U+FFFD."""
        text = "".join(UNKNOWN if i == self.unk else self.symbols[i] for i in self._written(ids))
        return " ".join(text.replace(BOUNDARY, " ").split())

    def unseen(self, text: str) -> set[str]:
        """The characters of ``text`` that the set cannot represent."""
        return {character for character in text if not character.isspace() and character not in self._ids}


class PieceTokens(_Table):
    """Pieces of a sentencepiece model (made by ``pieces.train_pieces``: its ids 0 and 1 are <blk> and <unk>)."""

    def __init__(self, model: bytes, languages: Iterable[str] | None = None, where: str = "sentencepiece model"):
        """``languages``: language codes for seq2seq; None for CTC. UserError: the model lacks <blk> or <unk>."""
        from sentencepiece import SentencePieceProcessor

        try:
            self._model = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"{where}: not a sentencepiece model: {error}") from error
        pieces = [self._model.id_to_piece(i) for i in range(self._model.vocab_size())]
        if pieces[:2] != [BLANK, UNK] or self._model.unk_id() != 1 or not self._model.is_control(0):
            raise UserError(
                f"{where}: ids 0 and 1 are {pieces[:2]}; expected {BLANK} and {UNK}; train it with the stage lang"
            )
        super().__init__([*pieces, *([] if languages is None else special_symbols(languages))])
        self.falls_back = any(self._model.is_byte(i) for i in range(len(pieces)))
        self._characters = {p for i, p in enumerate(pieces) if len(p) == 1 and not self._model.is_control(i)}

    @classmethod
    def load(cls, path: str | Path, languages: Iterable[str] | None = None) -> "PieceTokens":
        """Read pieces.model."""
        return cls(Path(path).read_bytes(), languages, where=str(path))

    @property
    def scored(self) -> list[tuple[str, float]]:
        """Pieces with their log probabilities (BPE: negative rank of the merge), in the order of their ids."""
        return [(self.symbols[i], self._model.get_score(i)) for i in range(self.first_special)]

    def table(self) -> str:
        """Piece and log probability on each line, as in sentencepiece's .vocab file; only for people to read."""
        return "".join(f"{piece}\t{score:g}\n" for piece, score in self.scored)

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Ids of the most probable pieces of ``text``. A run of unknown characters becomes one <unk>."""
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids`` without special symbols; <unk> becomes U+FFFD, as do bytes that are not UTF-8."""
        return " ".join(self._model.decode(self._written(ids)).split())  # the model's unk_surface is U+FFFD

    def unseen(self, text: str) -> set[str]:
        """The characters of ``text`` that the set cannot represent; none if it falls back to bytes."""
        if self.falls_back:
            return set()
        return {character for character in text if not character.isspace() and character not in self._characters}


def _read_symbols(path: Path) -> list[str]:
    """Read the symbols of a table ``symbol id``, in the order of their ids, 0 to N - 1."""
    found, seen = {}, set()
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; make the token set again") from error
    # Not splitlines(), because a symbol may be a character that Python takes for a line end.
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        symbol, _, index = line.rpartition(" ")
        if not symbol or not index.isdecimal():
            raise UserError(f"{path}, line {number}: expected `symbol id`, found {line!r}")
        if len(symbol) > 1 and not re.fullmatch("<.+>", symbol):
            raise UserError(f"{path}, line {number}: {symbol!r} is neither one character nor a special symbol <...>")
        if int(index) in found or symbol in seen:
            raise UserError(f"{path}, line {number}: the symbol {symbol!r} or the id {index} occurs twice")
        found[int(index)] = symbol
        seen.add(symbol)
    symbols = [found.get(i, "") for i in range(len(found))]
    for i, symbol in ((0, BLANK), (1, UNK), (2, BOUNDARY)):
        if symbols[i : i + 1] != [symbol]:
            raise UserError(f"{path}: the id {i} must be {symbol}")
    if "" in symbols:
        raise UserError(f"{path}: no symbol has the id {symbols.index('')}; ids must run from 0 without gaps")
    return symbols
