"""One pass over the scores, in blocks of segments: ratios, decisions, losses and counts, which all metrics start from.

Blocks bound the memory: of a large table, only the ratios are kept, as float32. (Two ratios that differ by less than a
rounding error, about 1e-7 of their value, can then become equal; decisions and actual costs come from float64.)
"""

from dataclasses import dataclass

import numpy as np

from lowrank_speech.scoring.cllr import log_loss, softplus_bits
from lowrank_speech.scoring.detection import llr, segment_costs

DOUBLE = 20_000_000
"""Trials up to which ratios are float64."""
BLOCK = 2_000_000
"""Trials in a block."""
BINS = 15
"""Bins of the reliability diagram."""


@dataclass
class Survey:
    """S segments, N languages, R target priors.

    llr (S, N); truth (S,), the column of the true language; right (S,), share of the decision that is right;
    cost (S, R), what a segment adds to C_avg (:func:`detection.segment_costs`); loss (S,), -log2 of the posterior of
    the true language; bits (S,), what it adds to the detection Cllr; confusion (N, N), decisions (rows: true language);
    accepted (R, N, N), segments of a language (row) accepted as a language (column); reliability (BINS, 3), number of
    segments, sum of confidences and of right decisions, by confidence; tied, number of segments without one decision.
    """

    llr: np.ndarray
    truth: np.ndarray
    right: np.ndarray
    cost: np.ndarray
    loss: np.ndarray
    bits: np.ndarray
    confusion: np.ndarray
    accepted: np.ndarray
    reliability: np.ndarray
    tied: int

    @classmethod
    def of(cls, scores: np.ndarray, truth: np.ndarray, betas: tuple[float, ...]) -> "Survey":
        """From log-likelihoods (S, N), checked by ``lid.check``."""
        s, n = scores.shape
        found = cls.empty(truth, n, len(betas), np.float64 if s * n <= DOUBLE else np.float32)
        step = max(1, BLOCK // n)
        for start in range(0, s, step):
            found._block(slice(start, min(start + step, s)), scores[start : start + step], betas)
        return found

    @classmethod
    def empty(cls, truth: np.ndarray, n: int, priors: int, dtype: type) -> "Survey":
        s = len(truth)
        return cls(
            np.empty((s, n), dtype),
            truth,
            np.empty(s),
            np.empty((s, priors)),
            np.empty(s),
            np.empty(s),
            np.zeros((n, n)),
            np.zeros((priors, n, n)),
            np.zeros((BINS, 3)),
            0,
        )

    def _block(self, rows: slice, scores: np.ndarray, betas: tuple[float, ...]) -> None:
        truth, n = self.truth[rows], scores.shape[1]
        segments = np.arange(len(truth))
        top = scores == scores.max(axis=1, keepdims=True)
        number = top.sum(axis=1)
        self.right[rows] = right = top[segments, truth] / number
        self.tied += int((number > 1).sum())
        one = number == 1
        pairs = np.bincount(truth[one] * n + scores[one].argmax(axis=1), minlength=n * n)
        self.confusion += pairs.reshape(n, n)
        np.add.at(self.confusion, truth[~one], top[~one] / number[~one, None])
        self.loss[rows] = log_loss(scores, truth)
        confidence = np.exp2(-log_loss(scores, scores.argmax(axis=1)))
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        for column, values in enumerate((None, confidence, right)):
            self.reliability[:, column] += np.bincount(bins, weights=values, minlength=BINS)
        ratios = llr(scores)
        self.llr[rows] = ratios
        for k, beta in enumerate(betas):
            accepted = ratios > np.log(beta)
            self.cost[rows, k] = segment_costs(accepted, truth, beta)
            self.accepted[k] += _by_language(accepted, truth)
        self.bits[rows] = detection_bits(ratios, truth)

    @property
    def n(self) -> int:
        """Number of languages."""
        return self.llr.shape[1]

    def subset(self, rows: np.ndarray, columns: np.ndarray, betas: tuple[float, ...]) -> "Survey":
        """Some segments with the languages ``columns``, which must include all their true languages.

        The ratios, and so the decisions, stay those against all languages; the counts are not there.
        """
        truth = np.searchsorted(columns, self.truth[rows])
        found = self.empty(truth, len(columns), len(betas), self.llr.dtype.type)
        found.llr[:] = self.llr[rows][:, columns]
        found.right[:], found.loss[:] = self.right[rows], self.loss[rows]
        if len(columns) > 1:
            for k, beta in enumerate(betas):
                found.cost[:, k] = segment_costs(found.llr > np.float64(np.log(beta)), truth, beta)
            found.bits[:] = detection_bits(found.llr, truth)
        return found


def detection_bits(ratios: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What each segment adds to the detection Cllr, (S,): the sum over languages of its mean over their segments."""
    s, n = ratios.shape
    own = ratios[np.arange(s), truth]
    false = softplus_bits(ratios)
    wrong = np.delete(false.ravel(), np.arange(s) * n + truth).reshape(s, n - 1).sum(axis=1)
    return (softplus_bits(-own) + wrong / (n - 1)) / (2 * n)


def _by_language(accepted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Accepted segments (N, N), the sum over those of each true language."""
    n = accepted.shape[1]
    rows, columns = np.nonzero(accepted)
    return np.bincount(truth[rows] * n + columns, minlength=n * n).reshape(n, n)
