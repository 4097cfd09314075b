"""Plot of a factorisation: singular values of each layer, and where they were truncated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from lowrank_speech.artefact import atomic
from lowrank_speech.reporting.plots import png

COLUMNS = 3
LEAST = 1e-6  # smaller values are not shown; they are close to the rounding error of the weights


def write_spectra(path: str | Path, layers: Sequence[Mapping[str, Any]], dpi: int = 120) -> None:
    """Draw ``spectra_figure`` of the report's rows to the PNG file ``path``."""
    with atomic(path) as temporary:
        temporary.write_bytes(png(spectra_figure, layers, "light", dpi))


def spectra_figure(layers: Sequence[Mapping[str, Any]]) -> Figure:
    """Singular values relative to the largest one; one panel for layers whose names differ only in a number.

    ``layers``: rows of a factorisation report with ``name``, ``d_out``, ``d_in``, ``rank`` and ``spectrum``. Dark lines
    are early layers, light lines late ones; the dot is the rank.
    """
    panels: dict[str, list[Mapping[str, Any]]] = {}
    for layer in layers:
        pattern = ".".join("*" if part.isdigit() else part for part in layer["name"].split("."))
        if layer["spectrum"]:
            panels.setdefault(pattern, []).append(layer)
    if not panels:
        figure = plt.figure(figsize=(6, 1))
        figure.text(0.5, 0.5, "no spectra, because random factors do not use them", ha="center", va="center")
        return figure
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4.4 * columns, 3.2 * rows + 0.3), squeeze=False, layout="constrained", sharey=True
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (pattern, members) in zip(grid.flat, panels.items(), strict=False):
        shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.9, len(members)))
        for layer, shade in zip(members, shades, strict=True):
            values = np.maximum(layer["spectrum"], LEAST)
            # The values are evenly spaced, from the first to the last.
            number = np.round(np.linspace(0, min(layer["d_out"], layer["d_in"]) - 1, len(values))) + 1
            axes.plot(number, values, color=shade, linewidth=1.1)
            cut = np.exp(np.interp(layer["rank"], number, np.log(values)))
            axes.plot(layer["rank"], cut, "o", color=shade, markersize=4, markeredgewidth=0)
        axes.set_yscale("log")
        # Plain numbers, because the theme does not parse math.
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(LogFormatter())
        axes.tick_params(which="both", labelsize=8)
        axes.set_title("\n".join(pattern.rsplit(".", 1)), fontsize=8.5)
        axes.set_xlabel("singular value")
    for axes in grid[:, 0]:
        axes.set_ylabel("over the largest")
    return figure
