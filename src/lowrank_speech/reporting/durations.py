"""Costs of language recognition against the length of the segments: a table, and one curve for each system.

Test sets that cut one split to several lengths (``test: {s3: {split: test, seconds: 3}}``) are the points of a curve,
together with the uncut test set of the split. Their place is the mean length of what was decoded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lowrank_speech.reporting import units
from lowrank_speech.reporting.data import Table
from lowrank_speech.reporting.systems import Result, System

Pieces = Mapping[str, Mapping[str, str]]
"""Task -> test set -> split, of the test sets whose split is cut to several lengths."""


@dataclass(frozen=True)
class Curve:
    """The results of a system with a decoder (or back end) on the test sets of a split, the shortest segments first."""

    split: str
    system: System
    decoder: str
    points: tuple[tuple[float, Result], ...]


def seconds(result: Result) -> float | None:
    """The mean length of the segments of a result."""
    speech, number = (result.metrics.get(name) for name in ("speech_seconds", "utterances"))
    return speech / number if speech and number else None


def curves(systems: Sequence[System], pieces: Pieces) -> list[Curve]:
    """A curve for each system, decoder and split that has test sets of several lengths."""
    found = []
    for system in systems:
        of = pieces.get(system.name.task) or {}
        for split in dict.fromkeys(of.values()):
            for decoder in system.decoders:
                results = [r for r in system.results if r.decoder == decoder and of.get(r.test) == split]
                points = [(at, r) for r in results if (at := seconds(r)) is not None]
                if len(points) > 1:
                    points.sort(key=lambda point: point[0])
                    found.append(Curve(split, system, decoder, tuple(points)))
    return found


def table(systems: Sequence[System], pieces: Pieces) -> Table | None:
    """Costs by length; None if no test set is cut."""
    rows = []
    for curve in curves(systems, pieces):
        for at, result in curve.points:
            known = result.metrics
            shown = (units.cost(known[key]) for key in ("act_cprimary", "min_cprimary"))
            shares = (units.percent(known[key]) for key in ("eer", "accuracy"))
            where = (curve.system.name.task, curve.split, str(curve.system.name.base), curve.system.name.method)
            rows.append(
                (*where, curve.decoder, result.test, f"{at:.1f}", units.count(known["utterances"]), *shown, *shares)
            )
    if not rows:
        return None
    header = ("task", "split", "base", "method", "decoder", "test", "mean s", "segments")
    costs = ("C_primary actual", "minimum", "EER %", "accuracy %")
    note = "Test sets that set short segments aside have fewer, other segments than the rest."
    return Table("Cost against duration", (*header, *costs), tuple(rows), 6, note)


def figure(systems: Sequence[System], pieces: Pieces) -> Figure:
    """Actual C_primary against the mean length, one panel per task and split."""
    from lowrank_speech.reporting.language_plots import STYLES, grid
    from lowrank_speech.reporting.plots import colours

    found, colour = curves(systems, pieces), colours(systems)
    places = list(dict.fromkeys((c.system.name.task, c.split) for c in found))
    looks = list(dict.fromkeys((c.system.name.base, c.decoder) for c in found))
    drawn, panels = grid(len(places), 4.4)
    for axes, place in zip(panels, places, strict=False):
        for curve in (c for c in found if (c.system.name.task, c.split) == place):
            points = [(at, r.metrics["act_cprimary"]) for at, r in curve.points]
            style = STYLES[looks.index((curve.system.name.base, curve.decoder)) % len(STYLES)]
            axes.plot(
                *zip(*points, strict=True), color=colour[curve.system.name.method], linestyle=style, marker="o",
                markersize=3.5, linewidth=1.4,
            )  # fmt: skip
        axes.set_xscale("log")
        ticks = sorted({round(at, 1) for c in found if (c.system.name.task, c.split) == place for at, _ in c.points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(title=", ".join(place), xlabel="mean length (s)", ylabel="actual C_primary")
        axes.set_ylim(bottom=0)
    methods = dict.fromkeys(c.system.name.method for c in found)
    handles = [Line2D([], [], color=colour[method], label=method) for method in methods]
    if len(looks) > 1:
        ink = plt.rcParams["text.color"]
        handles += [
            Line2D([], [], color=ink, linestyle=STYLES[i % len(STYLES)], label=", ".join(look))
            for i, look in enumerate(looks)
        ]
    drawn.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
    return drawn


def caption(systems: Sequence[System]) -> str:
    return (
        "Each line is a system on test sets of the same split, cut to several lengths. Lower is better; rejecting "
        "everything costs 1."
    )
