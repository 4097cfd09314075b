"""The command ``lowrank-speech compress``: a smaller model without training, in one command.

    lowrank-speech compress openai/whisper-small small --reduction 0.24 --calibrate speech/ --evaluate test.tsv
    lowrank-speech compress exp/mine:wav2vec2/asr/full small --reduction 0.24 --calibrate data/train

The libraries are imported when it runs, so that ``--help`` answers at once.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lowrank_speech.cli_factorise import (
    DEFAULT_TRIAL,
    SPEECH,
    Energy,
    ExactRows,
    Floor,
    Fraction,
    Keep,
    MultipleOf,
    Rank,
    Reduction,
    Revision,
    Seed,
    Sequential,
    TrialNumber,
    Utterances,
    check_writable,
)
from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.recipe import Factorise, Init
from lowrank_speech.scoring.options import Normaliser


def compress(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Model folder, system (exp/mine:base/task/method), or hub name.")
    ],
    out: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; it must not exist.")],
    calibrate: Annotated[Path, typer.Option(help=f"Speech to calibrate on: {SPEECH}", metavar="AUDIO_OR_TABLE")],
    reduction: Reduction = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(
            help="Speech with transcripts to compare error rates on: a table with a column `text`, a Kaldi data "
            "directory, or Lhotse cuts.",
            metavar="TABLE",
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="ffn, attention, all, embedding (Whisper), or a name pattern; may be repeated.  [default: ffn and "
            "embedding for Whisper, else ffn]"
        ),
    ] = None,
    init: Annotated[Init, typer.Option(help="How to initialise factors.")] = "activation",
    allocate: Annotated[
        bool | None, typer.Option(help="Choose ranks by what they cost.  [default: allocate, except with --energy]")
    ] = None,
    sequential: Sequential = False,
    rank: Rank = None,
    fraction: Fraction = None,
    keep: Keep = None,
    energy: Energy = None,
    floor: Floor = Factorise.floor,
    exact_rows: ExactRows = Factorise.exact_rows,
    multiple_of: MultipleOf = 1,
    utterances: Utterances = None,
    trial: TrialNumber = DEFAULT_TRIAL,
    evaluate_utterances: Annotated[
        int | None,
        typer.Option(help="Evaluate only N utterances, drawn by --seed.  [default: all]", min=1, metavar="N"),
    ] = None,
    language: Annotated[
        str | None, typer.Option(help="Language of utterances without one, such as en.", metavar="CODE")
    ] = None,
    normaliser: Annotated[
        Normaliser | None,
        typer.Option(
            help="What is done to both texts before they are compared.  [default: for Whisper, whisper-english, or "
            "whisper-basic if languages are not known; else house]"
        ),
    ] = None,
    bootstrap: Annotated[
        int, typer.Option(help="Number of bootstrap resamples; 0: no intervals.", metavar="N", min=0)
    ] = 1000,
    seed: Seed = 1,
    revision: Revision = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")] = "auto",
    report: Annotated[
        Path | None, typer.Option(help="Also write the report (DST/compress.json) here.", metavar="FILE")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the spectra, as PNG.", metavar="FILE")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value; rates and shares are fractions.")
    ] = False,
) -> None:
    """Make a fine-tuned Whisper or wav2vec 2.0 smaller without training, and measure what that costs.

    Calibrates on speech (no transcripts needed), chooses ranks, replaces layers with low-rank factors, and decodes
    before and after with --evaluate; without it, measures the loss on calibration speech that was held out. DST gets
    the model, compress.json (the report) and README.md (a model card). Give exactly one of --reduction, --rank,
    --fraction, --keep and --energy.
    """
    wanted: dict[str, Any] = {
        "reduction": reduction,
        "rank": rank,
        "fraction": fraction,
        "keep": keep,
        "energy": energy,
        "init": init,
        "allocate": energy is None if allocate is None else allocate,
        "sequential": sequential,
        "floor": floor,
        "exact_rows": exact_rows,
        "multiple_of": multiple_of,
    }
    wanted |= {"layers": tuple(layers)} if layers else {}
    recipe = Factorise(**wanted)
    _check(out, recipe, calibrate, evaluate, trial, bootstrap, (report, plot))
    from lowrank_speech.inference.naming import find
    from lowrank_speech.quiet import quiet

    quiet()
    found = find(source, revision)
    from lowrank_speech.artefact import write_json
    from lowrank_speech.compressing.compress import compress as compressed
    from lowrank_speech.compressing.evaluation import TestSet, in_language
    from lowrank_speech.compressing.text import lines
    from lowrank_speech.factorising.on_speech import Calibration

    test = None if evaluate is None else TestSet.read(evaluate, language, evaluate_utterances, seed)
    speech = Calibration.read(calibrate, utterances, trial, seed)
    for cut in speech.cuts:
        in_language(cut, language)
    result = compressed(found, out, wanted, speech, test, normaliser, bootstrap, seed, device)
    if report is not None:
        write_json(report, result)
    if plot is not None:
        from lowrank_speech.reporting.spectra import write_spectra

        write_spectra(plot, result["layers"])
    typer.echo(
        json.dumps(result, ensure_ascii=False, allow_nan=False, indent=2) if as_json else "\n".join(lines(result, out))
    )


def _check(
    out: Path,
    recipe: Factorise,
    speech: Path,
    evaluate: Path | None,
    trial: int,
    bootstrap: int,
    written: tuple[Path | None, ...],
) -> None:
    """Check the options before anything large is opened."""
    from lowrank_speech.factorising.speech import kind_of

    if out.exists():
        raise UserError(f"{out} exists: remove it, or name another folder")
    if (recipe.allocate or recipe.sequential) and not trial:
        raise UserError("--trial is 0, but choosing ranks needs some utterances; raise it, or give --no-allocate")
    if bootstrap == 1:
        raise UserError("--bootstrap is 1; it must be 0 (no intervals) or at least 2")
    kind_of(speech)
    if evaluate is not None and kind_of(evaluate) in ("folder", "file"):
        raise UserError(
            f"--evaluate: {evaluate} is audio without transcripts; give a table (.tsv), or a Kaldi data directory"
        )
    for path in (out, *written):
        if path is not None:
            check_writable(path)
