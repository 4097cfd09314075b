"""The command line for people: score files, compare systems, count parameters, factorise a model, use a model.

    lowrank-speech score asr REF HYP
    lowrank-speech score lid SCORES LABELS
    lowrank-speech score nist SCORES LABELS --scores-out FILE --key-out FILE
    lowrank-speech compare exp/default wav2vec2/asr/lowrank wav2vec2/asr/full
    lowrank-speech params --preset xls-r-300m --layers ffn --rank 512
    lowrank-speech factorise facebook/wav2vec2-xls-r-300m small --reduction 0.24
    lowrank-speech compress openai/whisper-small small --reduction 0.24 --calibrate speech/ --evaluate test.tsv
    lowrank-speech init mine.yaml --corpus data --base openai/whisper-small --language en
    lowrank-speech plan|run|status mine.yaml
    lowrank-speech results exp/mine --latex
    lowrank-speech transcribe exp/mine:wav2vec2/asr/lowrank a.wav
    lowrank-speech identify openai/whisper-base a.wav --languages de,en,fr
    lowrank-speech export exp/default:wav2vec2/asr/lowrank small.onnx --format onnx

Results go to stdout, as text or (``--json``) as one JSON value; errors are one line on stderr and exit code 2.
The libraries are imported when a command needs them, so that ``--help`` answers at once.
"""

import functools
import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lowrank_speech.cli_compare import compare
from lowrank_speech.cli_compress import compress
from lowrank_speech.cli_export import export
from lowrank_speech.cli_factorise import factorise
from lowrank_speech.cli_identify import identify
from lowrank_speech.cli_init import init
from lowrank_speech.cli_results import results
from lowrank_speech.cli_run import plan, run, status
from lowrank_speech.cli_transcribe import transcribe
from lowrank_speech.cli_upkeep import clean, verify
from lowrank_speech.errors import UserError
from lowrank_speech.scoring.options import (
    Characters,
    Eer,
    EerOver,
    Form,
    Minimum,
    Normaliser,
    Numbers,
    Resample,
    ScoreOptions,
)
from lowrank_speech.settings import read

DEFAULT = ScoreOptions()

app = typer.Typer(
    name="lowrank-speech",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Low-rank factorisation and adaptation of pretrained speech models.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
score_app = typer.Typer(no_args_is_help=True, help="Score hypotheses or language scores against references.")
app.add_typer(score_app, name="score")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value; rates and shares are fractions.")]
Bootstrap = Annotated[int, typer.Option(help="Number of bootstrap resamples; 0: no intervals.", metavar="N")]
Confidence = Annotated[float, typer.Option(help="Confidence level of the intervals.", metavar="SHARE")]
Seed = Annotated[int, typer.Option(help="Seed of the resamples.", min=0)]
Resampled = Annotated[Resample, typer.Option(help="Units to resample; auto: speakers with --utt2spk, else utterances.")]
Utt2spk = Annotated[Path | None, typer.Option(help="Map 'id speaker'.", metavar="FILE")]
Utt2lang = Annotated[Path | None, typer.Option(help="Map 'id language'.", metavar="FILE")]


def friendly(command: Callable) -> Callable:
    """Turn an error that a person can fix into one line on stderr and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (UserError, ValueError, OSError) as error:
            typer.echo(f"error: {' '.join(_said(error).split())}", err=True)
            raise typer.Exit(2) from error

    return wrapped


def _said(error: Exception) -> str:
    """The text of an error; for refused settings, only the first problem."""
    import pydantic

    from lowrank_speech.settings_errors import first_line

    if isinstance(error, pydantic.ValidationError):
        return first_line(error, "")
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    return str(error)


def show(result: dict[str, Any], lines: Callable[[], list[str]], as_json: bool) -> None:
    """Print ``result`` as JSON, else ``lines()``."""
    typer.echo(json.dumps(result, ensure_ascii=False, allow_nan=False, indent=2) if as_json else "\n".join(lines()))


def version(wanted: bool) -> None:
    """Print the version and exit."""
    if wanted:
        typer.echo(f"lowrank-speech {importlib.metadata.version('lowrank-speech')}")
        raise typer.Exit


@app.callback()
def common_options(
    _: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Low-rank factorisation and adaptation of pretrained speech models."""


@score_app.command("asr")
@friendly
def score_asr(
    ref: Annotated[Path, typer.Argument(help="References: Kaldi text, 'id word word ...'.")],
    hyp: Annotated[Path, typer.Argument(help="Hypotheses, in the same format.")],
    as_json: Json = False,
    per_utterance: Annotated[
        bool, typer.Option(help="Also show the worst utterances and confusions (JSON: all utterances).")
    ] = False,
    worst: Annotated[int, typer.Option(help="How many of these to show.", min=0)] = DEFAULT.worst,
    missing_as_empty: Annotated[
        bool, typer.Option("--missing-as-empty", help="Count the words of missing hypotheses as deletions.")
    ] = False,
    characters: Annotated[
        Characters, typer.Option(help="Whether CER counts the space between words.")
    ] = DEFAULT.characters,
    normaliser: Annotated[
        Normaliser, typer.Option(help="Normalise both sides first; whisper-english: as Whisper was scored.")
    ] = DEFAULT.normaliser,
    numbers: Annotated[
        Numbers, typer.Option(help="words: spell out digits, in the language of the utterance.")
    ] = DEFAULT.numbers,
    language: Annotated[
        str | None, typer.Option(help="Language of all utterances, for the normaliser.", metavar="CODE")
    ] = None,
    utt2lang: Utt2lang = None,
    utt2spk: Utt2spk = None,
    resample: Resampled = DEFAULT.resample,
    bootstrap: Bootstrap = DEFAULT.bootstrap,
    confidence: Confidence = DEFAULT.confidence,
    seed: Seed = 1,
) -> None:
    """Compute word and character error rates with counts and intervals.

    Without --normaliser, words are compared as they are. Ids must match.
    """
    if language is not None and (utt2lang is not None or normaliser == "none"):
        raise UserError("--language is the language of all utterances for --normaliser; give it without --utt2lang")
    options = _options(
        bootstrap=bootstrap,
        confidence=confidence,
        resample=resample,
        characters=characters,
        normaliser=normaliser,
        numbers=numbers,
        confusions=worst,
        worst=worst,
    )
    from lowrank_speech.scoring import asr, files, text

    references, hypotheses = files.read_text(ref), files.read_text(hyp)
    missing = sum(name not in hypotheses for name in references)
    pairs = asr.pair(references, hypotheses, missing_as_empty, names=(str(ref), str(hyp)))
    languages, emptied = _map(utt2lang), None
    if normaliser != "none":
        from lowrank_speech.lang.comparison import Comparison

        spoken = dict.fromkeys(pairs, language) if language is not None else languages
        comparison = Comparison(normaliser, numbers)
        pairs, emptied = asr.normalised(pairs, comparison, spoken)
        if comparison.unspelt:
            some = ", ".join(sorted(comparison.unspelt))
            typer.echo(f"num2words has no words for some numbers in {some}: they stay digits", err=True)
    result = asr.score(pairs, options, seed, _map(utt2spk), languages, emptied) | {"missing": missing}
    if per_utterance and as_json:
        table = asr.per_utterance(pairs, characters)
        result["per_utterance"] = [{"id": name, **row} for name, row in table.to_dict("index").items()]

    def lines() -> list[str]:
        shown = text.asr_lines(result, missing)
        if per_utterance:
            shown += text.worst_lines(result["worst"]) + text.confusion_lines(result["confusions"])
        return shown

    show(result, lines, as_json)


@score_app.command("lid")
@friendly
def score_lid(
    scores: Annotated[Path, typer.Argument(help="Log-likelihoods: 'id language language ...', or a NIST form.")],
    labels: Annotated[Path, typer.Argument(help="Map 'id language', or a NIST key.")],
    as_json: Json = False,
    minimum: Annotated[
        Minimum, typer.Option(help="Minimum C_primary: one threshold for all languages, or one for each.")
    ] = DEFAULT.minimum,
    eer: Annotated[
        Eer, typer.Option(help="EER on the ROC's convex hull, or where P_miss and P_fa are nearest.")
    ] = DEFAULT.eer,
    eer_over: Annotated[
        EerOver, typer.Option(help="One EER over all trials, or the mean of the languages' EERs.")
    ] = DEFAULT.eer_over,
    utt2spk: Utt2spk = None,
    utt2dur: Annotated[Path | None, typer.Option(help="Map 'id seconds'.", metavar="FILE")] = None,
    utt2source: Annotated[Path | None, typer.Option(help="Map 'id source'.", metavar="FILE")] = None,
    resample: Resampled = DEFAULT.resample,
    bootstrap: Bootstrap = DEFAULT.bootstrap,
    confidence: Confidence = DEFAULT.confidence,
    seed: Seed = 1,
) -> None:
    """Compute accuracy, C_primary (NIST LRE17/22), EER, Cllr and confusions, with intervals.

    A key can have columns of durations, sources and speakers too; the three options replace them.
    """
    options = _options(
        bootstrap=bootstrap, confidence=confidence, resample=resample, minimum=minimum, eer=eer, eer_over=eer_over
    )
    from lowrank_speech.scoring import lid, nist, text

    key, names = nist.read_key(labels), (str(scores), str(labels))
    result = lid.score(
        *nist.read_scores(scores),
        key.labels,
        options,
        seed,
        speakers=_map(utt2spk) or key.speakers,
        names=names,
        durations=_map(utt2dur) or key.durations,
        sources=_map(utt2source) or key.sources,
    )
    show(result, lambda: text.lid_lines(result), as_json)


@score_app.command("nist")
@friendly
def write_nist(
    scores: Annotated[Path, typer.Argument(help="Log-likelihoods: scores.tsv of a decode folder, or a NIST form.")],
    labels: Annotated[Path, typer.Argument(help="Map 'id language' or NIST key; scores and key must match.")],
    scores_out: Annotated[Path, typer.Option(help="Score file to write.", metavar="FILE")],
    key_out: Annotated[Path | None, typer.Option(help="Key to write.", metavar="FILE")] = None,
    form: Annotated[
        Form, typer.Option(help="table: LRE15, 17, 22; lines: 'segmentid language score'; lre07: LRE07, 09.")
    ] = "table",
) -> None:
    """Write language scores and labels as NIST score and key files."""
    from lowrank_speech.artefact import write_text
    from lowrank_speech.scoring import lid, nist

    ids, languages, values = nist.read_scores(scores)
    key = nist.read_key(labels)
    lid.check(ids, languages, values, key.labels, (str(scores), str(labels)))
    write_text(scores_out, "".join(f"{line}\n" for line in nist.score_lines(form, ids, languages, values)))
    if key_out is not None:
        write_text(key_out, "".join(f"{line}\n" for line in nist.key_lines(key)))


@app.command("params")
@friendly
def params(
    model: Annotated[str | None, typer.Argument(help="Model folder, hub name, or preset.")] = None,
    preset: Annotated[str | None, typer.Option(help="A preset, instead of a model, e.g. xls-r-300m.")] = None,
    layers: Annotated[str, typer.Option(help="Which layers: ffn, attention, all, or a name pattern.")] = "ffn",
    rank: Annotated[int | None, typer.Option(help="Rank of the factors.", min=1)] = None,
    reduction: Annotated[
        float | None, typer.Option(help="Instead of --rank: share of all parameters to save, e.g. 0.24.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub name.")] = None,
    as_json: Json = False,
) -> None:
    """Count parameters before and after factorisation, without weights.

    A factorised folder is counted as it is, without --rank and --reduction. Layer names are the same for a folder, a
    hub name and a preset; `factorise --layers` takes them too.
    """
    if (model is None) == (preset is None):
        raise UserError("give either a model (folder, hub name or preset) or --preset NAME")
    if rank is not None and reduction is not None:
        raise UserError("give either --rank R or --reduction SHARE, not both")
    if reduction is not None and not 0 < reduction < 1:
        raise UserError(f"--reduction is {reduction}; it must be a share between 0 and 1, such as 0.24")
    from lowrank_speech.models.counting import count
    from lowrank_speech.scoring import text

    result = count(model=model, preset=preset, layers=layers, rank=rank, reduction=reduction, revision=revision)
    show(result, lambda: text.params_lines(result), as_json)


def _options(**keys: Any) -> ScoreOptions:
    """The settings of a scorer. UserError: a value is out of range."""
    return read(ScoreOptions, keys, "")


def _map(path: Path | None) -> dict[str, str] | None:
    from lowrank_speech.scoring import files

    return None if path is None else files.read_map(path)


for command in (
    *(init, run, status, plan, results, compare, verify, clean),
    *(transcribe, identify, compress, factorise, export),
):
    app.command(command.__name__)(friendly(command))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; ends with SystemExit."""
    app(args=argv, prog_name="lowrank-speech")


if __name__ == "__main__":
    main()
