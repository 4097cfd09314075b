"""Operating points of many trials: exact, without sorting all of them, one language at a time.

S segments, N languages; a trial is a pair (segment, language). Only thresholds at the ratio of a target trial can be
the best for a cost or a corner of the ROC's convex hull: raising the threshold from one target trial towards the next
loses false alarms and no target. So there are at most S + 1 operating points instead of S N. "Accept u" means: accept
all ratios of at least u. Segments are grouped by true language; a block of one language is in use at a time.

Weights: ``balanced``, as in C_avg (languages have the same weight), or ``equal`` (trials have the same weight).
"""

from dataclasses import dataclass

import numpy as np

from lowrank_speech.scoring.detection import eer_rocch


@dataclass(frozen=True)
class Curve:
    """Operating points (K + 2), from accepting everything to rejecting everything.

    ``threshold``: the lowest accepted ratio, -inf and +inf at the ends; ``p_miss``, ``p_fa``: shares, float64.
    """

    threshold: np.ndarray
    p_miss: np.ndarray
    p_fa: np.ndarray

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """P_miss and P_fa as (1, K), as ``detection`` wants them."""
        return self.p_miss[None], self.p_fa[None]


class Trials:
    """Ratios grouped by the true language of their segments.

    llr: (S, N) in any order, float32 or float64; truth: (S,). Attributes: ``order`` (S,), the original row of each row;
    ``llr`` (S, N) in that order; ``sizes`` (N,), segments of each language; ``rows``, a slice for each language.
    """

    def __init__(self, llr: np.ndarray, truth: np.ndarray):
        self.n = llr.shape[1]
        self.order = np.argsort(truth, kind="stable")
        self.llr = llr[self.order]
        self.sizes = np.bincount(truth, minlength=self.n)
        ends = np.cumsum(self.sizes)
        self.rows = [slice(int(end - size), int(end)) for end, size in zip(ends, self.sizes, strict=True)]

    def own(self, j: int) -> np.ndarray:
        """Ratios of the target trials of language j, sorted."""
        return np.sort(self.llr[self.rows[j], j])

    def others(self, j: int) -> np.ndarray:
        """Ratios of the non-target trials of the segments of language j, ((N - 1) n_j,)."""
        return np.delete(self.llr[self.rows[j]], j, axis=1).ravel()

    def pooled(self) -> dict[str, Curve]:
        """One threshold for all languages: the curves with ``balanced`` and ``equal`` weights."""
        targets = [self.own(j) for j in range(self.n)]
        u = np.unique(np.concatenate(targets))
        share = {"balanced": 1 / self.sizes / self.n, "equal": np.full(self.n, 1 / self.sizes.sum())}
        miss = {kind: np.zeros(len(u)) for kind in share}
        fa = {kind: np.zeros(len(u)) for kind in share}
        for j, own in enumerate(targets):
            others = self.others(j)
            below = np.searchsorted(own, u, side="left")
            above = _at_least(others, u)
            for kind, weight in share.items():
                miss[kind] += weight[j] * below
                fa[kind] += weight[j] / (self.n - 1) * above
        return {kind: _curve(u, miss[kind], fa[kind]) for kind in share}

    def singles(self) -> dict[str, list[Curve]]:
        """A threshold for each language: a curve for each, with ``balanced`` and ``equal`` weights."""
        targets = [self.own(j) for j in range(self.n)]
        u = [np.unique(own) for own in targets]
        fa = {kind: [np.zeros(len(one)) for one in u] for kind in ("balanced", "equal")}
        total = self.sizes.sum()
        for j in range(self.n):
            columns = np.sort(self.llr[self.rows[j]].T.copy(), axis=1)
            for i in range(self.n):
                if i != j:
                    above = self.sizes[j] - np.searchsorted(columns[i], u[i], side="left")
                    fa["balanced"][i] += above / (self.sizes[j] * (self.n - 1))
                    fa["equal"][i] += above / (total - self.sizes[i])
        miss = [np.searchsorted(own, one, side="left") / len(own) for own, one in zip(targets, u, strict=True)]
        return {kind: [_curve(*three) for three in zip(u, miss, fa[kind], strict=True)] for kind in fa}

    def eer_nearest(self, curve: Curve, columns: range | None = None) -> float:
        """EER at the operating point with minimum |P_miss - P_fa|, also between two target trials; ``equal`` weights.

        ``columns``: the languages of the curve (default: all). P_miss is constant between two target trials, so
        the candidates are the non-target trials between the two at which the curves cross.
        """
        k = int(np.flatnonzero(curve.p_miss <= curve.p_fa)[-1])
        if k == len(curve.p_miss) - 1:  # only rejecting everything
            return float((curve.p_miss[k] + curve.p_fa[k]) / 2)
        low, high = curve.threshold[k : k + 2]
        between, at_low, trials = [], 0, 0
        for j in range(self.n):
            for i in range(self.n) if columns is None else columns:
                if i != j:
                    values = self.llr[self.rows[j], i]
                    trials += len(values)
                    at_low += np.count_nonzero(values == low)
                    between.append(values[(values > low) & (values < high)])
        steps = np.unique(np.concatenate(between), return_counts=True)[1]
        # Past ``low``, its target trials are missed; then the non-target trials go one value at a time.
        rejected = np.cumsum(np.concatenate([[at_low], steps])) / trials
        p_miss = np.concatenate([curve.p_miss[k : k + 1], np.full(len(rejected), curve.p_miss[k + 1])])
        p_fa = np.concatenate([curve.p_fa[k : k + 1], curve.p_fa[k] - rejected])
        gap = np.abs(p_miss - p_fa)
        return float(((p_miss + p_fa) / 2)[gap <= gap.min() + 1e-12].min())


def _at_least(values: np.ndarray, u: np.ndarray) -> np.ndarray:
    """How many of ``values`` are at least each of ``u`` (sorted)."""
    values = np.sort(values[values >= u[0]])
    return len(values) - np.searchsorted(values, u, side="left")


def _curve(u: np.ndarray, p_miss: np.ndarray, p_fa: np.ndarray) -> Curve:
    """The curve with its ends: accept everything, reject everything."""
    return Curve(
        np.concatenate([[-np.inf], u, [np.inf]]),
        np.concatenate([[0.0], p_miss, [1.0]]),
        np.concatenate([[1.0], p_fa, [0.0]]),
    )


def eer(curve: Curve) -> float:
    """EER on the convex hull of the curve."""
    return float(eer_rocch(*curve.points)[0])
