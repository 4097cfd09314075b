"""Stage graph: a token set, a lexicon and an n-gram -> a graph that CTC decoders search.

inputs   --lang      token set (stage lang)
         --lm        hg, hlg: n-gram (stage lm)
outputs  --out       folder with
           HLG.fst           or H.fst, HL.fst, HG.fst: the graph, a constant OpenFst transducer
           G.fst             hg, hlg: the n-gram
           tokens.txt        symbol table of the inputs: token ids plus one
           words.txt         hl, hlg: symbol table of the outputs
           lexicon.txt       hl, hlg: the pronunciations in use, in Kaldi's format
           missing_words.txt hl, hlg: words of the vocabulary without a pronunciation, with the reason
           not_in_lm.txt     hlg: words of the transcripts or of the dictionary without a unigram, which cannot be heard
         --manifest  graph.json in that folder; `Graph.load` reads it

graph    h     any token sequence: its best path is the greedy one
         hl    any sequence of the lexicon's words: those of the training transcripts, or of a dictionary
         hg    an n-gram over tokens or characters
         hlg   an n-gram over words, which the lexicon spells

kaldifst and kaldilm build the graph; k2 searches the same one. Systems with another token set refuse it.

python -m lowrank_speech.stages.graph --cfg '{"graph":"hlg","lm":"words3"}' --lang exp/lang/chars --lm exp/lm/words3
    --out exp/graph/chars/hlg --manifest exp/graph/chars/hlg/graph.json
"""

import argparse
import importlib.metadata
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import atomic, write_text
from lowrank_speech.errors import UserError
from lowrank_speech.lang import lexicon as lexicons
from lowrank_speech.lang.graphs import build, fst
from lowrank_speech.lang.graphs.load import (
    BACKOFF,
    BOS,
    EOS,
    GRAMMAR,
    LEXICON,
    MANIFEST,
    TOKENS,
    WORDS,
    names_in,
    table,
)
from lowrank_speech.lang.graphs.settings import KINDS, WITH_LEXICON, WITH_LM, GraphSettings
from lowrank_speech.lang.lexicon import Lexicon
from lowrank_speech.lang.load import Lang
from lowrank_speech.settings import settings
from lowrank_speech.stages import common

log = logging.getLogger(__name__)

MISSING, NOT_IN_LM = "missing_words.txt", "not_in_lm.txt"
SHOWN = 5
"""Number of words in a warning."""


@settings
class Config(GraphSettings):
    """The stage's slice."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lang", required=True, type=Path, help="folder of the stage lang")
    parser.add_argument("--lm", type=Path, help="hg, hlg: folder of the stage lm")
    parser.add_argument("--out", required=True, type=Path, help="output: the folder")


def body(run: common.Run) -> None:
    arguments, config = run.arguments, run.config
    if arguments.manifest.resolve() != (arguments.out / MANIFEST).resolve():
        raise UserError(f"--manifest: it must be {arguments.out / MANIFEST}, got {arguments.manifest}")
    lang = Lang.load(common.existing(arguments.lang, "--lang"))
    if lang.tokens is None:
        raise UserError(f"graph: {arguments.lang} is Whisper's own tokenizer; graphs need a token set for CTC")
    maker = _Maker(config, lang, arguments)
    maker.make()
    if config.graph in WITH_LEXICON:
        log.info("graph: %d words, %d pronunciations", maker.metrics["words"], maker.metrics["pronunciations"])
    log.info("graph: %s with %d states and %d arcs", config.graph, maker.metrics["states"], maker.metrics["arcs"])
    _remove_others(arguments.out, maker.outputs)
    sources = {} if config.lexicon is None else {"lexicon": config.lexicon}
    builders = {name: importlib.metadata.version(name) for name in ("kaldifst", "kaldilm")}
    run.finish(maker.outputs, maker.metrics, {"builders": builders}, sources=sources)


def _remove_others(out: Path, outputs: Iterable[Path]) -> None:
    """Remove what an earlier run with other settings made here."""
    kinds = (f"{kind.upper()}.fst" for kind in KINDS)
    for name in (*kinds, GRAMMAR, WORDS, LEXICON, MISSING, NOT_IN_LM):
        if out / name not in set(outputs):
            (out / name).unlink(missing_ok=True)


class _Maker:
    """Makes a graph and collects what the manifest has."""

    def __init__(self, config: Config, lang: Lang, arguments: argparse.Namespace):
        self.config, self.lang, self.out, self.arguments = config, lang, arguments.out, arguments
        self.outputs: list[Path] = []
        self.metrics: dict[str, Any] = {"graph": config.graph, "lang_sha256": lang.sha256}
        self.lm = self._language_model()

    def _language_model(self) -> Any:
        kind, folder = self.config.graph, self.arguments.lm
        if kind not in WITH_LM:
            if folder is not None:
                raise UserError(f"graph: {kind} has no n-gram, but --lm is {folder}; remove it")
            return None
        if folder is None:
            raise UserError(f"graph: {kind} needs an n-gram; give the folder of the stage lm as --lm")
        from lowrank_speech.lang.lm.load import LanguageModel

        lm = LanguageModel.load(common.existing(folder, "--lm"))
        lm.check_lang(self.lang, "graph")
        if lm.arpa is None:
            raise UserError(
                f"graph: {folder} is a KenLM binary, which kaldilm cannot read; give the model as an ARPA file"
            )
        if (lm.unit == "word") != (kind == "hlg"):
            fit = "words; choose graph: hlg" if lm.unit == "word" else f"{lm.unit}s; choose graph: hg"
            raise UserError(f"graph: {kind} does not fit the model in {folder}, which is over {fit}, or another model")
        self.metrics |= {"lm": {"unit": lm.unit, "order": lm.order, "sha256": lm.sha256}}
        return lm

    def make(self) -> None:
        """Build the graph and write everything but the manifest."""
        tokens, kind = self.lang.tokens, self.config.graph
        self._write(TOKENS, table(tokens.symbols))
        if kind == "h":
            found = build.topology(tokens.size)
        elif kind == "hg":
            grammar = build.grammar(self.lm.arpa, names_in(self.lm.unit, tokens.symbols, tokens.unk))
            if not (grammar.arcs["olabel"] > 0).any():
                raise UserError(f"graph: {self.lm.arpa} has no unigram of any token; give a model over the tokens")
            self._write_fst(GRAMMAR, grammar)
            found = build.compose_topology(tokens.size, build.without_marks(grammar, tokens.size))
        else:
            lexicon, grammar = self._lexicon(), None
            if self.lm is not None:
                grammar = build.grammar(self.lm.arpa, lexicon.words)
                self._write_fst(GRAMMAR, grammar)
            found = build.compose_topology(tokens.size, build.compose_lexicon(lexicon, tokens.size, grammar))
        if not len(found.arcs):
            raise UserError(f"graph: {kind} is empty: the n-gram accepts no sentence of the lexicon; check --lm")
        self._write_fst(f"{kind.upper()}.fst", found)
        self.metrics |= {"states": found.states, "arcs": len(found.arcs)}

    def _lexicon(self) -> Lexicon:
        """The pronunciations of the vocabulary; lists what is missing."""
        tokens, path = self.lang.tokens, self.config.lexicon
        vocabulary = set(self._transcribed())
        if path is None:
            words = vocabulary if self.lm is None else vocabulary.union(self.lm.vocabulary)
            whole, reasons = lexicons.spelled(words, tokens)
        else:
            whole, reasons = lexicons.read(path, tokens), {}
        used, unknown = whole, []
        if self.lm is not None:
            vocabulary = set(self.lm.vocabulary)
            used = whole.only(vocabulary)
            unknown = [word for word in whole.words if word not in vocabulary]
            self._list(NOT_IN_LM, dict.fromkeys(unknown, "no unigram"), "have no unigram, so they cannot be recognised")
        pronounced = set(whole.words)
        missing = {
            word: reasons.get(word, lexicons.NOT_LISTED)
            for word in lexicons.real_words(vocabulary)
            if word not in pronounced
        }
        self._list(MISSING, missing, "have no pronunciation, so they cannot be recognised")
        if not used.words:
            source = "the transcripts" if self.lm is None else f"the n-gram in {self.arguments.lm}"
            what = "the token set can spell" if path is None else f"{path} pronounces"
            raise UserError(
                f"graph: {source} and the lexicon have no word in common ({what} none of {len(missing)} words of the "
                f"vocabulary; {len(unknown)} words of the lexicon have no unigram); check case and normalisation"
            )
        self._write(WORDS, table(used.words, BACKOFF, BOS, EOS))
        rows = (" ".join([e.word, *(tokens.symbols[i] for i in e.tokens)]) + "\n" for e in used.entries)
        self._write(LEXICON, "".join(rows))
        self.metrics |= {"words": len(used.words), "pronunciations": len(used.entries)}
        self.metrics |= {"missing_words": len(missing), "words_not_in_lm": len(unknown)}
        return used

    def _transcribed(self) -> list[str]:
        """The words of the training transcripts."""
        path = self.arguments.lang / "words.txt"
        if not path.is_file():
            raise UserError(f"{path} does not exist; run the stage lang again")
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return [word for line in lines if (word := line.rpartition(" ")[0])]

    def _list(self, name: str, words: Mapping[str, str], said: str) -> None:
        self._write(name, "".join(f"{word}\t{why}\n" for word, why in sorted(words.items())))
        if words:
            shown = ", ".join(sorted(words)[:SHOWN]) + (", ..." if len(words) > SHOWN else "")
            log.warning("graph: %d words %s (%s); see %s", len(words), said, shown, self.out / name)

    def _write(self, name: str, text: str) -> None:
        write_text(self.out / name, text)
        self.outputs.append(self.out / name)

    def _write_fst(self, name: str, found: fst.Arcs) -> None:
        with atomic(self.out / name) as temporary:
            temporary.write_bytes(fst.to_bytes(found))
        self.outputs.append(self.out / name)


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("graph", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
