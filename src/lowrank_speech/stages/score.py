"""Stage score: hypotheses or language scores against references -> error rates and costs with intervals.

inputs   --decoded   the folder of the stage decode
           asr       hyp.txt and ref.txt (Kaldi text: id word word ...); hyp_raw.txt and ref_raw.txt instead if there
                     is a ``normaliser``; languages.tsv (id, language) for it and for the breakdown, speakers.tsv
                     (id, speaker) for resampling whole speakers and seconds.tsv (id, seconds), if they have rows;
                     if they exist, hyp_tokens.txt and ref_tokens.txt for the token error rate, and hypotheses.jsonl
                     for the oracle error and the CTM
           lid       scores.tsv (id, and log-likelihoods in a column per language), labels.tsv (id, language);
                     speakers.tsv as for asr; seconds.tsv (id, seconds) and sources.tsv (id, source), if they have
                     rows, for costs by duration and source
outputs  --out       folder (default: that of the manifest) with
           utterances.tsv          a row of counts per utterance, or of decisions and costs; paired tests read it
           words.pra, tokens.pra   asr: alignments as sclite prints them
           words.dtl               asr: totals, and every confused, inserted, deleted and substituted word
           ref.trn, hyp.trn        asr: transcripts for sclite
           hyp.ctm                 asr: words with times, if the decoder wrote them
         --manifest  metrics: wer, cer, ter, ser and counts, or accuracy, macro_accuracy, act_cprimary, min_cprimary,
                     eer and cllr; and ``interval`` with [low, high] of each

    python -m lowrank_speech.stages.score --cfg '{"seed": 1, "type": "asr", "score": {"bootstrap": 1000}}' \\
        --decoded exp/default/decode/wav2vec2/asr/full/greedy/test \\
        --manifest exp/default/score/wav2vec2/asr/full/greedy/test/score.json
"""

import argparse
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.artefact import write_table, write_text
from lowrank_speech.errors import UserError
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.settings import REQUIRED, Seed, key, settings
from lowrank_speech.stages import common

log = logging.getLogger(__name__)
Pairs = dict[str, tuple[list[str], list[str]]]


@settings
class Config:
    """The stage's slice."""

    seed: Seed = key(REQUIRED, "seed of the resamples")
    type: Literal["asr", "lid"] = key(REQUIRED, "speech recognition or spoken language recognition")
    score: ScoreOptions = key(None, "how to score", default_factory=ScoreOptions)


def add(parser: argparse.ArgumentParser) -> None:
    """Inputs and outputs."""
    parser.add_argument("--decoded", required=True, type=Path, metavar="DIR", help="input: folder of the stage decode")
    parser.add_argument("--out", type=Path, metavar="DIR", help="output: folder; default: that of the manifest")


def score_asr(decoded: Path, config: Config, out: Path) -> tuple[dict[str, Any], list[Path]]:
    """The metrics of the hypotheses in ``decoded``, and the files in ``out``. Raises the readers' and scorer's
    ValueError."""
    from lowrank_speech.scoring import asr, bootstrap, tokens, utterances

    options, facts = config.score, _facts(decoded)
    pairs, emptied = _pairs(decoded, options, facts["language"])
    rows = _hypotheses(decoded)
    spelt = _tokens(decoded, pairs)
    metrics = asr.score(
        pairs,
        options,
        config.seed,
        speakers=facts["speaker"],
        languages=facts["language"],
        emptied=emptied,
        seconds=facts["seconds"],
    )
    table = asr.per_utterance(pairs, options.characters).drop(columns=["ref", "hyp"])
    if spelt is not None:
        units = bootstrap.units_of(list(pairs), facts["speaker"], options.resample)[0]
        found = tokens.counts(spelt)
        table[tokens.COUNTS] = found
        metrics = _with_tokens(metrics, tokens.summary(found, units, options, config.seed))
    oracle = None if rows is None else _oracle(pairs, rows, decoded, options)
    if oracle is not None:
        metrics["oracle"] = oracle
    return metrics, [_table(out, utterances.rows(table, facts)), *_texts(out, pairs, spelt, rows, facts["speaker"])]


def _pairs(decoded: Path, options: ScoreOptions, languages: Mapping[str, str] | None) -> tuple[Pairs, dict[str, str]]:
    """The words to compare, and the references of which the normaliser leaves nothing."""
    from lowrank_speech.scoring import asr, files

    # A normaliser needs the text as it was: without "$" and ".", $20.50 is two numbers.
    raw = "" if options.normaliser == "none" else "_raw"
    ref, hyp = decoded / f"ref{raw}.txt", decoded / f"hyp{raw}.txt"
    for path in (ref, hyp):
        if raw and not path.is_file():
            raise UserError(
                f"{path} does not exist, but score.normaliser: {options.normaliser} needs it; run the stage decode "
                f"again, or set normaliser: none"
            )
    pairs = asr.pair(files.read_text(ref), files.read_text(hyp), names=(str(ref), str(hyp)))
    emptied: dict[str, str] = {}
    if raw:
        comparison = _comparison(options)
        pairs, emptied = asr.normalised(pairs, comparison, languages)
        tell(comparison.unspelt, emptied, str(ref))
    return pairs, emptied


def _comparison(options: ScoreOptions) -> Any:
    from lowrank_speech.lang.comparison import Comparison

    return Comparison(options.normaliser, options.numbers)


def _tokens(decoded: Path, pairs: Pairs) -> Pairs | None:
    """Tokens of references and hypotheses, in the order of ``pairs``; None if decode did not write them."""
    from lowrank_speech.scoring import asr, files

    ref, hyp = decoded / "ref_tokens.txt", decoded / "hyp_tokens.txt"
    if not (ref.is_file() and hyp.is_file()):
        return None
    found = asr.pair(files.read_text(ref), files.read_text(hyp), names=(str(ref), str(hyp)))
    odd = next(iter(found.keys() ^ pairs.keys()), None)
    if odd is not None:
        raise UserError(f"{ref} and the words in {decoded} differ in the utterance {odd!r}; run the stage decode again")
    return {name: found[name] for name in pairs}


def _with_tokens(metrics: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """``metrics`` with those of the tokens beside those of words and characters."""
    interval = found.pop("interval")
    return metrics | found | {"interval": metrics["interval"] | {"ter": interval}}


def _hypotheses(decoded: Path) -> dict[str, dict[str, Any]] | None:
    """Id -> row of hypotheses.jsonl; None if it does not exist. UserError: a line is not valid."""
    path = decoded / "hypotheses.jsonl"
    if not path.is_file():
        return None
    found = {}
    # Not splitlines(), because a transcript may contain a character that Python takes for a line end.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
                found[row["id"]] = row
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{path}, line {number} is not a hypothesis ({error}); run decode again") from error
    return found


def _oracle(
    pairs: Pairs, rows: Mapping[str, dict[str, Any]], decoded: Path, options: ScoreOptions
) -> dict[str, Any] | None:
    """The oracle error of the n-best lists, with the same normaliser; None if there are none."""
    from lowrank_speech.scoring import files, oracle

    if not any(row.get("nbest") for row in rows.values()):
        return None
    key, change = "text", list
    languages = files.read_optional_map(decoded / "languages.tsv") or {}
    if options.normaliser != "none":
        key, comparison = "raw", _comparison(options)
    lists = {}
    for name, (_, hyp) in pairs.items():
        if key == "raw":
            language = languages.get(name)
            change = lambda words, language=language: comparison(" ".join(words), language).split()  # noqa: E731
        found = [change(words) for words in oracle.listed(rows.get(name) or {}, key)]
        lists[name] = found if found and found[0] == list(hyp) else [list(hyp), *found]
    return oracle.curve({name: ref for name, (ref, _) in pairs.items()}, lists)


def _facts(decoded: Path) -> dict[str, dict[str, Any] | None]:
    """Speaker, language and seconds: id -> value, or None if they are not known."""
    from lowrank_speech.scoring import files

    seconds = decoded / "seconds.tsv"
    found = {what: files.read_optional_map(decoded / f"{what}s.tsv") for what in ("speaker", "language")}
    return {**found, "seconds": files.read_seconds(seconds) if seconds.is_file() else None}


def _texts(
    out: Path,
    pairs: Pairs,
    spelt: Pairs | None,
    rows: Mapping[str, dict[str, Any]] | None,
    speakers: Mapping[str, str] | None,
) -> list[Path]:
    """Write alignments and transcripts; returns their paths."""
    from lowrank_speech.scoring import aligned, exchange

    texts: dict[str, Iterable[str]] = {
        "words.pra": aligned.pra(pairs, speakers),
        "words.dtl": aligned.dtl(pairs, "words"),
        "ref.trn": exchange.trn({name: ref for name, (ref, _) in pairs.items()}, speakers),
        "hyp.trn": exchange.trn({name: hyp for name, (_, hyp) in pairs.items()}, speakers),
    }
    if spelt is not None:
        texts["tokens.pra"] = aligned.pra(spelt, speakers)
    if rows is not None and any(row.get("words") for row in rows.values()):
        texts["hyp.ctm"] = exchange.ctm(rows.values())
    for name, lines in texts.items():
        write_text(out / name, "".join(f"{line}\n" for line in lines))
    for name in {"tokens.pra", "hyp.ctm"} - texts.keys():
        (out / name).unlink(missing_ok=True)  # of an earlier decoding
    return [out / name for name in texts]


def _table(out: Path, table: tuple[list[str], list[list[Any]]]) -> Path:
    from lowrank_speech.scoring import utterances

    write_table(out / utterances.NAME, *table)
    return out / utterances.NAME


def tell(unspelt: Collection[str], emptied: Mapping[str, str], where: str) -> None:
    """Log languages in which numbers stay digits, and references of which a normaliser left nothing."""
    if unspelt:
        log.warning(
            "%s: num2words has no words for some numbers in %s: they stay digits", where, ", ".join(sorted(unspelt))
        )
    if emptied:
        name, text = next(iter(emptied.items()))
        log.warning(
            "%s: the normaliser leaves nothing of %d references, such as %r of %s, so all words of their hypotheses "
            "are insertions; emptied_references in the manifest lists them",
            where,
            len(emptied),
            text,
            name,
        )


def score_lid(decoded: Path, config: Config, out: Path) -> tuple[dict[str, Any], list[Path]]:
    """The metrics of scores.tsv against labels.tsv in ``decoded``, and the files in ``out``. Raises ValueError."""
    from lowrank_speech.scoring import files, lid, utterances

    scores, labels = decoded / "scores.tsv", decoded / "labels.tsv"
    read, truth = files.read_scores(scores), files.read_map(labels)
    known = {what: files.read_optional_map(decoded / f"{what}.tsv") for what in ("speakers", "seconds", "sources")}
    metrics = lid.score(
        *read,
        truth,
        config.score,
        config.seed,
        speakers=known["speakers"],
        names=(str(scores), str(labels)),
        durations=known["seconds"],
        sources=known["sources"],
    )
    table = utterances.of_languages(*read, truth, config.score)
    facts = {"speaker": known["speakers"], "language": truth, "seconds": known["seconds"]}
    return metrics, [_table(out, utterances.rows(table, facts))]


def body(run: common.Run) -> None:
    """Score, log the main line, write the manifest."""
    from lowrank_speech.scoring import text

    decoded, config = common.existing(run.arguments.decoded, "the decoded folder"), run.config
    out = run.arguments.out or run.arguments.manifest.parent
    scorer, lines = {"asr": (score_asr, text.asr_lines), "lid": (score_lid, text.lid_lines)}[config.type]
    try:
        metrics, outputs = scorer(decoded, config, out)
    except ValueError as error:
        raise UserError(str(error)) from error
    log.info("%s: %s", decoded, lines(metrics)[0])
    if config.score.bootstrap and not any(metrics["interval"].values()):
        what = metrics["resampled"]
        hint = "; score.resample: utterances draws utterances instead" if what == "speakers" else ""
        log.warning("%s: no intervals, because the test set has too few %s to draw from%s", decoded, what, hint)
    run.finish(outputs, {"type": config.type, **metrics})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return common.main("score", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
