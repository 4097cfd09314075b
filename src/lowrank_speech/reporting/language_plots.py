"""Plots of language recognition: DET curves, reliability diagram, confusion heat maps, from the metrics of score.json.

`figures` returns those for which there are results, in the form of `plots.FIGURES`. Methods have the colours of the
other plots; bases and decoders have their line styles.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import NormalDist

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lowrank_speech.reporting import durations
from lowrank_speech.reporting.systems import Result, System

STYLES = ("-", "--", ":", "-.")
PANELS = 4
"""Number of panels in a row."""
MAPS = 8
"""Number of confusion heat maps."""
NAMED = 30
"""Languages up to which a heat map names each of them."""
TICKS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
NORMAL = NormalDist()

Caption = Callable[[Sequence[System]], str]
Drawing = tuple[str, Caption, Callable[[Sequence[System]], Figure]]


def figures(systems: Sequence[System], pieces: durations.Pieces | None = None) -> dict[str, Drawing]:
    """Name -> title, caption and function of each figure; empty without language recognition.

    ``pieces``: the test sets that cut a split to several lengths.
    """
    found: dict[str, Drawing] = {}
    if _having(systems, "det"):
        found["det"] = ("DET curves", _of_det, det_figure)
    if _having(systems, "reliability"):
        found["reliability"] = ("Reliability of language posteriors", _of_reliability, reliability_figure)
    if _having(systems, "confusion"):
        found["confusion"] = ("Confusions of languages", _of_confusion, confusion_figure)
    if pieces and durations.curves(systems, pieces):
        draw = partial(durations.figure, pieces=pieces)
        found["durations"] = ("Cost against duration", durations.caption, draw)
    return found


def _having(systems: Sequence[System], key: str) -> list[Result]:
    """Results of language recognition that have ``key``."""
    return [r for s in systems if s.name.type == "lid" for r in s.results if r.score.get(key)]


def det_figure(systems: Sequence[System]) -> Figure:
    """P_miss against P_fa on normal-deviate axes, one panel per task and test set."""
    figure, panels = _panels(systems, "det")
    for axes, results in panels:
        for result, look in results:
            det = result.score["det"]
            points = [
                (NORMAL.inv_cdf(fa), NORMAL.inv_cdf(miss))
                for fa, miss in zip(det["p_fa"], det["p_miss"], strict=True)
                if 0 < fa < 1 and 0 < miss < 1
            ]
            if points:
                # Single marks show a curve of a few points, as of small test sets.
                axes.plot(*zip(*points, strict=True), linewidth=1.4, marker="." if len(points) < 25 else "", **look)
        ends = [NORMAL.inv_cdf(TICKS[0]), NORMAL.inv_cdf(TICKS[-1])]
        axes.plot(ends, ends, color=plt.rcParams["grid.color"], linewidth=1, zorder=1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks([NORMAL.inv_cdf(tick) for tick in TICKS], [f"{100 * tick:g}" for tick in TICKS])
        axes.set(xlim=ends, ylim=ends, xlabel="false alarms (%)", ylabel="misses (%)", aspect="equal")
    return figure


def reliability_figure(systems: Sequence[System]) -> Figure:
    """Share of right decisions against confidence, one panel per task and test set."""
    figure, panels = _panels(systems, "reliability")
    for axes, results in panels:
        axes.plot([0, 100], [0, 100], color=plt.rcParams["grid.color"], linewidth=1, zorder=1)
        for result, look in results:
            bins = result.score["reliability"]
            confidence, accuracy = (100 * np.array(bins[name]) for name in ("confidence", "accuracy"))
            axes.plot(confidence, accuracy, linewidth=1.2, marker="o", markersize=3.5, **look)
        axes.set(xlim=(0, 102), ylim=(0, 102), xlabel="confidence (%)", ylabel="right (%)", aspect="equal")
    return figure


def confusion_figure(systems: Sequence[System]) -> Figure:
    """Share of each language's segments by recognised language, a heat map for each of the first ``MAPS`` results."""
    shown = _having(systems, "confusion")[:MAPS]
    figure, panels = grid(len(shown), 3.6)
    for axes, result in zip(panels, shown, strict=False):
        counts, names = np.array(result.score["confusion"], dtype=float), result.score["languages"]
        image = axes.imshow(
            100 * counts / counts.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=100, interpolation="nearest"
        )
        axes.grid(visible=False)
        every = range(len(names)) if len(names) <= NAMED else ()
        axes.set_xticks(every, [names[i] for i in every], rotation=90, fontsize=7)
        axes.set_yticks(every, [names[i] for i in every], fontsize=7)
        axes.set_title("\n".join((str(result.system), f"{result.decoder}, {result.test}")), fontsize=8)
        axes.set(xlabel="recognised", ylabel="true")
    figure.colorbar(image, ax=panels[: len(shown)], label="% of the true language", shrink=0.8)
    return figure


def grid(number: int, size: float) -> tuple[Figure, list[Axes]]:
    """A figure with ``number`` square panels, and its axes."""
    rows = -(-number // PANELS)
    columns = -(-number // rows)
    figure, panels = plt.subplots(
        rows, columns, figsize=(size * columns + 0.8, size * rows + 0.6), squeeze=False, layout="constrained"
    )
    for axes in panels.flat[number:]:
        axes.set_axis_off()
    return figure, list(panels.flat)


def _panels(
    systems: Sequence[System], key: str
) -> tuple[Figure, list[tuple[Axes, list[tuple[Result, dict[str, str]]]]]]:
    """A panel for each task and test set with its results and their look; the legend is below."""
    from lowrank_speech.reporting.plots import colours

    results = _having(systems, key)
    colour = colours(systems)
    lines = list(dict.fromkeys((r.system.base, r.decoder) for r in results))
    places = list(dict.fromkeys((r.system.task, r.test) for r in results))
    figure, panels = grid(len(places), 3.6)
    found = []
    for axes, place in zip(panels, places, strict=False):
        members = [r for r in results if (r.system.task, r.test) == place]
        styles = [STYLES[lines.index((r.system.base, r.decoder)) % len(STYLES)] for r in members]
        looks = [{"color": colour[r.system.method], "linestyle": s} for r, s in zip(members, styles, strict=True)]
        axes.set_title(", ".join(place))
        found.append((axes, list(zip(members, looks, strict=True))))
    methods = dict.fromkeys(r.system.method for r in results)
    handles = [Line2D([], [], color=colour[method], label=method) for method in methods]
    if len(lines) > 1:
        ink = plt.rcParams["text.color"]
        handles += [
            Line2D([], [], color=ink, linestyle=STYLES[i % len(STYLES)], label=", ".join(line))
            for i, line in enumerate(lines)
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return figure, found


def _of_det(systems: Sequence[System]) -> str:
    return (
        "Misses against false alarms for every threshold that is common to all languages, on normal-deviate axes; "
        "all languages have the same weight. Lower left is better. Systems without an error in some range end there."
    )


def _of_reliability(systems: Sequence[System]) -> str:
    return (
        "Segments in bins of their confidence, the posterior of the recognised language with equal priors. On the "
        "diagonal, the system is calibrated; below it, it is too sure."
    )


def _of_confusion(systems: Sequence[System]) -> str:
    number = len(_having(systems, "confusion"))
    text = "Rows: true language, which sum to 100 %; columns: recognised language."
    return text if number <= MAPS else f"{text} The first {MAPS} of {number} results."
