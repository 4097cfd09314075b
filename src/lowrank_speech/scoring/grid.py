"""Bootstrap of many trials: costs of all resamples at a grid of thresholds, as products of matrices.

For each language: W (B, U) @ C (U, K), where W counts how often each of its U units (segments, speakers) was drawn, and
C how many trials of a unit each of the K thresholds accepts. Minimum costs and pooled EER of a resample are then those
over the grid. The grid is fine where a cost is near its minimum, and coarse elsewhere.

Error of the grid: between two thresholds P_miss is at least that of the lower and P_fa at least that of the higher one,
so min_k P_miss(t_k) + beta P_fa(t_k+1) is a lower bound of the resample's minimum, and the grid's minimum an upper one.
:func:`bound` is the largest difference over the resamples. The error itself is much smaller, since costs are flat near
their minimum (docs/language-recognition.md). Accuracies, actual costs and Cllr need no grid.

Costs with a threshold for each language have too many thresholds for a grid: ``per_language`` computes them exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lowrank_speech.scoring.cllr import hull
from lowrank_speech.scoring.detection import eer_rocch, minimum_cost
from lowrank_speech.scoring.trials import Curve, Trials

POINTS = 128
"""Thresholds for each cost."""
UNITS = 20_000
"""Units of a language in one product, which bounds the memory."""
DRAWS = 4_000_000
"""Units drawn at a time."""


def thresholds(curve: Curve, miss: float, fa: float, number: int = POINTS) -> np.ndarray:
    """At most ``number`` + 1 thresholds of ``curve`` for the cost ``miss`` P_miss + ``fa`` P_fa, sorted.

    From one to the next, the sum of the changes of both terms is about a constant plus a share of the distance to the
    minimum cost. The best threshold is always among them.
    """
    p_miss, p_fa, u = curve.p_miss[1:-1], curve.p_fa[1:-1], curve.threshold[1:-1]
    cost = miss * p_miss + fa * p_fa
    best = int(cost.argmin())
    excess = cost - cost[best]
    step = miss * np.diff(p_miss) - fa * np.diff(p_fa)
    position = np.concatenate([[0.0], np.cumsum(step / (excess[1:] + excess[:-1] + 0.02 * cost[best] + 1e-9))])
    chosen = np.searchsorted(position, np.linspace(0, position[-1], number), side="left")
    return u[np.unique(np.append(np.minimum(chosen, len(u) - 1), best))]


def crossing(curve: Curve) -> tuple[float, float]:
    """Weights (miss, fa), of sum 1, of the cost whose minimum over the curve is its EER on the convex hull."""
    corners = hull(curve.p_miss, curve.p_fa)
    x, y = curve.p_miss[corners], curve.p_fa[corners]
    k = min(int((x <= y).sum()), len(x) - 1)  # the edge from k - 1 to k crosses the diagonal
    rise, run = x[k] - x[k - 1], y[k - 1] - y[k]
    return run / (rise + run), rise / (rise + run)


@dataclass
class Units:
    """The bootstrap units of the segments of one language.

    ``unit`` (S_j,): unit of each of its segments, in the order of :class:`Trials`; ``number``: how many there are.
    """

    unit: np.ndarray
    number: int

    @classmethod
    def of(cls, trials: Trials, units: np.ndarray) -> list["Units"]:
        """Units (S,) of all segments -> those of each language; a unit in two languages counts as two."""
        ordered = units[trials.order]
        found = (np.unique(ordered[rows], return_inverse=True) for rows in trials.rows)
        return [cls(inverse.reshape(-1), len(names)) for names, inverse in found]


def draws(unit: Units, language: int, number: int, seed: int) -> Iterator[np.ndarray]:
    """Yield blocks (b, U) of counts, uint8: how often each unit of a language was drawn in ``number`` resamples.

    Each language has its own stream, so blocks of any size give the same resamples.
    """
    rng = np.random.default_rng([seed, language])
    block = max(1, min(number, DRAWS // unit.number))
    for start in range(0, number, block):
        rows = min(block, number - start)
        drawn = rng.integers(unit.number, size=(rows, unit.number))
        drawn += np.arange(rows)[:, None] * unit.number
        counts = np.bincount(drawn.ravel(), minlength=rows * unit.number)
        yield counts.astype(np.uint8).reshape(rows, unit.number)


@dataclass
class Sums:
    """What costs of the resamples need.

    ``size`` (B, N): drawn segments of each language; ``linear`` (B, N, L): sums of the given values over them;
    ``p_miss``, ``p_fa`` (2, B, K + 2): rates at the grid and both ends, with ``balanced`` and with ``equal`` weights.
    """

    size: np.ndarray
    linear: np.ndarray
    p_miss: np.ndarray
    p_fa: np.ndarray


def sums(trials: Trials, units: Sequence[Units], linear: np.ndarray, grid: np.ndarray, number: int, seed: int) -> Sums:
    """Resample ``number`` times; ``linear`` (S, L), float32: values of each segment, in the order of ``trials``."""
    n, width, k = trials.n, linear.shape[1], len(grid)
    size, values = np.zeros((number, n)), np.zeros((number, n, width))
    hit, alarm = (np.zeros((2, number, k)) for _ in range(2))
    for j, unit in enumerate(units):
        weights = np.concatenate(list(draws(unit, j, number, seed)))
        total = np.zeros((number, 1 + width + 2 * k))
        for start in range(0, unit.number, UNITS):
            stop = min(start + UNITS, unit.number)
            table = _table(trials, j, unit, linear, grid, start, stop)
            with np.errstate(invalid="ignore"):  # a loss can be infinite, and its segment not drawn
                total += weights[:, start:stop].astype(np.float32) @ table
        size[:, j], values[:, j] = total[:, 0], total[:, 1 : 1 + width]
        accepted, alarms = total[:, 1 + width : 1 + width + k], total[:, 1 + width + k :]
        hit[0] += accepted / size[:, j : j + 1] / n
        hit[1] += accepted
        alarm[0] += alarms / size[:, j : j + 1] / (n * (n - 1))
        alarm[1] += alarms
    segments = size.sum(axis=1)[:, None]
    hit[1] /= segments
    alarm[1] /= segments * (n - 1)
    one, zero = np.ones((2, number, 1)), np.zeros((2, number, 1))
    return Sums(size, values, np.concatenate([zero, 1 - hit, one], axis=2), np.concatenate([one, alarm, zero], axis=2))


def _table(
    trials: Trials, j: int, unit: Units, linear: np.ndarray, grid: np.ndarray, start: int, stop: int
) -> np.ndarray:
    """C for the units ``start`` to ``stop`` of language j: number of segments, ``linear``, accepted trials; float32."""
    rows = np.flatnonzero((unit.unit >= start) & (unit.unit < stop))
    here, llr = unit.unit[rows] - start, trials.llr[trials.rows[j]][rows]
    units, k = stop - start, len(grid)
    table = np.zeros((units, 1 + linear.shape[1] + 2 * k), dtype=np.float32)
    table[:, 0] = np.bincount(here, minlength=units)
    for column, values in enumerate(linear[trials.rows[j]][rows].T, start=1):
        table[:, column] = np.bincount(here, weights=values, minlength=units)
    own = np.zeros(llr.shape, dtype=bool)
    own[:, j] = True
    for start_of, chosen in ((1 + linear.shape[1], own), (1 + linear.shape[1] + k, ~own)):
        segment, language = np.nonzero(chosen & (llr >= grid[0]))
        last = np.searchsorted(grid, llr[segment, language], side="right") - 1  # the highest threshold that accepts
        counts = np.bincount(here[segment] * k + last, minlength=units * k).reshape(units, k)
        table[:, start_of : start_of + k] = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    return table


def minimum(found: Sums, beta: float) -> np.ndarray:
    """Minimum C_avg(beta) of each resample with one threshold for all languages, (B,)."""
    return minimum_cost(found.p_miss[0], found.p_fa[0], beta)


def lowest_minimum(found: Sums, beta: float) -> np.ndarray:
    """A lower bound of what :func:`minimum` would find with all thresholds, (B,)."""
    return (found.p_miss[0, :, :-1] + beta * found.p_fa[0, :, 1:]).min(axis=1)


def eer(found: Sums, kind: str) -> np.ndarray:
    """Pooled EER of each resample, (B,); ``nearest`` interpolates between two thresholds of the grid."""
    p_miss, p_fa = found.p_miss[1], found.p_fa[1]
    if kind == "rocch":
        return eer_rocch(p_miss, p_fa)
    rows = np.arange(len(p_miss))
    k = np.maximum((p_miss <= p_fa).sum(axis=1) - 1, 0)
    before, after = (p_miss - p_fa)[rows, k], (p_miss - p_fa)[rows, np.minimum(k + 1, p_miss.shape[1] - 1)]
    share = np.where(after > before, -before / np.where(after > before, after - before, 1.0), 0.0)
    return p_miss[rows, k] + share * (p_miss[rows, np.minimum(k + 1, p_miss.shape[1] - 1)] - p_miss[rows, k])


def lowest_eer(found: Sums) -> np.ndarray:
    """A lower bound of the EER that all thresholds would give, (B,): the hull of points as good as they could be."""
    p_miss, p_fa = found.p_miss[1], found.p_fa[1]
    one, zero = np.ones((len(p_miss), 1)), np.zeros((len(p_miss), 1))
    return eer_rocch(
        np.concatenate([zero, p_miss[:, :-1], one], axis=1), np.concatenate([one, p_fa[:, 1:], zero], axis=1)
    )
