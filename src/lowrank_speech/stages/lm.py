"""Stage lm: training transcripts and further text -> an n-gram language model for decoding.

inputs   --lang      folder of the stage lang, whose normaliser (and, for unit: token, token set) the model is for
         --cuts      cuts of training splits, .jsonl.gz or .jsonl (stage corpus): their transcripts are read
         --dev-cuts  cuts of a dev split: perplexity and unknown words are measured on their transcripts
         the files that `text` or `arpa` name
outputs  --out       folder with
           lm.arpa        the model as text; from `arpa` if that is an ARPA file
           lm.bin         instead of it: a copy of the KenLM binary that `arpa` names
           words.txt      `word count` lines, sorted: the vocabulary, with counts in the text; of `arpa`: only words
           set_aside.tsv  utterances and lines of text without usable text
         --manifest  lm.json in that folder; `LanguageModel.load` reads it

unit     word        the words of the normalised text
         token       the ids of the token set as decimal numbers, such as 17; <unk> for its <unk>
         character   characters, with | between words

The model is an interpolated modified Kneser-Ney model with the counts, discounts and pruning of KenLM's lmplz
(lang/lm/estimate.py). Equal text and settings give equal files, byte for byte.

python -m lowrank_speech.stages.lm --cfg '{"lm":{"unit":"word","order":3,"prune":[0,0,1]}}' --lang exp/lang/chars
    --cuts exp/corpus/babel/train.jsonl.gz --dev-cuts exp/corpus/babel/dev.jsonl.gz --out exp/lm/words3
    --manifest exp/lm/words3/lm.json
"""

import argparse
import gzip
import itertools
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank_speech import settings
from lowrank_speech.artefact import atomic, write_table, write_text
from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm import arpa, kenlm_file
from lowrank_speech.lang.lm.config import DEFAULT_ORDER, LmSettings
from lowrank_speech.lang.lm.estimate import Corpus, estimate
from lowrank_speech.lang.lm.load import ARPA, BINARY, MANIFEST, WORDS
from lowrank_speech.lang.lm.ngrams import SPECIAL, UNK
from lowrank_speech.lang.lm.query import NEEDS_KENLM, KenlmScorer, OwnScorer, Scorer, has_kenlm, perplexity
from lowrank_speech.lang.lm.text import lines
from lowrank_speech.lang.lm.units import check_words, splitter
from lowrank_speech.lang.load import Lang, unusable
from lowrank_speech.lang.tags import shown
from lowrank_speech.settings import key
from lowrank_speech.stages import common
from lowrank_speech.stages.lang import Transcripts

log = logging.getLogger("lowrank_speech")

SET_ASIDE = "set_aside.tsv"


@settings.settings
class Config:
    """The stage's slice."""

    lm: LmSettings = key(
        None,
        "a section of `lms` without lang, corpora, splits and dev, which come as files",
        default_factory=LmSettings,
    )


def add(parser: argparse.ArgumentParser) -> None:
    """Inputs and outputs."""
    parser.add_argument("--lang", required=True, type=Path, metavar="DIR", help="input: folder of the stage lang")
    parser.add_argument("--cuts", nargs="*", default=[], type=Path, metavar="FILE", help="input: cuts of the training")
    parser.add_argument("--dev-cuts", type=Path, metavar="FILE", help="input: cuts to measure the perplexity on")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="output: the folder")


def body(run: common.Run) -> None:
    """Estimate or copy, measure, write."""
    arguments, given = run.arguments, run.config.lm
    if arguments.manifest.resolve() != (arguments.out / MANIFEST).resolve():
        raise UserError(f"--manifest: it must be {arguments.out / MANIFEST}, got {arguments.manifest}")
    if given.arpa is not None and arguments.cuts:
        raise UserError(f"--cuts: the model {given.arpa} is taken as it is; give no cuts, or remove arpa")
    lang = Lang.load(arguments.lang)
    if given.unit == "token":
        splitter("token", lang)  # refuses kind whisper before anything is read
    sources = {f"text/{number}": Path(path) for number, path in enumerate(given.text)}
    if given.arpa is None:
        scorer, outputs, numbers = _estimated(arguments, given, lang)
    else:
        sources["arpa"] = Path(given.arpa)
        scorer, outputs, numbers = _taken(arguments.out, given, lang)
    dev = None if arguments.dev_cuts is None else _dev(arguments.dev_cuts, given.unit, lang, scorer)
    _report(given.unit, numbers, dev)
    for name in {ARPA, BINARY, SET_ASIDE} - {path.name for path in outputs}:
        (arguments.out / name).unlink(missing_ok=True)  # of an earlier run
    of_lang = lang.sha256 if given.unit == "token" else None
    run.finish(outputs, {"unit": given.unit, **numbers, "dev": dev, "lang_sha256": of_lang}, sources=sources)


# -- an own model ------------------------------------------------------------------------------------------------------


def _estimated(
    arguments: argparse.Namespace, given: LmSettings, lang: Lang
) -> tuple[Scorer, list[Path], dict[str, Any]]:
    """Estimate a model; returns a scorer, the files and the metrics."""
    corpus, aside, numbers = _read(arguments.cuts, given, lang)
    if not corpus.sentences:
        where = ", ".join(map(str, [*arguments.cuts, *given.text])) or "no file: give --cuts or `text`"
        raise UserError(f"lm: no sentence is left to estimate a model from; read: {where}")
    order = given.order or DEFAULT_ORDER
    model, facts = estimate(corpus, order, given.prune)
    if facts["fallback"]:
        log.warning(
            "lm: the text is too small or too regular to compute the discounts of order %s; %s are used instead",
            ", ".join(map(str, facts["fallback"])),
            facts["discounts"][facts["fallback"][0] - 1],
        )
    if model.order < order:
        log.warning("lm: no n-gram of order %d is left; the model has order %d", model.order + 1, model.order)
    counts = corpus.counts()
    rows = ((word, counts.get(word, 0)) for word in model.words if word not in SPECIAL)
    files = [arguments.out / ARPA, arguments.out / WORDS, arguments.out / SET_ASIDE]
    arpa.write(model, files[0])
    write_text(files[1], "".join(f"{word} {count}\n" for word, count in rows))
    write_table(files[2], common.SET_ASIDE, sorted(aside))
    numbers |= {"order": model.order, "vocabulary": len(model.words) - len(SPECIAL), **facts}
    return OwnScorer(model), files, numbers


def _read(cuts: Sequence[Path], given: LmSettings, lang: Lang) -> tuple[Corpus, list[tuple[str, ...]], dict[str, Any]]:
    """The sentences of all cuts and files, what was set aside, and the metrics of both."""
    split, corpus, read = splitter(given.unit, lang), Corpus(), {"transcripts": 0, "lines": 0, "blank_lines": 0}
    transcripts = Transcripts(lang.normaliser)
    for path in dict.fromkeys(cuts):
        transcripts.read(path)
    for sentence, times in transcripts.sentences.items():
        corpus.add(split(sentence, None), times)
        read["transcripts"] += times
    aside, tags = list(transcripts.set_aside), transcripts.unknown_tags
    for name in dict.fromkeys(given.text):
        for number, line in lines(Path(name)):
            text = lang.normalise(line, given.language)
            if text:
                try:
                    corpus.add(split(text, given.language))
                except UserError as error:
                    raise UserError(f"{name}, line {number}: {error}") from error
                read["lines"] += 1
            elif not line.strip():
                read["blank_lines"] += 1
            else:
                reason = unusable(lang.normaliser, line, given.language)
                aside.append((f"{name}:{number}", str(reason), repr(line.strip())))
            tags.update(lang.normaliser.unknown_tags(line, given.language))
    if tags:
        log.warning(
            "lm: the text contains tags: %s; they count as words. Map or remove them with `normalise.tags` of the "
            "token set",
            shown(tags),
        )
    if aside:
        log.warning("lm: %d utterances or lines have no usable text; see %s", len(aside), SET_ASIDE)
    return corpus, aside, {**read, "words": corpus.words, "set_aside": len(aside)}


# -- another program's model -------------------------------------------------------------------------------------------


def _taken(out: Path, given: LmSettings, lang: Lang) -> tuple[Scorer, list[Path], dict[str, Any]]:
    """Check and copy a model; returns a scorer, the files and the metrics."""
    path = common.existing(given.arpa, "arpa")
    if not path.is_file():
        raise UserError(f"arpa: {path} is a folder; name a file")
    if kenlm_file.is_binary(path):
        found = kenlm_file.describe(path)
        words, order, counts = found.words, found.order, list(found.counts)
        if not has_kenlm():
            raise UserError(f"arpa: {NEEDS_KENLM.format(path=path)}")
        scorer: Scorer = KenlmScorer(path)
        model = _copied(path, out / BINARY)
    else:
        ngrams = arpa.read(path)
        words, order, counts = ngrams.words, ngrams.order, ngrams.counts
        scorer = OwnScorer(ngrams)
        model = _copied(path, out / ARPA)
    if given.order is not None and given.order != order:
        raise UserError(f"order is {given.order}, but the model {path} has order {order}; correct order, or remove it")
    if UNK not in words:
        log.warning("lm: %s has no %s: each unknown word gets the log10 probability -100", path, UNK)
    words = sorted(set(words) - set(SPECIAL))
    check_words(words, given.unit, lang, str(path))
    write_text(out / WORDS, "".join(f"{word}\n" for word in words))
    return scorer, [model, out / WORDS], {"order": order, "vocabulary": len(words), "ngrams": counts}


def _copied(path: Path, to: Path) -> Path:
    """Copy a model; ARPA files become plain text, which kaldilm needs."""
    with atomic(to) as temporary:
        if arpa.is_gzip(path):
            with gzip.open(path, "rb") as packed, temporary.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        else:
            shutil.copyfile(path, temporary)
    return to


# -- on dev ------------------------------------------------------------------------------------------------------------


def _dev(path: Path, unit: str, lang: Lang, scorer: Scorer) -> dict[str, Any]:
    """Perplexities and unknown words on the transcripts of ``path``."""
    transcripts = Transcripts(lang.normaliser)
    transcripts.read(path)
    transcripts.require([path])
    split = splitter(unit, lang)
    sentences = (itertools.repeat(split(text, None), times) for text, times in sorted(transcripts.sentences.items()))
    return perplexity(scorer, itertools.chain.from_iterable(sentences))


def _report(unit: str, numbers: dict[str, Any], dev: dict[str, Any] | None) -> None:
    said = f"lm: order {numbers['order']} over {unit}s: {' + '.join(map(str, numbers['ngrams']))} n-grams"
    if dev is not None:
        said += f"; dev: perplexity {dev['perplexity']}, {dev['perplexity_without_oov']} without unknown {unit}s, "
        said += f"{100 * (dev['oov_rate'] or 0):.2f} % of {dev['words']} {unit}s unknown"
    log.info("%s", said)
    log.debug("lm: %s", json.dumps(numbers))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return common.main("lm", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
