"""Detection metrics of language recognition: likelihood ratios, costs, operating points, minimum costs, EER.

S segments, N target languages, T trials, B resamples, K operating points. A trial is a pair (segment, language): is
this segment in this language? It is a target trial if the language is that of the segment. Weights are per segment and
not negative, so a bootstrap resample is just another set of weights.

    lambda_i = l_i - log(mean over j != i of exp l_j)               accept language i when lambda_i > log beta
    C_avg(beta) = mean_i P_miss(i) + beta mean_{i, j != i} P_fa(i, j)           beta = C_fa (1 - P) / (C_miss P)

Source: NIST 2017 and 2022 Language Recognition Evaluation Plans; ROCCH: Brummer and de Villiers, BOSARIS toolkit.
"""

import numpy as np


def llr(scores: np.ndarray) -> np.ndarray:
    """Log-likelihood ratios (S, N) of each language against the mean of the others, from log-likelihoods (S, N >= 2).

    Adding a constant to a row does not change the result. A score may be -inf (likelihood 0) if the row has a finite
    one; the ratio is then -inf, or +inf for a language whose rivals are all at -inf.
    """
    s, n = scores.shape
    shifted = scores - scores.max(axis=1, keepdims=True)
    # Sum in sorted order, so that the order of the languages does not change the last bit.
    ranked = np.sort(shifted, axis=1)[:, ::-1]
    rivals = np.exp(ranked).sum(axis=1, keepdims=True) - np.exp(shifted)
    # For the winner, total - own would cancel. Its rivals are summed separately, scaled by the runner-up.
    runner_up = ranked[:, 1]
    finite = np.isfinite(runner_up)
    scale = np.where(finite, runner_up, 0.0)
    winners_rivals = scale + np.log(np.maximum(np.exp(ranked[:, 1:] - scale[:, None]).sum(axis=1), 1e-300))
    winners_rivals[~finite] = -np.inf
    with np.errstate(divide="ignore"):
        log_rivals = np.log(np.maximum(rivals, 0.0))
    log_rivals[np.arange(s), scores.argmax(axis=1)] = winners_rivals
    result = shifted - (log_rivals - np.log(n - 1))
    # Round, so that ratios that are equal in exact arithmetic are one operating point.
    with np.errstate(over="ignore"):  # large values, which would overflow, are not rounded
        return np.where(np.abs(result) < 1e6, np.round(result, 9), result)


def segment_weights(labels: np.ndarray, n: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Weights (B, S) that sum to 1 for each of the ``n`` languages, from drawn counts (B, S) (None: all 1)."""
    weights = np.ones((1, len(labels))) if weights is None else weights
    totals = weights @ np.eye(n)[labels]
    return weights / totals[:, labels]


def average_cost(
    accepted: np.ndarray, labels: np.ndarray, beta: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """C_avg(beta) of each resample, (B,), for decisions ``accepted`` (S, N) bool and true languages ``labels`` (S,).

    ``weights`` (B, S): drawn counts; every language must have a segment in every resample. Rejecting everything costs
    1, accepting everything costs beta.
    """
    return segment_weights(labels, accepted.shape[1], weights) @ segment_costs(accepted, labels, beta)


def segment_costs(accepted: np.ndarray, labels: np.ndarray, beta: float) -> np.ndarray:
    """What each segment adds to C_avg(beta), (S,): the sum over languages of its mean over the segments of each."""
    s, n = accepted.shape
    own = accepted[np.arange(s), labels]
    false_alarms = accepted.sum(axis=1) - own
    return ((~own) + beta * false_alarms / (n - 1)) / n


def pair_rates(accepted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of the segments of language j (row) accepted as language i (column), (N, N); the diagonal is 1 - P_miss."""
    onehot = np.eye(accepted.shape[1])[labels]
    return onehot.T @ accepted / onehot.sum(axis=0)[:, None]


class Sweep:
    """All operating points of one threshold on a set of trials. Sorts once, then evaluates any weights.

    llr: (T,) ratios; target: (T,) bool; segment: (T,) int, the segment of each trial.
    """

    def __init__(self, llr: np.ndarray, target: np.ndarray, segment: np.ndarray):
        order = np.argsort(llr, kind="stable")
        ordered = llr[order]
        self.target, self.segment = target[order], segment[order]
        # Trials with equal ratios are accepted together, so only the last of them ends an operating point.
        self.ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))

    @classmethod
    def of(cls, llr: np.ndarray, labels: np.ndarray, columns: np.ndarray | None = None) -> "Sweep":
        """The trials of the languages ``columns`` (default: all), from ratios (S, N) and labels (S,)."""
        s, n = llr.shape
        columns = np.arange(n) if columns is None else columns
        return cls(
            llr[:, columns].ravel(),
            (labels[:, None] == columns[None, :]).ravel(),
            np.repeat(np.arange(s), len(columns)),
        )

    def points(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P_miss and P_fa (B, K), from accepting everything to rejecting everything, with segment weights (B, S)."""
        trials = weights[:, self.segment]
        missed = np.cumsum(np.where(self.target, trials, 0.0), axis=1)
        rejected = np.cumsum(np.where(self.target, 0.0, trials), axis=1)
        zero = np.zeros((len(weights), 1))
        # Divide by the last cumulative sum, so that the ends are exactly 0 and 1.
        p_miss = np.concatenate([zero, missed[:, self.ends]], axis=1) / missed[:, -1:]
        p_fa = (rejected[:, -1:] - np.concatenate([zero, rejected[:, self.ends]], axis=1)) / rejected[:, -1:]
        return p_miss, p_fa


def minimum_cost(p_miss: np.ndarray, p_fa: np.ndarray, beta: float) -> np.ndarray:
    """Minimum of P_miss + beta P_fa over the operating points: (B, K) -> (B,)."""
    return (p_miss + beta * p_fa).min(axis=1)


def eer_nearest(p_miss: np.ndarray, p_fa: np.ndarray) -> np.ndarray:
    """EER as (P_miss + P_fa) / 2 at the operating point with minimum |P_miss - P_fa|; the lowest on a tie: (B,)."""
    gap = np.abs(p_miss - p_fa)
    near = gap <= gap.min(axis=1, keepdims=True) + 1e-12
    return np.where(near, (p_miss + p_fa) / 2, np.inf).min(axis=1)


def eer_rocch(p_miss: np.ndarray, p_fa: np.ndarray) -> np.ndarray:
    """EER where the lower convex hull of the operating points crosses P_miss = P_fa: (B, K) -> (B,).

    The hull edge that crosses the diagonal is found by cutting planes. Start with the chord between rejecting
    everything and accepting everything. The point furthest below the chord replaces the end on its side of the
    diagonal, until no point is below the chord.
    """
    b = len(p_miss)
    rows = np.arange(b)
    left = np.tile([1.0, 0.0], (b, 1))  # (P_miss, P_fa) with P_miss >= P_fa
    right = np.tile([0.0, 1.0], (b, 1))
    while True:
        rise, run = left[:, 0] - right[:, 0], right[:, 1] - left[:, 1]
        p = run / (rise + run)
        height = p * left[:, 0] + (1 - p) * left[:, 1]  # the chord's value on the diagonal
        values = p[:, None] * p_miss + (1 - p)[:, None] * p_fa
        best = values.argmin(axis=1)
        lower = values[rows, best] < height - 1e-12
        if not lower.any():
            return height
        found = np.stack([p_miss[rows, best], p_fa[rows, best]], axis=1)
        is_left = found[:, 0] >= found[:, 1]
        left[lower & is_left] = found[lower & is_left]
        right[lower & ~is_left] = found[lower & ~is_left]
