"""Means and deviations over seeds: methods whose trainings differ only in the seed.

Two systems of a task and base belong together if the manifests of their trainings have equal settings apart from
``seed``, if they start from the same low-rank model, and if their seeds differ. Systems that learn from different
teachers belong together if their teachers do.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from lowrank_speech.reporting import units
from lowrank_speech.reporting.data import Table
from lowrank_speech.reporting.systems import METRICS, System

NAMES = {"wer": "WER %", "accuracy": "accuracy %", "cer": "CER %", "act_cprimary": "C_prim"}
SHOWN = {"asr": ("wer", "cer"), "lid": ("accuracy", "act_cprimary")}
COLUMNS = (
    *("task", "type", "base", "methods", "seeds", "decoder", "test", "metric", "systems", "mean", "deviation"),
    *("lowest", "highest"),
)
"""Columns of seeds.csv; names and order are stable."""


@dataclass(frozen=True)
class Spread:
    """One metric of systems that differ only in the seed, with a decoder on a test set. ``deviation``: of a sample."""

    systems: tuple[System, ...]
    decoder: str
    test: str
    metric: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.values)


def twins(systems: Sequence[System]) -> list[tuple[System, ...]]:
    """Groups of two or more systems that differ only in the seed."""
    found: dict[str, list[System]] = {}
    known = {(s.name.base, s.name.task, s.name.method): s for s in systems}
    for system in systems:
        train = system.manifests["train"]
        if train.get("seed") is None or not train.get("cfg"):
            continue
        group = found.setdefault(json.dumps(_same(system, known), sort_keys=True), [])
        if all(train["seed"] != other.manifests["train"]["seed"] for other in group):
            group.append(system)
    return [tuple(group) for group in found.values() if len(group) > 1]


def _same(system: System, known: Mapping[tuple[str, str, str], System]) -> list[Any]:
    """What systems that differ only in the seed have in common; ``known``: (base, task, method) -> system."""
    name, cfg = system.name, system.manifests["train"].get("cfg") or {}
    shared = {key: value for key, value in cfg.items() if key != "seed"}
    distil = shared.get("distil") or {}
    teacher = known.get((name.base, name.task, distil.get("teacher") or ""))
    if teacher is not None and teacher is not system:
        shared["distil"] = {**distil, "teacher": _same(teacher, known)}
    return [name.task, name.base, name.factorisation, shared]


def spreads(systems: Sequence[System]) -> list[Spread]:
    """Every metric of every group, for each decoder and test set on which two or more of its systems have a value."""
    found = []
    for group in twins(systems):
        for first in group[0].results:
            results = [r for s in group if (r := s.result(first.test, first.decoder)) is not None]
            for metric in METRICS[first.system.type]:
                known = [r for r in results if r.metrics[metric] is not None]
                if len(known) > 1:
                    values = tuple(r.metrics[metric] for r in known)
                    members = tuple(s for s in group if any(r in s.results for r in known))
                    found.append(Spread(members, first.decoder, first.test, metric, values))
    return found


def table(found: Sequence[Spread]) -> Table | None:
    """The table for the page; None without groups."""
    rows = [
        (one.systems[0].name.task, one.systems[0].name.base, _methods(one), one.decoder, one.test, *_cells(one))
        for one in found
        if one.metric in SHOWN[one.systems[0].name.type]
    ]
    note = (
        "Methods whose trainings differ only in the seed. The deviation is that of a sample; it covers the seed of the "
        "training on this test set, not the choice of test data, which the intervals cover."
    )
    header = ("task", "base", "methods", "decoder", "test", "metric", "systems", "mean", "deviation", "lowest…highest")
    return Table("Over seeds", header, tuple(rows), 6, note) if rows else None


def lines(found: Sequence[Spread], task: str, base: str) -> list[str]:
    """Sentences on the primary metric for the terminal."""
    own = [one for one in found if (one.systems[0].name.task, one.systems[0].name.base) == (task, base)]
    return [
        f"{len(one.values)} seeds of {_methods(one)} ({one.decoder}, {one.test}): {NAMES[one.metric]} "
        f"{_cells(one)[2]} ± {_cells(one)[3]} (mean and deviation)"
        for one in own
        if one.metric == METRICS[one.systems[0].name.type][0]
    ]


def _methods(one: Spread) -> str:
    return ", ".join(system.name.method for system in one.systems)


def _cells(one: Spread) -> tuple[str, ...]:
    if one.metric == "act_cprimary":
        ends = units.interval(min(one.values), max(one.values), 3, 1)
        return NAMES[one.metric], str(len(one.values)), units.cost(one.mean), units.cost(one.deviation), ends
    ends = units.interval(min(one.values), max(one.values))
    mean, deviation = units.percent(one.mean), units.percent(one.deviation, 2)
    return NAMES[one.metric], str(len(one.values)), mean, deviation, ends


def as_frame(found: Sequence[Spread]) -> pd.DataFrame:
    """seeds.csv: a row per group, decoder, test set and metric; raw fractions."""
    rows = []
    for one in found:
        name = one.systems[0].name
        seeds = ", ".join(str(s.manifests["train"]["seed"]) for s in one.systems)
        place = (name.task, name.type, name.base, _methods(one), seeds, one.decoder, one.test, one.metric)
        rows.append((*place, len(one.values), one.mean, one.deviation, min(one.values), max(one.values)))
    return pd.DataFrame(rows, columns=list(COLUMNS))
