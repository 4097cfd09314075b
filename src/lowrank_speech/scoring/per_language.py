"""Bootstrap of many trials with a threshold for each language: minimum costs and EERs, exact, a resample at a time.

All trials of a language whose ratio is at least that of its lowest target trial are sorted once. A resample is one
gather and one cumulative sum over them; the rates are read off at the target trials, which are the only thresholds that
can be best (``trials``). The time grows with the number of such trials. If there are more than ``WINDOW``, thresholds
with far more false alarms than the best one are left out: those whose P_fa alone costs 1.5 times the minimum.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lowrank_speech.scoring.detection import eer_rocch
from lowrank_speech.scoring.grid import Units, draws
from lowrank_speech.scoring.trials import Curve, Trials, eer

WINDOW = 1_000_000


class Columns:
    """The trials of each language, sorted: ready for any weights of the segments."""

    def __init__(self, trials: Trials, singles: dict[str, list[Curve]], betas: Sequence[float]):
        """``singles``: :meth:`Trials.singles` of the original segments."""
        self.n, self.sizes = trials.n, trials.sizes
        lowest = [curve.threshold[1] for curve in singles["balanced"]]
        if sum(int((trials.llr[:, i] >= low).sum()) for i, low in enumerate(lowest)) > WINDOW:
            lowest = [_window(balanced, equal, betas) for balanced, equal in zip(*singles.values(), strict=True)]
        language = np.repeat(np.arange(self.n), trials.sizes)
        others, own, self.other_ends, self.own_ends, self.other_at, self.own_at = [], [], [0], [0], [], []
        for i in range(self.n):
            column = trials.llr[:, i]
            mine = np.arange(trials.rows[i].start, trials.rows[i].stop)
            mine = mine[np.argsort(column[mine], kind="stable")]
            rivals = np.flatnonzero((language != i) & (column >= lowest[i]))
            rivals = rivals[np.argsort(column[rivals], kind="stable")]
            u = np.unique(column[mine])
            u = u[u >= lowest[i]]
            self.other_at.append(np.searchsorted(column[rivals], u, side="left"))
            self.own_at.append(np.searchsorted(column[mine], u, side="left"))
            others.append(rivals.astype(np.int32))
            own.append(mine.astype(np.int32))
        self.others, self.own = others, own

    def rates(self, weights: np.ndarray, share: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """P_miss and P_fa (K,) of each language for the weights (S,) of the segments, with both ends.

        ``share`` (S,): the weights of non-target trials, if they are not those of target trials.
        """
        share = weights if share is None else share
        total = share.sum()
        ends = np.cumsum(self.sizes)
        for i in range(self.n):
            missed = np.concatenate([[0.0], np.cumsum(weights[self.own[i]])])
            passed = np.concatenate([[0.0], np.cumsum(share[self.others[i]])])
            rivals = total - share[ends[i] - self.sizes[i] : ends[i]].sum()
            p_miss = missed[self.own_at[i]] / missed[-1]
            p_fa = (passed[-1] - passed[self.other_at[i]]) / rivals
            yield np.concatenate([[0.0], p_miss, [1.0]]), np.concatenate([[1.0], p_fa, [0.0]])


def _window(balanced: Curve, equal: Curve, betas: Sequence[float]) -> float:
    """The lowest threshold of a language that can be best for any of the costs or the EER."""
    costs = ((balanced.p_miss + beta * balanced.p_fa).min() / beta for beta in betas)
    limit = 1.5 * max(eer(equal), *costs)
    inside = (balanced.p_fa[1:-1] <= limit) | (equal.p_fa[1:-1] <= limit)
    return balanced.threshold[1:-1][inside][0] if inside.any() else balanced.threshold[-2]


def resampled(
    columns: Columns,
    units: Sequence[Units],
    number: int,
    seed: int,
    betas: Sequence[float] | None,
    kind: str | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimum C_primary (``betas``; None: not computed) and mean EER (``kind``) of each resample: (B,), (B,)."""
    language = np.repeat(np.arange(columns.n), columns.sizes)
    streams = [_rows(unit, j, number, seed) for j, unit in enumerate(units)]
    costs, rates = np.full(number, np.nan), np.full(number, np.nan)
    for b in range(number):
        weights = np.concatenate([next(stream)[unit.unit] for stream, unit in zip(streams, units, strict=True)])
        weights = weights.astype(np.float64)
        if betas is not None:
            share = weights / np.bincount(language, weights=weights)[language]
            points = columns.rates(weights, share)
            costs[b] = np.mean([[(m + beta * f).min() for beta in betas] for m, f in points])
        if kind is not None:
            find = (lambda m, f: float(eer_rocch(m[None], f[None])[0])) if kind == "rocch" else _nearest
            rates[b] = np.mean([find(m, f) for m, f in columns.rates(weights)])
    return costs, rates


def _rows(unit: Units, language: int, number: int, seed: int) -> Iterator[np.ndarray]:
    for block in draws(unit, language, number, seed):
        yield from block


def _nearest(p_miss: np.ndarray, p_fa: np.ndarray) -> float:
    """EER at the nearest point, given the points at target trials; in between, P_fa falls in steps taken as small."""
    k = int(np.flatnonzero(p_miss <= p_fa)[-1])
    if k == len(p_miss) - 1:
        return float((p_miss[k] + p_fa[k]) / 2)
    if p_miss[k + 1] <= p_fa[k]:  # past the target trial, P_fa falls to its P_miss
        return float(p_miss[k + 1])
    here, there = p_fa[k] - p_miss[k], p_miss[k + 1] - p_fa[k]
    return float((p_miss[k] + p_fa[k]) / 2 if here <= there else (p_miss[k + 1] + p_fa[k]) / 2)
