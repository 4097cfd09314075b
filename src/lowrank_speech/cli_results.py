"""The command ``lowrank-speech results``: the table of an experiment again, or two experiments compared.

lowrank-speech results exp/default
lowrank-speech results config.yaml --latex > table.tex
lowrank-speech results exp/default exp/other --csv
"""

import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lowrank_speech.cli_compare import resampled_of, settings_of
from lowrank_speech.errors import UserError

COLUMNS = (
    *("system", "decoder", "test", "metric", "first", "second", "difference", "low", "high", "p", "units"),
    *("unit", "utterances", "not_tested"),
)
"""Columns of a comparison as CSV; rates are fractions."""


def results(
    experiment: Annotated[Path, typer.Argument(metavar="EXP_OR_CONFIG", help="Folder or config of an experiment.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="Another one, to compare equal systems with.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print raw values as CSV; rates are fractions.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print a table for LaTeX (booktabs).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value; rates are fractions.")] = False,
) -> None:
    """Print the results table of an experiment.

    With OTHER, systems of the same name are compared on the test sets that both have (paired bootstrap, first minus
    second); without the same utterances there is no test, and the reason is printed.
    """
    if sum((as_csv, as_latex, as_json)) > 1:
        raise UserError("give only one of --csv, --latex and --json")
    root = _root(experiment)
    if other is not None:
        _print_compared(root, _root(other), as_csv, as_latex, as_json)
        return
    report = root / "report"
    for name in ("results.csv", "results.txt"):
        if not (report / name).is_file():
            raise UserError(
                f"{report / name} does not exist, so the experiment has no report yet; finish it with `lowrank-speech "
                f"run CONFIG`; `lowrank-speech status CONFIG` shows what is missing"
            )
    raw = (report / "results.csv").read_text(encoding="utf-8")
    if as_csv:
        typer.echo(raw, nl=False)
        return
    if not (as_latex or as_json):
        typer.echo((report / "results.txt").read_text(encoding="utf-8").rstrip())
        typer.echo(f"\n{report / 'report.html'}")
        return
    import pandas as pd

    frame = pd.read_csv(io.StringIO(raw))
    if as_json:
        typer.echo(json.dumps(json.loads(frame.to_json(orient="records")), ensure_ascii=False, indent=2))
        return
    from lowrank_speech.reporting.latex import latex

    title = (report / "results.txt").read_text(encoding="utf-8").partition("\n")[0]
    typer.echo(latex(frame, title), nl=False)


def _root(path: Path) -> Path:
    """The folder of an experiment, from it or from its config."""
    if path.is_dir():
        if not (path / "score").is_dir() and not (path / "report").is_dir():
            raise UserError(f"{path} is not the folder of an experiment: it has neither report/ nor score/")
        return path
    if not path.is_file():
        raise UserError(f"{path} does not exist; give the folder of an experiment, such as exp/default, or its config")
    from lowrank_speech.workflow.results import layout_of

    try:
        return Path(layout_of(path).root)
    except (KeyError, AttributeError) as error:
        raise UserError(f"{path} is not the config of an experiment: it has no `output`") from error


def _print_compared(root: Path, other: Path, as_csv: bool, as_latex: bool, as_json: bool) -> None:
    mine, theirs = (_scored(folder) for folder in (root, other))
    shared = [place for place in mine if place in theirs]
    if not shared:
        raise UserError(
            f"{root} and {other} have no system, decoder and test set in common: {_some(mine)} and {_some(theirs)}; "
            f"`lowrank-speech compare` compares any two systems"
        )
    rows = [row for place in shared for row in _compared(place, mine[place], theirs[place])]
    if as_json:
        typer.echo(json.dumps(rows, ensure_ascii=False, allow_nan=False, indent=2))
    elif as_csv:
        import pandas as pd

        typer.echo(pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(index=False), nl=False)
    elif as_latex:
        import pandas as pd

        from lowrank_speech.reporting.latex import comparison

        records = pd.DataFrame(rows, columns=list(COLUMNS)).to_dict("records")
        typer.echo(comparison(records, (str(root), str(other))), nl=False)
    else:
        only = [(folder, _only(one, two)) for folder, one, two in ((root, mine, theirs), (other, theirs, mine))]
        typer.echo(
            "\n".join([*_lines(rows, root, other), *(f"only in {where}: {text}" for where, text in only if text)])
        )


def _scored(root: Path) -> dict[tuple[str, str, str], Path]:
    """(base/task/method, decoder, test) -> folder of the stage score."""
    found = sorted(root.glob("score/*/*/*/*/*/score.json"))
    if not found:
        raise UserError(f"{root} has no scores yet; run the experiment first")
    return {("/".join(path.parts[-6:-3]), path.parts[-3], path.parts[-2]): path.parent for path in found}


def _compared(place: tuple[str, str, str], one: Path, other: Path) -> list[dict[str, Any]]:
    """A row for each metric of two results."""
    from lowrank_speech.scoring import paired

    empty = dict.fromkeys(COLUMNS) | dict(zip(("system", "decoder", "test"), place, strict=True))
    try:
        how = settings_of(one, {}, None)
        found = paired.differences(resampled_of(one, *how), resampled_of(other, *how), (str(one), str(other)))
    except (ValueError, UserError) as error:
        values = [_rates(folder) for folder in (one, other)]
        shared = [metric for metric in values[0] if metric in values[1]]
        return [
            empty
            | {"metric": metric, "first": values[0][metric], "second": values[1][metric]}
            | {"difference": values[0][metric] - values[1][metric], "not_tested": str(error)}
            for metric in shared
        ] or [empty | {"not_tested": str(error)}]
    rows = []
    for metric, d in found.items():
        low, high = d.interval or (None, None)
        values = {"metric": metric, "first": d.first, "second": d.second, "difference": d.difference, "p": d.p}
        values |= {"low": low, "high": high, "unit": d.unit, "units": d.units, "utterances": d.utterances}
        rows.append(empty | values)
    return rows


def _rates(folder: Path) -> dict[str, float]:
    metrics = json.loads((folder / "score.json").read_text(encoding="utf-8")).get("metrics") or {}
    return {name: metrics[name] for name in ("wer", "cer", "accuracy") if metrics.get(name) is not None}


def _lines(rows: list[dict[str, Any]], root: Path, other: Path) -> list[str]:
    from lowrank_speech.scoring.paired import BETTER
    from lowrank_speech.scoring.text import table

    shown = []
    for row in rows:
        if row["metric"] is None:
            continue
        scale, digits = (1, 4) if row["metric"] == "act_cprimary" else (100, 2)
        values = [f"{scale * row[key]:.{digits}f}" for key in ("first", "second")]
        ends = None if row["low"] is None else f"{scale * row['low']:+.{digits}f} - {scale * row['high']:+.{digits}f}"
        said = "not tested"
        if row["low"] is not None:
            better = row["difference"] * BETTER[row["metric"]] > 0
            said = "not told apart" if row["low"] <= 0 <= row["high"] else "better" if better else "worse"
        p = None if row["p"] is None else f"{row['p']:.3f}"
        name = row["metric"] if scale == 1 else f"%{row['metric']}"
        place = f"{row['system']}/{row['decoder']}/{row['test']}"
        shown.append([place, name, *values, f"{scale * row['difference']:+.{digits}f}", ends, p, said])
    head = ["system", "metric", "first", "second", "difference", "interval", "p", "the first is"]
    lines = [f"first: {root}, second: {other}", "", *table(head, shown), ""]
    reasons = dict.fromkeys(row["not_tested"] for row in rows if row["not_tested"])
    return [*lines, *(f"not tested: {reason}" for reason in reasons)]


def _only(one: dict[tuple[str, str, str], Path], other: dict[tuple[str, str, str], Path]) -> str:
    return _some({place: path for place, path in one.items() if place not in other})


def _some(places: dict[tuple[str, str, str], Path]) -> str:
    names = ["/".join(place) for place in places]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
