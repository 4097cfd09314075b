"""Metrics of language recognition: accuracy, costs, EER, Cllr, confusions, with bootstrap intervals.

The input is a log-likelihood for each segment and language (natural logarithm, up to a constant per segment) and the
true language of each segment. See :mod:`lowrank_speech.scoring.detection` for definitions.

- Actual C_primary: mean of C_avg(beta) over the target priors, with the thresholds log beta. Minimum C_primary: each
  C_avg at its best threshold, either one per beta for all languages, or one per beta and language.
- C_avg as in LRE07 (and LRE15, OLR): P C_miss C_avg(beta), so at P = 0.5 half of C_avg(1).
- EER: by ROCCH or nearest point; pooled (all trials have the same weight) or as the mean over languages.
- Cllr: multiclass; for the detection ratios also its minimum (:mod:`lowrank_speech.scoring.cllr`).
- Accuracy: the highest score decides. If k languages tie, each gets 1/k of the decision, so the order of the columns
  does not matter. Macro accuracy: all languages have the same weight.
- Resampling draws segments (or speakers, sources) within each language, because the costs average over languages.

Scores may be -inf (likelihood 0) if the segment has a finite score as well; NaN and +inf are errors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lowrank_speech.scoring import bootstrap, curves, groups, pairs
from lowrank_speech.scoring.evaluation import EERS, METRICS, Evaluation, LargeEvaluation, evaluation
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.scoring.survey import Survey

__all__ = ["METRICS", "check", "score"]


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
    row = _first_row(scores, lambda block: (np.isnan(block) | (block == np.inf)).any(axis=1))
    if row is not None:
        col = int(np.flatnonzero(np.isnan(scores[row]) | (scores[row] == np.inf))[0])
        raise ValueError(
            f"{names[0]}: segment {ids[row]!r}, language {languages[col]!r}: the score is {scores[row, col]}; "
            "expected a finite log-likelihood (or -inf)"
        )
    row = _first_row(scores, lambda block: (block == -np.inf).all(axis=1))
    if row is not None:
        raise ValueError(f"{names[0]}: segment {ids[row]!r}: all scores are -inf; expected a finite one")
    truth = np.array([column[labels[name]] for name in ids])
    present = np.bincount(truth, minlength=len(languages))
    for language, number in zip(languages, present, strict=True):
        if not number:
            raise ValueError(
                f"{names[1]}: there is no segment of the language {language!r}, so its miss rate is undefined; "
                "add segments, or remove its column from the scores"
            )
    return truth


def _first_row(scores: np.ndarray, wrong: Callable[[np.ndarray], np.ndarray]) -> int | None:
    """The first row for which ``wrong`` (of a block of rows) is true, looking at a block at a time."""
    step = max(1, 2_000_000 // scores.shape[1])
    for start in range(0, len(scores), step):
        rows = np.flatnonzero(wrong(scores[start : start + step]))
        if len(rows):
            return start + int(rows[0])
    return None


def score(
    ids: Sequence[str],
    languages: Sequence[str],
    scores: np.ndarray,
    labels: Mapping[str, str],
    options: ScoreOptions,
    seed: int,
    speakers: Mapping[str, str] | None = None,
    names: tuple[str, str] = ("the scores", "the labels"),
    durations: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """All metrics as JSON values: ``METRICS``, the ``interval`` of each ([low, high] or None), and the settings used.

    ``variants`` has all definitions of minimum C_primary and EER, ``chance`` the metrics of a system with equal scores,
    ``by_language`` the rates of each language, ``confusion`` the decisions (rows: true language), ``lre07_cavg`` the
    costs in that form, ``detection_cllr`` (actual, minimum), ``pairs`` the costs of pairs, ``accepted`` for each prior
    the share of the segments of a language (row) accepted as a language (column), ``det`` and ``reliability`` points to
    draw, ``grid_error`` how far intervals of many trials can be off (None: exact). Cllr is None if it is infinite: a
    true language has likelihood 0.

    Arguments and errors as in :func:`check`; ``speakers`` maps id -> speaker, ``durations`` id -> seconds (text),
    ``sources`` id -> source: with them, there are also ``by_duration`` and ``by_source``.
    """
    scores = np.asarray(scores, dtype=np.float64)
    truth = check(ids, languages, scores, labels, names)
    units, drawn = _units(ids, speakers, sources, options)
    survey = Survey.of(scores, truth, options.betas)
    parts = _parts(ids, durations, sources, options)  # errors before anything takes long
    pair_costs = pairs.summary(*pairs.pair_costs(scores, truth), list(languages))
    del scores  # a large table; the rest works on the ratios
    whole = evaluation(survey, options)
    values = groups.named(whole.metrics()[0])
    intervals, grid_error = groups.intervals(whole, values, units, options, seed)
    priors = [f"{p:g}" for p in options.p_target]
    actual, minimum = whole.actual()[0], whole.minimum(options.minimum)[0]
    bits, least = whole.detection_cllr()
    return values | {
        "interval": intervals,
        "segments": len(ids),
        "languages": list(languages),
        "confidence": options.confidence,
        "bootstrap": options.bootstrap,
        "resampled": drawn,
        "units": len(np.unique(truth * (int(units.max()) + 1) + units)),
        "grid_error": grid_error,
        "minimum": options.minimum,
        "eer_kind": options.eer,
        "eer_over": options.eer_over,
        "act_cavg": dict(zip(priors, map(float, actual), strict=True)),
        "min_cavg": dict(zip(priors, map(float, minimum), strict=True)),
        "lre07_cavg": {
            kind: {f"{p:g}": float(options.c_miss * p * c) for p, c in zip(options.p_target, cost, strict=True)}
            for kind, cost in (("actual", actual), ("minimum", minimum))
        },
        "detection_cllr": {"actual": groups.finite(bits), "minimum": least},
        "variants": {
            "min_cprimary": {kind: float(whole.minimum(kind).mean()) for kind in ("common", "per-language")},
            "eer": {kind: {over: float(whole.eer(kind, over)[0]) for over in ("pooled", "languages")} for kind in EERS},
        },
        "chance": chance(truth, options),
        "tied": survey.tied,
        "by_language": _by_language(whole, languages, priors),
        "pairs": pair_costs,
        "confusion": [[int(c) if c == int(c) else float(c) for c in row] for row in survey.confusion],
        "accepted": {
            p: [[float(f"{v:.5g}") for v in row] for row in counts / whole.sizes[:, None]]
            for p, counts in zip(priors, survey.accepted, strict=True)
        },
        "det": curves.det(whole.pooled["balanced"]),
        "reliability": curves.reliability(survey.reliability),
        **{
            name: groups.breakdown(survey, bins, labels, languages, units, options, seed)
            for name, (bins, labels) in parts.items()
        },
    }


def _units(
    ids: Sequence[str],
    speakers: Mapping[str, str] | None,
    sources: Mapping[str, str] | None,
    options: ScoreOptions,
) -> tuple[np.ndarray, str]:
    """The bootstrap unit of each segment and the kind of unit, as ``bootstrap.units_of``; also "sources"."""
    if options.resample != "sources":
        return bootstrap.units_of(ids, speakers, options.resample)
    if sources is None:
        raise ValueError("resampling sources needs a map from segment to source (sources.tsv, utt2source); give one")
    return groups.source_bins(ids, sources, "the sources")[0], "sources"


def _parts(
    ids: Sequence[str],
    durations: Mapping[str, str] | None,
    sources: Mapping[str, str] | None,
    options: ScoreOptions,
) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Bins (S,) and their names of the breakdowns for which there is a map."""
    parts = {}
    if durations is not None:
        parts["by_duration"] = groups.duration_bins(ids, durations, options.durations, "the durations")[1:]
    if sources is not None:
        parts["by_source"] = groups.source_bins(ids, sources, "the sources")
    return parts


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
        "cllr": float(np.log2(n)),
    }


def _by_language(
    whole: Evaluation | LargeEvaluation, languages: Sequence[str], priors: Sequence[str]
) -> dict[str, dict[str, Any]]:
    rates = [accepted / whole.sizes[:, None] for accepted in whole.survey.accepted]
    eers = whole.eers(whole.options.eer)[0]
    right = np.bincount(whole.truth, weights=whole.survey.right) / whole.sizes
    loss = np.bincount(whole.truth, weights=whole.survey.loss) / whole.sizes
    result = {}
    for i, language in enumerate(languages):
        others = np.arange(len(languages)) != i
        result[language] = {
            "segments": int(whole.sizes[i]),
            "accuracy": float(right[i]),
            "eer": float(eers[i]),
            "cllr": groups.finite(loss[i]),
            "p_miss": {p: float(1 - r[i, i]) for p, r in zip(priors, rates, strict=True)},
            "p_fa": {p: float(r[others, i].mean()) for p, r in zip(priors, rates, strict=True)},
        }
    return result
