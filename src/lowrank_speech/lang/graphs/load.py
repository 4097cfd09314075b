"""Load the folder of the stage graph: ``Graph.load(folder)``.

    H.fst, HL.fst, HG.fst or HLG.fst   the graph, a constant OpenFst transducer; labels as in ``lang.graphs.build``
    G.fst           hg, hlg: the n-gram, likewise
    tokens.txt      symbol table of the input labels: <eps> is 0, then the tokens, numbered from 1
    words.txt       hl, hlg: symbol table of the output labels
    lexicon.txt     hl, hlg: the pronunciations in use, in Kaldi's format
    graph.json      the manifest; its metrics identify the token set
"""

import functools
from dataclasses import dataclass
from pathlib import Path

from lowrank_speech.artefact import read_manifest, sha256
from lowrank_speech.errors import UserError
from lowrank_speech.lang.graphs import fst
from lowrank_speech.lang.graphs.fst import Arcs

MANIFEST, TOKENS, WORDS, LEXICON, GRAMMAR = "graph.json", "tokens.txt", "words.txt", "lexicon.txt", "G.fst"


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
            symbols = _symbols(folder / WORDS) if kind in ("hl", "hlg") else tokens
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} or a file beside it is not valid ({error}); run the stage graph again") from error
        return cls(folder, kind, digest, symbols, tokens)

    @property
    def over_words(self) -> bool:
        """Whether the outputs are words; otherwise they are tokens."""
        return self.kind in ("hl", "hlg")

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
                f"{self.folder} was made for another token table (lang_sha256 {self.lang_sha256[:12]}..., the system has "
                f"{str(lang_sha256)[:12]}...); make the graph with the lang folder of the system"
            )

    def _read(self, name: str) -> Arcs:
        try:
            return fst.read(self.folder / name)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder / name} cannot be read ({error}); run the stage graph again") from error


def table(symbols: tuple[str, ...] | list[str], *more: str) -> str:
    """A symbol table with <eps> as 0, ``symbols`` from 1 on, then ``more``."""
    return "".join(f"{symbol} {i}\n" for i, symbol in enumerate(["<eps>", *symbols, *more]))


def _symbols(path: Path) -> tuple[str, ...]:
    """The symbols of a table, without <eps> and the symbols of an n-gram."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    found = [line.rpartition(" ")[0] for line in lines]
    return tuple(found[1 : found.index("#0")] if "#0" in found else found[1:])
