"""Stage score: hypotheses or language scores against references -> error rates and costs with intervals.

inputs   --decoded   the folder of the stage decode
           asr       hyp.txt and ref.txt (Kaldi text: id word word ...); hyp_raw.txt and ref_raw.txt instead if there
                     is a ``normaliser``; languages.tsv (id, language) for it and for the breakdown, and speakers.tsv
                     (id, speaker) for resampling whole speakers, if they have rows
           lid       scores.tsv (id, and log-likelihoods in a column per language), labels.tsv (id, language);
                     speakers.tsv as for asr; seconds.tsv (id, seconds) and sources.tsv (id, source), if they have
                     rows, for costs by duration and source
outputs  --manifest  metrics: wer, cer, ser and counts, or accuracy, macro_accuracy, act_cprimary, min_cprimary, eer and
                     cllr; and ``interval`` with [low, high] of each

    python -m lowrank_speech.stages.score --cfg '{"seed": 1, "type": "asr", "score": {"bootstrap": 1000}}' \\
        --decoded exp/default/decode/wav2vec2/asr/full/greedy/test \\
        --manifest exp/default/score/wav2vec2/asr/full/greedy/test/score.json
"""

import argparse
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.errors import UserError
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.settings import REQUIRED, Seed, key, settings
from lowrank_speech.stages import common

log = logging.getLogger(__name__)


@settings
class Config:
    """The stage's slice."""

    seed: Seed = key(REQUIRED, "seed of the resamples")
    type: Literal["asr", "lid"] = key(REQUIRED, "speech recognition or spoken language recognition")
    score: ScoreOptions = key(None, "how to score", default_factory=ScoreOptions)


def add(parser: argparse.ArgumentParser) -> None:
    """Inputs and outputs."""
    parser.add_argument("--decoded", required=True, type=Path, metavar="DIR", help="input: folder of the stage decode")


def score_asr(decoded: Path, config: Config) -> dict[str, Any]:
    """The metrics of the hypotheses against the references in ``decoded``. Raises the readers' and the scorer's
    ValueError."""
    from lowrank_speech.scoring import asr, files

    options, languages = config.score, optional_map(decoded / "languages.tsv")
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
        from lowrank_speech.lang.comparison import Comparison

        comparison = Comparison(options.normaliser, options.numbers)
        pairs, emptied = asr.normalised(pairs, comparison, languages)
        tell(comparison.unspelt, emptied, str(ref))
    return asr.score(
        pairs,
        options,
        config.seed,
        speakers=optional_map(decoded / "speakers.tsv"),
        languages=languages,
        emptied=emptied,
    )


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


def score_lid(decoded: Path, config: Config) -> dict[str, Any]:
    """The metrics of scores.tsv against labels.tsv in ``decoded``. Raises the readers' and the scorer's ValueError."""
    from lowrank_speech.scoring import files, lid

    scores, labels = decoded / "scores.tsv", decoded / "labels.tsv"
    return lid.score(
        *files.read_scores(scores),
        files.read_map(labels),
        config.score,
        config.seed,
        speakers=optional_map(decoded / "speakers.tsv"),
        names=(str(scores), str(labels)),
        durations=optional_map(decoded / "seconds.tsv"),
        sources=optional_map(decoded / "sources.tsv"),
    )


def optional_map(path: Path) -> dict[str, str] | None:
    """The map in ``path``, or None if the file does not exist or has only its header."""
    from lowrank_speech.scoring import files

    # Decoding writes only the header where the speaker of an utterance is not known.
    if not path.exists() or len(path.read_text(encoding="utf-8").splitlines()) <= 1:
        return None
    return files.read_map(path)


def body(run: common.Run) -> None:
    """Score, log the main line, write the manifest."""
    from lowrank_speech.scoring import text

    decoded, config = common.existing(run.arguments.decoded, "the decoded folder"), run.config
    scorer, lines = {"asr": (score_asr, text.asr_lines), "lid": (score_lid, text.lid_lines)}[config.type]
    try:
        metrics = scorer(decoded, config)
    except ValueError as error:
        raise UserError(str(error)) from error
    log.info("%s: %s", decoded, lines(metrics)[0])
    if config.score.bootstrap and not any(metrics["interval"].values()):
        what = metrics["resampled"]
        hint = "; score.resample: utterances draws utterances instead" if what == "speakers" else ""
        log.warning("%s: no intervals, because the test set has too few %s to draw from%s", decoded, what, hint)
    run.finish([], {"type": config.type, **metrics})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage; returns the exit code."""
    return common.main("score", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
