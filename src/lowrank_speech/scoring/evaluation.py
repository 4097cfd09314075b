"""Metrics of a set of trials and their bootstrap: exact for few trials, by a grid of thresholds for many.

``Evaluation`` sorts all trials and evaluates any weights of the segments. ``LargeEvaluation`` finds the same values
without sorting them all (``trials``) and resamples on a grid (``grid``). :func:`evaluation` chooses.
"""

import functools

import numpy as np

from lowrank_speech.scoring import bootstrap, cllr, grid, per_language
from lowrank_speech.scoring.detection import (
    Sweep,
    eer_nearest,
    eer_rocch,
    minimum_cost,
    segment_weights,
)
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.scoring.survey import Survey
from lowrank_speech.scoring.trials import Curve, Trials, eer

EERS = {"rocch": eer_rocch, "nearest": eer_nearest}
METRICS = ("accuracy", "macro_accuracy", "act_cprimary", "min_cprimary", "eer", "cllr")
EXACT = 50_000
"""Trials up to which all thresholds are tried in every resample."""


def evaluation(survey: Survey, options: ScoreOptions) -> "Evaluation | LargeEvaluation":
    """The exact one for up to ``EXACT`` trials, else the one for many."""
    return (Evaluation if survey.llr.size <= EXACT else LargeEvaluation)(survey, options)


class _Common:
    """What both kinds share."""

    def __init__(self, survey: Survey, options: ScoreOptions):
        self.survey, self.options = survey, options
        self.truth, self.n = survey.truth, survey.n

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Segments of each language, (N,)."""
        return np.bincount(self.truth, minlength=self.n)

    @functools.cached_property
    def trials(self) -> Trials:
        return Trials(self.survey.llr, self.truth)

    @functools.cached_property
    def pooled(self) -> dict[str, Curve]:
        """Operating points with one threshold for all languages."""
        return self.trials.pooled()

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Sum over languages of the mean over the segments of each, for ``values`` (S, ...)."""
        share = 1 / self.sizes[self.truth]
        return share @ values

    def detection_cllr(self) -> tuple[float, float]:
        """Cllr of the detection ratios in bits: as they are, and after PAV."""
        curve = self.pooled["balanced"]
        return float(self.mean(self.survey.bits)), cllr.minimum(curve.p_miss, curve.p_fa)


class Evaluation(_Common):
    """Metrics of the original segments or any resample, from all operating points."""

    @functools.cached_property
    def sweep(self) -> Sweep:
        return Sweep.of(self.survey.llr, self.truth)

    @functools.cached_property
    def single(self) -> list[Sweep]:
        return [Sweep.of(self.survey.llr, self.truth, np.array([i])) for i in range(self.n)]

    def actual(self, weights: np.ndarray | None = None) -> np.ndarray:
        """C_avg at the thresholds log beta, (B, priors)."""
        return segment_weights(self.truth, self.n, weights) @ self.survey.cost

    def minimum(self, kind: str, weights: np.ndarray | None = None) -> np.ndarray:
        """Minimum C_avg, (B, priors); ``kind``: "common" or "per-language"."""
        weights = segment_weights(self.truth, self.n, weights)
        points = [sweep.points(weights) for sweep in ([self.sweep] if kind == "common" else self.single)]
        costs = [np.mean([minimum_cost(*two, beta) for two in points], axis=0) for beta in self.options.betas]
        return np.stack(costs, axis=1)

    def eers(self, kind: str, weights: np.ndarray | None = None) -> np.ndarray:
        """EER of each language, (B, N); ``kind``: "rocch" or "nearest". All segments have the same weight."""
        weights = np.ones((1, len(self.truth))) if weights is None else weights
        return np.stack([EERS[kind](*sweep.points(weights)) for sweep in self.single], axis=1)

    def eer(self, kind: str, over: str, weights: np.ndarray | None = None) -> np.ndarray:
        """EER, (B,); ``over``: "pooled" (over all trials), or "languages" (mean over languages)."""
        if over == "languages":
            return self.eers(kind, weights).mean(axis=1)
        weights = np.ones((1, len(self.truth))) if weights is None else weights
        return EERS[kind](*self.sweep.points(weights))

    def metrics(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The ``METRICS``, (B, 6), in the variants selected by the options; ``weights`` (B, S): drawn counts."""
        o = self.options
        counts = np.ones((1, len(self.truth))) if weights is None else weights
        own = np.eye(self.n)[self.truth]
        with np.errstate(invalid="ignore"):  # a loss can be infinite, and its segment not drawn
            loss = segment_weights(self.truth, self.n, counts) @ self.survey.loss / self.n
        return np.stack(
            [
                counts @ self.survey.right / counts.sum(axis=1),
                ((counts * self.survey.right) @ own / (counts @ own)).mean(axis=1),
                self.actual(counts).mean(axis=1),
                self.minimum(o.minimum, counts).mean(axis=1),
                self.eer(o.eer, o.eer_over, counts),
                loss,
            ],
            axis=1,
        )

    def resampled(self, units: np.ndarray, seed: int) -> tuple[np.ndarray, None]:
        """The ``METRICS`` of all resamples, (B, 6); None: no error of a grid."""
        blocks = bootstrap.weights(
            units, self.options.bootstrap, seed, strata=self.truth, width=len(self.truth) * self.n
        )
        return np.concatenate([self.metrics(block) for block in blocks]), None


class LargeEvaluation(_Common):
    """The same for many trials; the methods have the same names, and no weights."""

    @functools.cached_property
    def single(self) -> dict[str, list[Curve]]:
        return self.trials.singles()

    def actual(self) -> np.ndarray:
        """C_avg at the thresholds log beta, (1, priors)."""
        return self.mean(self.survey.cost)[None]

    def minimum(self, kind: str) -> np.ndarray:
        """Minimum C_avg, (1, priors)."""
        curves = [self.pooled["balanced"]] if kind == "common" else self.single["balanced"]
        return np.array(
            [[np.mean([minimum_cost(*curve.points, beta) for curve in curves]) for beta in self.options.betas]]
        )

    def eers(self, kind: str) -> np.ndarray:
        """EER of each language, (1, N)."""
        if kind == "rocch":
            return np.array([[eer(curve) for curve in self.single["equal"]]])
        curves = enumerate(self.single["equal"])
        return np.array([[self.trials.eer_nearest(curve, range(i, i + 1)) for i, curve in curves]])

    def eer(self, kind: str, over: str) -> np.ndarray:
        """EER, (1,)."""
        if over == "languages":
            return self.eers(kind).mean(axis=1)
        curve = self.pooled["equal"]
        return np.array([eer(curve) if kind == "rocch" else self.trials.eer_nearest(curve)])

    def metrics(self) -> np.ndarray:
        """The ``METRICS``, (1, 6)."""
        o, right = self.options, self.survey.right
        values = [
            right.mean(),
            self.mean(right) / self.n,
            self.actual().mean(),
            self.minimum(o.minimum).mean(),
            self.eer(o.eer, o.eer_over)[0],
            self.mean(self.survey.loss) / self.n,
        ]
        return np.array([values])

    def resampled(self, units: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, float]]:
        """The ``METRICS`` of all resamples, (B, 6), and how far off the grid can be at most in any of them."""
        o, survey = self.options, self.survey
        own = grid.Units.of(self.trials, units)
        linear = np.column_stack([survey.right, survey.loss, survey.cost]).astype(np.float32)[self.trials.order]
        costs = [(1.0, beta) for beta in o.betas] if o.minimum == "common" else []
        u = [grid.thresholds(self.pooled["balanced"], *cost) for cost in costs]
        if o.eer_over == "pooled":
            u.append(grid.thresholds(self.pooled["equal"], *grid.crossing(self.pooled["equal"])))
        thresholds = np.unique(np.concatenate(u)) if u else self.pooled["equal"].threshold[1:2]
        found = grid.sums(self.trials, own, linear, thresholds, o.bootstrap, seed)
        each = found.linear / found.size[:, :, None]
        values = np.empty((o.bootstrap, len(METRICS)))
        values[:, 0] = found.linear[:, :, 0].sum(axis=1) / found.size.sum(axis=1)
        values[:, 1] = each[:, :, 0].mean(axis=1)
        values[:, 2] = each[:, :, 2:].sum(axis=1).mean(axis=1)
        values[:, 5] = each[:, :, 1].mean(axis=1)
        bound = {}
        if o.minimum == "common":
            values[:, 3] = np.mean([grid.minimum(found, beta) for beta in o.betas], axis=0)
            lowest = np.mean([grid.lowest_minimum(found, beta) for beta in o.betas], axis=0)
            bound["min_cprimary"] = float((values[:, 3] - lowest).max())
        if o.eer_over == "pooled":
            values[:, 4] = grid.eer(found, o.eer)
            bound["eer"] = float((values[:, 4] - grid.lowest_eer(found)).max())
        if o.minimum == "per-language" or o.eer_over == "languages":
            columns = per_language.Columns(self.trials, self.single, o.betas)
            minima, eers = per_language.resampled(
                columns,
                own,
                o.bootstrap,
                seed,
                o.betas if o.minimum == "per-language" else None,
                o.eer if o.eer_over == "languages" else None,
            )
            values[:, 3] = minima if o.minimum == "per-language" else values[:, 3]
            values[:, 4] = eers if o.eer_over == "languages" else values[:, 4]
        return values, bound
