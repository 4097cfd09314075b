"""Plots: error against parameters, cost of training, training curves.

Each function takes the systems and returns a matplotlib figure in the current theme. `write_plots` stores the figures
as PNG files with a white background, and returns them in both themes for the page. Each method has the same colour in
all figures. The palette is that of Okabe and Ito, for colour-blind readers (https://jfly.uni-koeln.de/color/).
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display on a compute node

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from lowrank_speech.artefact import atomic
from lowrank_speech.reporting import durations, language_plots, units
from lowrank_speech.reporting.placing import ceiling, offsets
from lowrank_speech.reporting.systems import Result, System, confidence_level

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D31", "#7570B3")
UNADAPTED = "#8a8a8a"
PANELS = 4
"""Number of panels in a row of the error plot."""
SEQ2SEQ = ("whisper",)
"""Families whose error on dev is measured with teacher forcing (training/losses/seq2seq.py)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
THEMES = {"light": ("#ffffff", "#2b2b2b", "#dddddd"), "dark": ("#1d1f21", "#d6d6d6", "#3a3d40")}
"""Colours of background, ink and grid, as in page.css."""


@dataclass(frozen=True)
class Plot:
    """A figure for the page: PNG bytes with light and with dark background."""

    name: str
    title: str
    caption: str
    light: bytes
    dark: bytes


def write_plots(
    out: Path, systems: Sequence[System], dpi: int, pieces: durations.Pieces | None = None
) -> tuple[list[Path], list[Plot]]:
    """Draw all figures into ``out`` (PNG, ``dpi`` dots per inch); return their paths, and the figures for the page.

    ``pieces``: test sets that cut a split to several lengths; see `durations`.
    """
    paths, plots = [], []
    for name, (title, caption, draw) in {**FIGURES, **language_plots.figures(systems, pieces)}.items():
        images = {theme: png(draw, systems, theme, dpi) for theme in THEMES}
        paths.append(out / f"{name}.png")
        with atomic(paths[-1]) as temporary:
            temporary.write_bytes(images["light"])
        plots.append(Plot(name, title, caption(systems), images["light"], images["dark"]))
    return paths, plots


def png(draw: Callable[[Any], Figure], data: Any, theme: str, dpi: int) -> bytes:
    """PNG bytes of the figure ``draw(data)``, in one of the ``THEMES``."""
    ground, ink, grid = THEMES[theme]
    settings = {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), ground),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), ink),
        **{"grid.color": grid, "axes.grid": True, "grid.linewidth": 0.6, "axes.axisbelow": True},
        **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "font.size": 9.5},
        **{"axes.titlesize": 10.5, "axes.titleweight": "bold", "legend.frameon": False, "text.parse_math": False},
    }
    with plt.rc_context(settings):
        figure = draw(data)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.1)
        plt.close(figure)
    return buffer.getvalue()


def colours(systems: Sequence[System]) -> dict[str, str]:
    """Method -> colour, in the order of the systems; grey for unadapted bases."""
    grey = {s.name.method for s in systems if s.unadapted}
    others = [m for m in dict.fromkeys(s.name.method for s in systems) if m not in grey]
    return dict.fromkeys(grey, UNADAPTED) | {m: PALETTE[i % len(PALETTE)] for i, m in enumerate(others)}


def error_figure(systems: Sequence[System]) -> Figure:
    """Error with its interval against the parameters of the model, one panel per task and test set."""
    shown = list(dict.fromkeys((s.name.task, test) for s in systems for test in s.tests))
    several = len(shown) > len({task for task, _ in shown})
    bases = list(dict.fromkeys(s.name.base for s in systems))
    colour = colours(systems)
    rows = -(-len(shown) // PANELS)
    columns = -(-len(shown) // rows)
    figure, panels = plt.subplots(
        rows, columns, figsize=(4.6 * columns + 0.6, 3.6 * rows + 0.4), squeeze=False, layout="constrained"
    )
    for axes in panels.flat[len(shown) :]:
        axes.set_axis_off()
    for axes, (task, test) in zip(panels.flat, shown, strict=False):
        members = [s for s in systems if s.name.task == task and test in s.tests]
        pairs = [(s, r) for s in members for r in s.results if r.test == test and r.error is not None]
        pairs = [(s, r) for s, r in pairs if r.metrics["parameters_total"] is not None]
        top = ceiling(
            [100 * r.error for _, r in pairs], [100 * (r.error_interval or (0, r.error))[1] for _, r in pairs]
        )
        aside = offsets([r.metrics["parameters_total"] for _, r in pairs])
        for (system, result), points in zip(pairs, aside, strict=True):
            marker = MARKERS[bases.index(system.name.base) % len(MARKERS)]
            _point(axes, system, result, colour[system.name.method], marker, points, top)
        results = [r for s in members for r in s.results if r.test == test]
        chance = [r.metrics["chance_accuracy"] for r in results if r.metrics["chance_accuracy"] is not None]
        level = 100 * (1 - chance[0]) if chance else None
        if level is not None and (top is None or level < top):
            axes.axhline(level, linestyle="--", color=UNADAPTED, linewidth=1)
            axes.annotate(
                "chance", (0, level), xycoords=("axes fraction", "data"), xytext=(3, 3), textcoords="offset points",
                color=UNADAPTED,
            )  # fmt: skip
        metric = results[0].metric
        axes.set(title=f"{task}, {test}" if several else task, xlabel="parameters of the model (millions)")
        axes.set_ylabel("word error rate (%)" if metric == "wer" else f"error: 100 − {metric} (%)")
        axes.margins(x=0.16)
        axes.autoscale_view()
        axes.set_ylim(0, top)
    _legend(figure, colour, bases)
    return figure


def _point(
    axes: Axes, system: System, result: Result, colour: str, marker: str, aside: float, top: float | None
) -> None:
    """A result with its interval, ``aside`` points beside its size; hollow for decoders other than the first.

    Above ``top`` it is an arrow with its value at the upper edge.
    """
    x, y = result.metrics["parameters_total"] / 1e6, 100 * result.error
    # Artists with a transform of their own do not count for the limits of the axes.
    ends = [100 * end for end in result.error_interval or ()]
    axes.update_datalim([(x, min(end, top or end)) for end in (y, *ends)])
    place = axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
    if top is not None and y > top:
        axes.plot(x, 0.94 * top, "^", color=colour, markersize=8, markeredgewidth=0, transform=place, clip_on=False)
        axes.annotate(
            f"{y:.0f}", (x, 0.94 * top), xytext=(aside, 5), textcoords="offset points", ha="center", color=colour,
            fontsize=8, annotation_clip=False,
        )  # fmt: skip
        return
    if ends:
        axes.plot([x, x], ends, color=colour, linewidth=1.2, alpha=0.7, transform=place)
    hollow = result.decoder != system.decoders[0]
    fill = {"markerfacecolor": "none", "markeredgewidth": 1.2} if hollow else {"markeredgewidth": 0}
    axes.plot(x, y, marker, color=colour, markersize=7, transform=place, **fill)


def _legend(figure: Figure, colour: dict[str, str], bases: Sequence[str]) -> None:
    """Legend below the panels: methods by colour, and bases by marker if there are several."""
    handles = [Line2D([], [], color=c, marker="o", linestyle="", label=method) for method, c in colour.items()]
    if len(bases) > 1:
        ink = plt.rcParams["text.color"]
        handles += [
            Line2D([], [], color=ink, marker=MARKERS[i % len(MARKERS)], linestyle="", label=base)
            for i, base in enumerate(bases)
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8))


def cost_figure(systems: Sequence[System]) -> Figure:
    """Cost of training: trained parameters, peak memory and time, with a labelled bar for each system."""
    measures = (
        ("parameters_trained", "parameters trained (millions)", 1e6, units.parameters),
        ("peak_bytes", "peak memory (GB)", 1e9, units.memory),
        ("seconds_train", "training time (minutes)", 60, units.duration),
    )
    colour, several = colours(systems), len({s.name.task for s in systems}) > 1
    names = [
        f"{s.name.task}  {s.name.base}  {s.name.method}" if several else f"{s.name.base}  {s.name.method}"
        for s in systems
    ]
    positions, place = [], 0.0
    for i, system in enumerate(systems):  # leave a gap between blocks of task and base
        block = (system.name.task, system.name.base)
        place += 0.6 if i and block != (systems[i - 1].name.task, systems[i - 1].name.base) else 0.0
        positions.append(place + i)
    figure, panels = plt.subplots(
        1, 3, figsize=(10.6, 0.9 + 0.27 * (positions[-1] + 1)), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (key, title, scale, show) in zip(panels[0], measures, strict=True):
        values = [s.metrics[key] for s in systems]
        shown = [(v or 0) / scale for v in values]
        axes.barh(positions, shown, color=[colour[s.name.method] for s in systems], height=0.78)
        most = max(shown) or 1.0
        for position, value, length in zip(positions, values, shown, strict=True):
            axes.text(length + 0.015 * most, position, show(value), va="center", fontsize=8)
        axes.set_title(title, fontweight="normal")
        axes.set_xlim(0, 1.22 * most)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
    panels[0, 0].set_yticks(positions, names)
    panels[0, 0].set_ylim(positions[-1] + 0.6, -0.6)
    return figure


def curves_figure(systems: Sequence[System]) -> Figure:
    """Training loss and error on dev by epoch: one column of panels per task and base, one line per method."""
    trained = [s for s in systems if s.history]
    if not trained:
        figure = plt.figure(figsize=(6, 1))
        figure.text(0.5, 0.5, "no curves, because nothing was trained", ha="center", va="center")
        return figure
    colour = {m: c for m, c in colours(systems).items() if m in {s.name.method for s in trained}}
    blocks = list(dict.fromkeys((s.name.task, s.name.base) for s in trained))
    width = max(len(blocks), 2)
    figure, panels = plt.subplots(
        2, width, figsize=(2.75 * width + 0.4, 5.0), sharex="col", squeeze=False, layout="constrained"
    )
    for axes in panels[:, len(blocks) :].flat:
        axes.set_axis_off()
    for column, block in enumerate(blocks):
        for system in (s for s in trained if (s.name.task, s.name.base) == block):
            _curve(panels[0, column], system, "loss", 1, colour[system.name.method])
            _curve(panels[1, column], system, "dev_metric", 100, colour[system.name.method])
        panels[0, column].set_title(f"{block[0]}, {block[1]}")
        panels[1, column].set_xlabel("epoch")
        panels[1, column].set_ylim(bottom=0)
        panels[1, column].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panels[1, column].set_ylabel(dev_error(next(s for s in trained if (s.name.task, s.name.base) == block)))
    panels[0, 0].set_ylabel("training loss")
    _legend(figure, colour, ())
    return figure


def dev_error(system: System) -> str:
    """What the error on dev of a system's training is."""
    if system.name.type == "lid":
        return "dev: wrong languages (%)"
    base = system.manifests.get("base", {})
    if base.get("cfg", {}).get("family") in SEQ2SEQ:
        return "dev: token errors,\nteacher-forced (%)"
    return "dev: token errors (%)"


def _curve(axes: Axes, system: System, key: str, scale: float, colour: str) -> None:
    points = [(row["epoch"], scale * row[key]) for row in system.history if key in row and row[key] is not None]
    if points:
        # Mark each point, because a run of one epoch would otherwise show nothing.
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.5, marker=".", markersize=4)


def _of_errors(systems: Sequence[System]) -> str:
    level = confidence_level(result for system in systems for result in system.results)
    parts = ["Lower left is better.", f"Bars are {level} intervals." if level else "No intervals were computed."]
    parts.append("Grey: the base before adaptation. Models of the same size stand side by side.")
    parts.append("An arrow with a value is an error far above the others.")
    if any(len(system.decoders) > 1 for system in systems):
        parts.append("Filled: first decoder; hollow: other decoders.")
    return " ".join(parts)


def _of_costs(systems: Sequence[System]) -> str:
    return "For each system: trained parameters, peak memory of training, time in training steps."


def _of_curves(systems: Sequence[System]) -> str:
    text = (
        "Loss on the training data and error on dev, after each epoch that was evaluated. Decoding uses the weights of "
        "the epoch that is best on dev, unless the recipe says otherwise."
    )
    if any("teacher" in dev_error(s) for s in systems if s.history):
        text += (
            " Teacher-forced: the share of tokens that the decoder gets wrong although it reads the correct ones "
            "before; it is not an error rate of decoding, and lower."
        )
    return text


Caption = Callable[[Sequence[System]], str]
FIGURES: dict[str, tuple[str, Caption, Callable[[Sequence[System]], Figure]]] = {
    "error": ("Error against model size", _of_errors, error_figure),
    "cost": ("Cost of training", _of_costs, cost_figure),
    "curves": ("Training curves", _of_curves, curves_figure),
}
