"""Metrics of language recognition: accuracy, C_primary (actual, minimum), EER, confusions, with bootstrap intervals.

The input is a log-likelihood for each segment and language (natural logarithm, up to a constant per segment) and the
true language of each segment. See :mod:`lowrank_speech.scoring.detection` for definitions.

- Actual C_primary: mean of C_avg(beta) over the target priors, with the thresholds log beta. Minimum C_primary: each
  C_avg at its best threshold, either one per beta for all languages, or one per beta and language.
- EER: by ROCCH or nearest point; pooled (all trials have the same weight) or as the mean over languages.
- Accuracy: the highest score decides. If k languages tie, each gets 1/k of the decision, so the order of the columns
  does not matter. Macro accuracy: all languages have the same weight.
- Resampling draws segments (or speakers) within each language, because the costs average over languages.

Scores may be -inf (likelihood 0) if the segment has a finite score as well; NaN and +inf are errors.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lowrank_speech.scoring import bootstrap
from lowrank_speech.scoring.detection import (
    Sweep,
    average_cost,
    eer_nearest,
    eer_rocch,
    llr,
    minimum_cost,
    pair_rates,
    segment_weights,
)
from lowrank_speech.scoring.options import ScoreOptions

EERS = {"rocch": eer_rocch, "nearest": eer_nearest}
METRICS = ("accuracy", "macro_accuracy", "act_cprimary", "min_cprimary", "eer")


def check(
    ids: Sequence[str],
    languages: Sequence[str],
    scores: np.ndarray,
    labels: Mapping[str, str],
    names: tuple[str, str] = ("the scores", "the labels"),
) -> np.ndarray:
    """Check that scores and labels match; return the column (S,) of each segment's true language.

    ids (S), languages (N), scores (S, N), labels id -> language; ``names``: names of scores and labels for messages.
    ValueError: fewer than two languages, an id without scores or label, a label without a column, a language without
    segments, a score that is NaN or +inf, or a segment whose scores are all -inf.
    """
    if len(languages) < 2:
        raise ValueError(f"{names[0]} has only one language ({', '.join(languages)}); expected two or more")
    scored = set(ids)
    for left, right, where, lacking in (
        (ids, labels, names[0], f"has scores but no label in {names[1]}"),
        (labels, scored, names[1], f"has a label but no scores in {names[0]}"),
    ):
        unpaired = [name for name in left if name not in right]
        if unpaired:
            more = f" (and {len(unpaired) - 1} more)" if len(unpaired) > 1 else ""
            raise ValueError(f"{where}: segment {unpaired[0]!r}{more} {lacking}; add it, or remove the segment")
    column = {language: i for i, language in enumerate(languages)}
    for name in ids:
        if labels[name] not in column:
            raise ValueError(
                f"{names[1]}: segment {name!r} has the label {labels[name]!r}; expected one of the scored languages: "
                f"{', '.join(languages)}; correct the label, or remove the segment"
            )
    bad = np.isnan(scores) | (scores == np.inf)
    if bad.any():
        row, col = np.argwhere(bad)[0]
        raise ValueError(
            f"{names[0]}: segment {ids[row]!r}, language {languages[col]!r}: the score is {scores[row, col]}; "
            "expected a finite log-likelihood (or -inf)"
        )
    hopeless = np.flatnonzero((scores == -np.inf).all(axis=1))
    if len(hopeless):
        raise ValueError(f"{names[0]}: segment {ids[hopeless[0]]!r}: all scores are -inf; expected a finite one")
    truth = np.array([column[labels[name]] for name in ids])
    for i, language in enumerate(languages):
        if not (truth == i).any():
            raise ValueError(
                f"{names[1]}: there is no segment of the language {language!r}, so its miss rate is undefined; "
                "add segments, or remove its column from the scores"
            )
    return truth


def decisions(scores: np.ndarray) -> np.ndarray:
    """Share of the decision (S, N) of each language: 1 for the highest score, 1/k if k languages tie."""
    top = scores == scores.max(axis=1, keepdims=True)
    return top / top.sum(axis=1, keepdims=True)


class Evaluation:
    """Metrics of one set of scores, for the original segments or any resample."""

    def __init__(self, scores: np.ndarray, truth: np.ndarray, options: ScoreOptions):
        """scores: (S, N) log-likelihoods; truth: (S,) columns of the true languages; checked by :func:`check`."""
        self.truth, self.options = truth, options
        self.n = scores.shape[1]
        self.llr = llr(scores)
        self.decided = decisions(scores)
        self.accepted = [self.llr > np.log(beta) for beta in options.betas]
        self.pooled = Sweep.of(self.llr, truth)
        self.single = [Sweep.of(self.llr, truth, np.array([i])) for i in range(self.n)]

    def actual(self, weights: np.ndarray | None = None) -> np.ndarray:
        """C_avg at the thresholds log beta, (B, priors)."""
        costs = zip(self.accepted, self.options.betas, strict=True)
        return np.stack([average_cost(a, self.truth, beta, weights) for a, beta in costs], axis=1)

    def minimum(self, kind: str, weights: np.ndarray | None = None) -> np.ndarray:
        """Minimum C_avg, (B, priors); ``kind``: "common" or "per-language"."""
        weights = segment_weights(self.truth, self.n, weights)
        sweeps = [self.pooled] if kind == "common" else self.single
        points = [sweep.points(weights) for sweep in sweeps]
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
        return EERS[kind](*self.pooled.points(weights))

    def metrics(self, weights: np.ndarray | None = None) -> np.ndarray:
        """The ``METRICS``, (B, 5), in the variants selected by the options; ``weights`` (B, S): drawn counts."""
        o = self.options
        counts = np.ones((1, len(self.truth))) if weights is None else weights
        right = self.decided[np.arange(len(self.truth)), self.truth]
        own = np.eye(self.n)[self.truth]
        return np.stack(
            [
                counts @ right / counts.sum(axis=1),
                ((counts * right) @ own / (counts @ own)).mean(axis=1),
                self.actual(counts).mean(axis=1),
                self.minimum(o.minimum, counts).mean(axis=1),
                self.eer(o.eer, o.eer_over, counts),
            ],
            axis=1,
        )


def score(
    ids: Sequence[str],
    languages: Sequence[str],
    scores: np.ndarray,
    labels: Mapping[str, str],
    options: ScoreOptions,
    seed: int,
    speakers: Mapping[str, str] | None = None,
    names: tuple[str, str] = ("the scores", "the labels"),
) -> dict[str, Any]:
    """All metrics as JSON values: ``METRICS``, the ``interval`` of each ([low, high] or None), and the settings used.

    ``variants`` has all definitions of minimum C_primary and EER, ``chance`` the metrics of a system with equal scores,
    ``by_language`` the rates of each language, ``confusion`` the decisions (rows: true language). Arguments and errors
    as in :func:`check`; ``speakers`` maps id -> speaker.
    """
    scores = np.asarray(scores, dtype=np.float64)
    truth = check(ids, languages, scores, labels, names)
    units, drawn = bootstrap.units_of(ids, speakers, options.resample)
    evaluation = Evaluation(scores, truth, options)
    values = dict(zip(METRICS, map(float, evaluation.metrics()[0]), strict=True))
    priors = [f"{p:g}" for p in options.p_target]
    confusion = np.eye(len(languages))[truth].T @ evaluation.decided
    return values | {
        "interval": _intervals(evaluation, units, options, seed),
        "segments": len(ids),
        "languages": list(languages),
        "confidence": options.confidence,
        "bootstrap": options.bootstrap,
        "resampled": drawn,
        "units": len(np.unique(np.stack([truth, units]), axis=1).T),
        "minimum": options.minimum,
        "eer_kind": options.eer,
        "eer_over": options.eer_over,
        "act_cavg": dict(zip(priors, map(float, evaluation.actual()[0]), strict=True)),
        "min_cavg": dict(zip(priors, map(float, evaluation.minimum(options.minimum)[0]), strict=True)),
        "variants": {
            "min_cprimary": {kind: float(evaluation.minimum(kind).mean()) for kind in ("common", "per-language")},
            "eer": {
                kind: {over: float(evaluation.eer(kind, over)[0]) for over in ("pooled", "languages")} for kind in EERS
            },
        },
        "chance": chance(truth, options),
        "tied": int((evaluation.decided.max(axis=1) < 1).sum()),
        "by_language": _by_language(evaluation, languages, priors),
        "confusion": [[int(c) if c == int(c) else float(c) for c in row] for row in confusion],
    }


def chance(truth: np.ndarray, options: ScoreOptions) -> dict[str, float]:
    """Metrics of a system with equal scores: all ratios are 0, so it rejects everything if beta >= 1, else accepts it.

    ``majority_accuracy``: accuracy of always deciding for the most frequent language of the test set.
    """
    n = int(truth.max()) + 1
    cost = float(np.mean([min(1.0, beta) for beta in options.betas]))
    return {
        "accuracy": 1 / n,
        "macro_accuracy": 1 / n,
        "majority_accuracy": float(np.bincount(truth).max() / len(truth)),
        "act_cprimary": cost,
        "min_cprimary": cost,
        "eer": 0.5,
    }


def _intervals(
    evaluation: Evaluation, units: np.ndarray, options: ScoreOptions, seed: int
) -> dict[str, list[float] | None]:
    if not options.bootstrap or not bootstrap.varies(units, evaluation.truth):
        return dict.fromkeys(METRICS)
    blocks = bootstrap.weights(
        units, options.bootstrap, seed, strata=evaluation.truth, width=len(evaluation.truth) * evaluation.n
    )
    values = np.concatenate([evaluation.metrics(block) for block in blocks])
    return {name: bootstrap.interval(v, options.confidence) for name, v in zip(METRICS, values.T, strict=True)}


def _by_language(evaluation: Evaluation, languages: Sequence[str], priors: Sequence[str]) -> dict[str, dict[str, Any]]:
    rates = [pair_rates(accepted, evaluation.truth) for accepted in evaluation.accepted]
    eers = evaluation.eers(evaluation.options.eer)[0]
    right = evaluation.decided[np.arange(len(evaluation.truth)), evaluation.truth]
    result = {}
    for i, language in enumerate(languages):
        others = np.arange(len(languages)) != i
        result[language] = {
            "segments": int((evaluation.truth == i).sum()),
            "accuracy": float(right[evaluation.truth == i].mean()),
            "eer": float(eers[i]),
            "p_miss": {p: float(1 - r[i, i]) for p, r in zip(priors, rates, strict=True)},
            "p_fa": {p: float(r[others, i].mean()) for p, r in zip(priors, rates, strict=True)},
        }
    return result
