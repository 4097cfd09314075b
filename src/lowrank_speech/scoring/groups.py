"""Costs of parts of the test set: by duration of the segments, and by their source.

A part is scored as a test set of its own, with the ratios and decisions against all languages. Its costs average over
the languages that have segments in it. With fewer than two languages, it has accuracies and Cllr, but no costs.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lowrank_speech.scoring import bootstrap
from lowrank_speech.scoring.evaluation import METRICS, Evaluation, LargeEvaluation, evaluation
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.scoring.survey import Survey


def named(values: np.ndarray) -> dict[str, float | None]:
    """The values (6,) of ``METRICS`` by name."""
    return dict(zip(METRICS, map(finite, values), strict=True))


def finite(value: float) -> float | None:
    """None instead of an infinite value, which JSON does not know: Cllr, if a true language has likelihood 0."""
    return float(value) if np.isfinite(value) else None


def intervals(
    whole: Evaluation | LargeEvaluation,
    values: Mapping[str, float | None],
    units: np.ndarray,
    options: ScoreOptions,
    seed: int,
) -> tuple[dict[str, list[float] | None], dict[str, float] | None]:
    """The interval of each of the ``METRICS`` (None: there is none), and the bounds of the grid's error."""
    if not options.bootstrap or not bootstrap.varies(units, whole.truth):
        return dict.fromkeys(METRICS), None
    resampled, error = whole.resampled(units, seed)
    limits = {name: bootstrap.interval(v, options.confidence) for name, v in zip(METRICS, resampled.T, strict=True)}
    return {name: None if values[name] is None else limits[name] for name in METRICS}, error


def duration_bins(
    ids: Sequence[str], durations: Mapping[str, str], edges: Sequence[float], name: str
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Seconds (S,), bin (S,) and the names of the bins: below the first edge, ..., at least the last one.

    durations: id -> seconds, as text; ``name`` of the file, for messages. ValueError: a segment is missing, or its
    duration is not a positive number.
    """
    seconds = np.empty(len(ids))
    for i, one in enumerate(ids):
        if one not in durations:
            raise ValueError(f"{name}: there is no duration of segment {one!r}; add it")
        try:
            seconds[i] = float(durations[one])
        except ValueError:
            seconds[i] = np.nan
        if not 0 < seconds[i] < np.inf:
            raise ValueError(f"{name}: segment {one!r} has the duration {durations[one]!r}; expected seconds, above 0")
    if not edges:
        return seconds, np.zeros(len(ids), dtype=int), ["all"]
    names = [f"below {edges[0]:g} s"]
    names += [f"{low:g} to {high:g} s" for low, high in pairwise(edges)]
    return seconds, np.searchsorted(edges, seconds, side="right"), [*names, f"{edges[-1]:g} s or more"]


def source_bins(ids: Sequence[str], sources: Mapping[str, str], name: str) -> tuple[np.ndarray, list[str]]:
    """Bin (S,) and name of each source, sorted. ValueError: a segment has no source."""
    for one in ids:
        if one not in sources:
            raise ValueError(f"{name}: there is no source of segment {one!r}; add it")
    names, bins = np.unique([sources[one] for one in ids], return_inverse=True)
    return bins.reshape(-1), [str(one) for one in names]


def breakdown(
    survey: Survey,
    bins: np.ndarray,
    names: Sequence[str],
    languages: Sequence[str],
    units: np.ndarray,
    options: ScoreOptions,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """The metrics of each part that has segments; ``bins`` (S,): its number; ``units`` (S,): bootstrap units."""
    found = {}
    for k, name in enumerate(names):
        rows = np.flatnonzero(bins == k)
        if len(rows):
            found[name] = summary(survey, rows, languages, units[rows], options, seed)
    return found


def summary(
    survey: Survey, rows: np.ndarray, languages: Sequence[str], units: np.ndarray, options: ScoreOptions, seed: int
) -> dict[str, Any]:
    """``METRICS`` (None: not defined) and their ``interval`` for the segments ``rows``, ``segments``, ``languages``
    (number), ``lacking`` (languages without segments)."""
    present = np.unique(survey.truth[rows])
    part = evaluation(survey.subset(rows, present, options.betas), options)
    if len(present) > 1:
        values = named(part.metrics()[0])
        limits, _ = intervals(part, values, units, options, seed)
    else:
        right = float(part.survey.right.mean())
        values = dict.fromkeys(METRICS) | {"accuracy": right, "macro_accuracy": right}
        values["cllr"], limits = finite(part.survey.loss.mean()), dict.fromkeys(METRICS)
    return values | {
        "interval": limits,
        "segments": len(rows),
        "languages": len(present),
        "lacking": [language for i, language in enumerate(languages) if i not in set(present.tolist())],
    }
