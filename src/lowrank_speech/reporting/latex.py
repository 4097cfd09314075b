"""Tables for LaTeX papers, from the rows of results.csv; they need the package booktabs.

The best error of each base, task, decoder and test set is in bold. Systems that a paired test does not tell apart from
it are not marked: results.txt and comparisons.csv have the tests.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}
KEYS = ("task", "base", "decoder", "test")
ERRORS = {"asr": (("wer", r"WER [\%]", 1), ("cer", r"CER [\%]", 1)), "lid": (("accuracy", r"accuracy [\%]", 1),)}
"""Type of the task -> its metrics: column, title, 1 if shown in percent."""
COST = ("act_cprimary", r"$C_\mathrm{primary}$", 0)


def escaped(text: str) -> str:
    """``text`` with LaTeX's special characters escaped."""
    return "".join(SPECIAL.get(character, character) for character in text)


def latex(frame: pd.DataFrame, title: str) -> str:
    """A table per type of task, from rows as of results.csv. ``title``: the caption begins with it."""
    tables = [_table(rows.reset_index(drop=True), str(kind), title) for kind, rows in frame.groupby("type", sort=False)]
    return "\n".join(["% Needs \\usepackage{booktabs}", *tables])


def _table(rows: pd.DataFrame, kind: str, title: str) -> str:
    metrics = [*ERRORS[kind], *([COST] if kind == "lid" else [])]
    named = [key for key in KEYS if key == "base" or rows[key].nunique() > 1]
    columns = [*named, "method"]
    head = [*map(escaped, columns), "parameters [M]", r"fewer [\%]"]
    for _, name, percent in metrics:
        head += [name, *(["95 \\% interval"] if name == metrics[0][1] and percent else [])]
    best = _best(rows, metrics)
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{escaped(title)}}}",
        f"  \\begin{{tabular}}{{{'l' * len(columns)}{'r' * (len(head) - len(columns))}}}",
        r"    \toprule",
        f"    {' & '.join(head)} \\\\",
        r"    \midrule",
    ]
    before = None
    for index, row in rows.iterrows():
        place = tuple(row[key] for key in ("task", "base"))
        if before is not None and place != before:
            lines.append(r"    \midrule")
        before = place
        cells = [escaped(str(row[key])) for key in columns]
        cells += [_number(row["parameters_total"], 1e-6), _number(row["reduction"], 100)]
        for number, (metric, _, percent) in enumerate(metrics):
            scale, digits = (100, 1) if percent else (1, 3)
            shown = _number(row[metric], scale, digits)
            cells.append(f"\\textbf{{{shown}}}" if (index, metric) in best else shown)
            if not number and percent:
                low, high = (_number(row[f"{metric}_{end}"], scale, digits) for end in ("low", "high"))
                cells.append("--" if "--" in (low, high) else f"[{low}, {high}]")
        lines.append(f"    {' & '.join(cells)} \\\\")
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}", ""])


def _best(rows: pd.DataFrame, metrics: Sequence[tuple[str, str, int]]) -> set[tuple[int, str]]:
    """Rows and metrics with the best value among the systems that can be compared; all of them at a tie."""
    found = set()
    for _, group in rows.groupby(list(KEYS), sort=False):
        for metric, _, _ in metrics:
            known = group[metric].dropna()
            if len(known) > 1:
                value = known.max() if metric == "accuracy" else known.min()
                found |= {(index, metric) for index in known.index[known == value]}
    return found


def _number(value: float, scale: float = 1, digits: int = 1) -> str:
    return "--" if pd.isna(value) else f"{value * scale:.{digits}f}"


def comparison(rows: Sequence[Mapping[str, object]], names: tuple[str, str]) -> str:
    """The comparison of two experiments, named ``names``, as a table; ``rows`` as of ``cli_results``."""
    head = ["system", "decoder", "test", "metric", *map(escaped, names), "difference", "95 \\% interval", "$p$"]
    lines = [
        "% Needs \\usepackage{booktabs}",
        r"\begin{tabular}{llllrrrrr}",
        r"  \toprule",
        f"  {' & '.join(head)} \\\\",
        r"  \midrule",
    ]
    for row in rows:
        scale, digits = (1, 3) if row["metric"] == "act_cprimary" else (100, 2)
        values = [_number(row[key], scale, digits) for key in ("first", "second", "difference")]
        low, high = (_number(row[key], scale, digits) for key in ("low", "high"))
        ends = "--" if "--" in (low, high) else f"[{low}, {high}]"
        place = [escaped(str(row[key])) for key in ("system", "decoder", "test", "metric")]
        lines.append(f"  {' & '.join([*place, *values, ends, _number(row['p'], 1, 3)])} \\\\")
    return "\n".join([*lines, r"  \bottomrule", r"\end{tabular}", ""])
