"""The command ``lowrank-speech factorise``.

The libraries are imported when it runs, so that ``--help`` answers at once.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.recipe import CALIBRATED, Factorise, Init

Layers = Annotated[
    list[str] | None,
    typer.Option(help="ffn, attention, all, embedding (Whisper), or a name pattern; may be repeated.  [default: ffn]"),
]
Reduction = Annotated[float | None, typer.Option(help="Share of the whole model's parameters to save.")]
Rank = Annotated[int | None, typer.Option(help="Or: one rank for all layers.")]
Fraction = Annotated[float | None, typer.Option(help="Or: rank as a share of the smaller dimension.")]
Keep = Annotated[float | None, typer.Option(help="Or: share of its parameters that each layer keeps.")]
Energy = Annotated[float | None, typer.Option(help="Or: share of each layer's squared singular values.")]
Floor = Annotated[float, typer.Option(help="With --allocate: the least rank, as a share of the full one.")]
ExactRows = Annotated[int, typer.Option(help="Frequent tokens whose rows of the embedding are kept.", min=0)]
MultipleOf = Annotated[int, typer.Option(help="Ranks are multiples of this.", min=1)]
Sequential = Annotated[
    bool, typer.Option("--sequential", help="Calibrate each block on the factorised blocks before it.")
]
Utterances = Annotated[
    int | None, typer.Option(help="How many utterances to draw from it.  [default: as many as needed]", min=1)
]
TrialNumber = Annotated[
    int, typer.Option(help="How many further ones measure the loss of the result, and of ranks.", min=0)
]
Seed = Annotated[int, typer.Option(help="Seed to draw utterances, and for --init random.", min=0)]
Revision = Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub name.")]
SPEECH = "Lhotse cuts, a Kaldi data directory, a table (tsv, csv), or a folder of audio."
"""Formats of calibration speech, for help texts."""
DEFAULT_TRIAL = 16


def factorise(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Model folder or hub name.")],
    out: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; it must not exist.")],
    layers: Layers = None,
    reduction: Reduction = None,
    rank: Rank = None,
    fraction: Fraction = None,
    keep: Keep = None,
    energy: Energy = None,
    allocate: Annotated[
        bool, typer.Option("--allocate", help="Choose ranks by what they cost, measured on --calibrate.")
    ] = False,
    floor: Floor = Factorise.floor,
    exact_rows: ExactRows = Factorise.exact_rows,
    multiple_of: MultipleOf = 1,
    init: Annotated[Init, typer.Option(help="How to initialise factors.")] = "svd",
    sequential: Sequential = False,
    calibrate: Annotated[Path | None, typer.Option(help=f"Speech to calibrate on: {SPEECH}", metavar="PATH")] = None,
    utterances: Utterances = None,
    trial: TrialNumber = DEFAULT_TRIAL,
    moments: Annotated[
        Path | None, typer.Option(help="Instead of --calibrate: moments of the stage calibrate.", metavar="FILE")
    ] = None,
    seed: Seed = 1,
    revision: Revision = None,
    report: Annotated[Path | None, typer.Option(help="Also write the report as JSON.", metavar="FILE")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the spectra, as PNG.", metavar="FILE")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON value; rates and shares are fractions.")
    ] = False,
) -> None:
    """Replace linear layers of a model, or Whisper's embedding, with low-rank factors.

    Give exactly one of --reduction, --rank, --fraction, --keep and --energy. With --calibrate the report has the error
    of each layer's output, and how far the result is from the dense model, for any --init.
    """
    recipe = Factorise(
        layers=tuple(layers or ("ffn",)),
        rank=rank,
        fraction=fraction,
        keep=keep,
        energy=energy,
        reduction=reduction,
        allocate=allocate,
        floor=floor,
        exact_rows=exact_rows,
        multiple_of=multiple_of,
        init=init,
        sequential=sequential,
    )
    _check_files(out, recipe, calibrate, moments, trial, (report, plot))
    from lowrank_speech.artefact import write_json
    from lowrank_speech.factorising.on_speech import Calibration, factorise_on
    from lowrank_speech.models.sources import open_dense
    from lowrank_speech.scoring import text

    speech = None if calibrate is None else Calibration.read(calibrate, utterances, trial, seed)
    model, folder = open_dense(source, revision)
    result = factorise_on(model, folder, recipe, out, speech, moments, seed, source)
    result.pop("calibration", None)
    if report is not None:
        write_json(report, result)
    if plot is not None:
        from lowrank_speech.reporting.spectra import write_spectra

        write_spectra(plot, result["layers"])
    lines = [*text.factorise_lines(result), "", *_next(out)]
    typer.echo(json.dumps(result, ensure_ascii=False, allow_nan=False, indent=2) if as_json else "\n".join(lines))


def _next(out: Path) -> list[str]:
    """The path of the low-rank model, and the next step."""
    return [
        f"written: {out}",
        f"next: fine-tune it, as a base of an experiment (in its config, bases: {{small: {{source: {out}, ...}}}}), or",
        f"      with python -m lowrank_speech.stages.train --model {out} ... (see its --help)",
    ]


def _check_files(
    out: Path,
    recipe: Factorise,
    speech: Path | None,
    moments: Path | None,
    trial: int,
    written: Sequence[Path | None],
) -> None:
    """Check the options before anything large is opened."""
    if out.exists():
        raise UserError(f"{out} exists: remove it, or name another folder")
    if speech is not None and moments is not None:
        raise UserError("give either --calibrate PATH or --moments FILE, not both")
    if recipe.init in CALIBRATED and speech is None and moments is None:
        raise UserError(f"--init {recipe.init} needs --calibrate PATH or --moments FILE")
    for wish in ("allocate", "sequential"):
        if getattr(recipe, wish) and (speech is None or not trial):
            raise UserError(f"--{wish} needs --calibrate PATH, and a --trial above 0")
    if moments is not None and not moments.is_file():
        raise UserError(f"--moments: the file {moments} does not exist")
    if speech is not None:
        from lowrank_speech.factorising.speech import kind_of

        kind_of(speech)
    for path in (out, *written):
        if path is not None:
            check_writable(path)


def check_writable(path: Path) -> None:
    """Raise UserError if ``path``, whose parents may not exist yet, cannot be written."""
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    try:
        # Permissions are not enough: nobody can create files in /proc.
        with tempfile.TemporaryDirectory(dir=parent, prefix=".lowrank-"):
            pass
    except OSError as error:
        raise UserError(f"{path} cannot be written: {parent}: {error.strerror}; name another path") from error
