"""The command ``lowrank-speech compare``: a paired bootstrap test between two systems of an experiment.

    lowrank-speech compare exp/default wav2vec2/asr/lowrank wav2vec2/asr/full
    lowrank-speech compare exp/default whisper/asr/full/beam/test whisper/asr/full/greedy/test

A system is base/task/method, and optionally its decoder and test set: without them, all decoders and test sets that
both systems have are compared. It may also be a folder of the stage score, of another experiment for example.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lowrank_speech.errors import UserError
from lowrank_speech.scoring.options import Resample, ScoreOptions
from lowrank_speech.settings import read


def compare(
    experiment: Annotated[Path, typer.Argument(help="The experiment's folder (config `output`).", metavar="EXP")],
    first: Annotated[str, typer.Argument(help="base/task/method[/decoder[/test]], or a folder of the stage score.")],
    second: Annotated[str, typer.Argument(help="The same: the system to compare with.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value; rates are fractions.")] = False,
    bootstrap: Annotated[
        int | None, typer.Option(help="Number of resamples.  [default: as scored]", metavar="N")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="Confidence level of the intervals.  [default: as scored]", metavar="SHARE")
    ] = None,
    resample: Annotated[Resample | None, typer.Option(help="Units to draw.  [default: as scored]")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the resamples.  [default: as scored]", min=0)] = None,
) -> None:
    """Compare two systems on the same utterances: difference, interval and p-value (paired bootstrap).

    The difference is that of the first system minus the second. `not told apart`: the interval covers 0.
    """
    from lowrank_speech.scoring import paired, text

    asked = {"bootstrap": bootstrap, "confidence": confidence, "resample": resample}
    found: dict[str, Any] = {}
    for place, (one, other) in _pairs(experiment, first, second).items():
        same = settings_of(one, {key: value for key, value in asked.items() if value is not None}, seed)
        systems = [resampled_of(folder, *same) for folder in (one, other)]
        found[place] = paired.differences(*systems, names=(str(one), str(other)))
    if as_json:
        shown = {place: {name: d.as_dict() for name, d in of.items()} for place, of in found.items()}
        typer.echo(json.dumps(shown, ensure_ascii=False, allow_nan=False, indent=2))
        return
    lines = [f"{first} against {second}"]
    for place, of in found.items():
        lines += ["", place, *text.compare_lines(list(of.values()))]
    typer.echo("\n".join(lines))


def _pairs(experiment: Path, first: str, second: str) -> dict[str, tuple[Path, Path]]:
    """decoder/test -> the folders of both systems; ``one against other`` if they were named and differ."""
    mine, theirs = _folders(experiment, first), _folders(experiment, second)
    if len(mine) == len(theirs) == 1:
        names = dict.fromkeys([*mine, *theirs])
        return {" against ".join(names): (*mine.values(), *theirs.values())}
    shared = [place for place in mine if place in theirs]
    if not shared:
        raise UserError(
            f"{first} and {second} have no decoder and test set in common: {', '.join(mine)} and {', '.join(theirs)}; "
            "name them: base/task/method/decoder/test"
        )
    return {place: (mine[place], theirs[place]) for place in shared}


def _folders(experiment: Path, name: str) -> dict[str, Path]:
    """decoder/test -> folder with score.json."""
    if not experiment.is_dir():
        raise UserError(f"{experiment} does not exist; give the folder of an experiment, such as exp/default")
    for folder in (experiment / "score" / name, Path(name)):
        if (folder / "score.json").is_file():
            return {"/".join(folder.parts[-2:]): folder}
    depth = "*/" * (5 - len(Path(name).parts))
    root = experiment / "score"
    found = sorted(root.glob(f"{_escaped(name)}/{depth}score.json")) if 3 <= len(Path(name).parts) < 5 else []
    if not found:
        known = sorted({"/".join(path.relative_to(root).parts[:3]) for path in root.glob("*/*/*/*/*/score.json")})
        shown = ", ".join(known[:10]) + (" ..." if len(known) > 10 else "")
        raise UserError(f"{name} was not scored below {root}; expected base/task/method, such as: {shown or 'none'}")
    return {"/".join(path.parent.parts[-2:]): path.parent for path in found}


def _escaped(name: str) -> str:
    import glob

    return glob.escape(name)


def settings_of(folder: Path, asked: dict[str, Any], seed: int | None) -> tuple[ScoreOptions, int]:
    """Settings of the resamples: those of the first system's score.json, unless others are asked for."""
    path = folder / "score.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        metrics = record["metrics"]
        known = {"bootstrap": metrics["bootstrap"], "confidence": metrics["confidence"]}
        known |= {"resample": metrics["resampled"]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a manifest of the stage score ({error!r}); score again") from error
    options = read(ScoreOptions, known | asked, "")
    if not options.bootstrap:
        raise UserError(f"{path} was scored with bootstrap: 0; give --bootstrap 1000")
    return options, record.get("seed") or 0 if seed is None else seed


def resampled_of(folder: Path, options: ScoreOptions, seed: int) -> Any:
    from lowrank_speech.scoring import paired, utterances

    metrics = json.loads((folder / "score.json").read_text(encoding="utf-8")).get("metrics") or {}
    kind = "lid" if metrics.get("type") == "lid" or "accuracy" in metrics else "asr"
    return paired.resample(utterances.read(folder / utterances.NAME, kind), options, seed)
