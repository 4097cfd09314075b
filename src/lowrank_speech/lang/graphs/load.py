"""Load the folder of the stage graph: ``Graph.load(folder)``.

H.fst, HL.fst, HG.fst or HLG.fst   the graph, a constant OpenFst transducer; labels as in ``lang.graphs.build``
G.fst           hg, hlg: the n-gram, likewise
tokens.txt      symbol table of the input labels: <eps> is 0, then the tokens, numbered from 1
words.txt       hl, hlg: symbol table of the output labels
lexicon.txt     hl, hlg: the pronunciations in use, in Kaldi's format
graph.json      the manifest; its metrics identify the token set
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank_speech.artefact import read_manifest, sha256
from lowrank_speech.errors import UserError
from lowrank_speech.lang.graphs import fst
from lowrank_speech.lang.graphs.fst import Arcs
from lowrank_speech.lang.tokens import BOUNDARY, UNK

MANIFEST, TOKENS, WORDS, LEXICON, GRAMMAR = "graph.json", "tokens.txt", "words.txt", "lexicon.txt", "G.fst"
BACKOFF, BOS, EOS = "#0", "<s>", "</s>"
"""Symbols of an n-gram in a symbol table, after the words."""


@dataclass(frozen=True)
class Graph:
    """A graph, and what its labels mean.

    kind         h, hl, hg, hlg
    lang_sha256  identifies the token set, see ``lang.load.Lang``
    symbols      output symbols, numbered from 1: words (hl, hlg) or tokens (h, hg)
    tokens       tokens in the order of their ids
    """

    folder: Path
    kind: str
    lang_sha256: str
    symbols: tuple[str, ...]
    tokens: tuple[str, ...]

    @classmethod
    def load(cls, folder: str | Path) -> "Graph":
        """Read the folder. UserError: the stage graph did not make it, or a file has changed since then."""
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(f"{folder} has no {MANIFEST}; give a folder that the stage graph made")
        try:
            record = read_manifest(path, "graph")
            kind, digest = record["metrics"]["graph"], record["metrics"]["lang_sha256"]
            for name, facts in record["outputs"].items():
                if sha256(folder / name) != facts["sha256"]:
                    raise ValueError(f"{name} has changed since the stage wrote it")
            tokens = _symbols(folder / TOKENS)
            words = _symbols(folder / WORDS) if kind in ("hl", "hlg") else None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} or a file beside it is not valid ({error}); run the stage graph again") from error
        return cls(folder, kind, digest, tokens if words is None else words[: words.index(BACKOFF)], tokens)

    @property
    def over_words(self) -> bool:
        """Whether the outputs are words; otherwise they are tokens."""
        return self.kind in ("hl", "hlg")

    def names(self, unit: str) -> tuple[str, ...]:
        """What a model over ``unit`` calls the symbols. UserError: it does not fit the graph."""
        if self.over_words and unit == "word":
            return self.symbols
        if self.over_words:
            raise UserError(f"a model over {unit}s does not fit a graph over words; choose one with unit: word")
        return names_in(unit, self.tokens, self.tokens.index(UNK))

    @functools.cached_property
    def arcs(self) -> Arcs:
        """The graph."""
        return self._read(f"{self.kind.upper()}.fst")

    @functools.cached_property
    def grammar(self) -> Arcs | None:
        """The n-gram in the graph, with back-off arcs; None: the graph has none."""
        return self._read(GRAMMAR) if self.kind in ("hg", "hlg") else None

    @functools.cached_property
    def pronunciations(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Word -> its token sequences (ids)."""
        ids = {symbol: i for i, symbol in enumerate(self.tokens)}
        found: dict[str, list[tuple[int, ...]]] = {}
        for line in (self.folder / LEXICON).read_text(encoding="utf-8").splitlines():
            word, *symbols = line.split(" ")
            found.setdefault(word, []).append(tuple(ids[symbol] for symbol in symbols))
        return {word: tuple(sequences) for word, sequences in found.items()}

    def require(self, lang_sha256: str | None) -> None:
        """Raise UserError unless the graph was made for the token set ``lang_sha256``."""
        if lang_sha256 != self.lang_sha256:
            raise UserError(
                f"{self.folder} was made for another token table (lang_sha256 {self.lang_sha256[:12]}..., the system "
                f"has {str(lang_sha256)[:12]}...); make the graph with the lang folder of the system"
            )

    def _read(self, name: str) -> Arcs:
        try:
            return fst.read(self.folder / name)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder / name} cannot be read ({error}); run the stage graph again") from error


def table(symbols: Sequence[str], *more: str) -> str:
    """A symbol table with <eps> as 0, ``symbols`` from 1 on, then ``more``."""
    return "".join(f"{symbol} {i}\n" for i, symbol in enumerate(["<eps>", *symbols, *more]))


def _symbols(path: Path) -> tuple[str, ...]:
    """The symbols of a table, without <eps>."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return tuple(line.rpartition(" ")[0] for line in lines)[1:]


def names_in(unit: str, symbols: Sequence[str], unk: int) -> tuple[str, ...]:
    """What an n-gram over ``unit`` (token, character) calls the tokens ``symbols``; ``unk``: id of <unk>.

    UserError: an n-gram over words, or over characters with a token set of pieces.
    """
    if unit == "token":
        from lowrank_speech.lang.lm.units import token_symbol

        return tuple(token_symbol(i, unk) for i in range(len(symbols)))
    pieces = BOUNDARY not in symbols[:3]
    if unit != "character" or pieces:
        raise UserError(
            f"a model over {unit}s does not fit a graph over {'pieces' if pieces else 'characters'}; choose one with "
            f"unit: token"
        )
    return tuple(symbols)
