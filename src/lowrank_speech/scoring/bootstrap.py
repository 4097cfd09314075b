"""Bootstrap intervals: how much does a metric vary with the choice of test utterances or speakers?

Units (utterances, or all utterances of a speaker together) are drawn with replacement, as many as there are, and the
metric is computed again. The interval is the central part of the resulting values (percentile method). A resample is a
row of weights, the number of times that each item was drawn, so metrics are computed by matrix products.

Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

CELLS = 2_000_000  # weights in memory at a time: 16 MB


def units_of(ids: Sequence[str], speakers: Mapping[str, str] | None, resample: str) -> tuple[np.ndarray, str]:
    """The bootstrap unit (0, 1, ...) of each id, shape (S,), and the kind of unit: "utterances" or "speakers".

    ``resample``: "utterances", "speakers", or "auto" (speakers if there is a map). ValueError: speakers are requested
    without a map, or the map lacks an id.
    """
    if resample == "utterances" or (resample == "auto" and speakers is None):
        return np.arange(len(ids)), "utterances"
    if resample == "sources":
        raise ValueError("resample: sources is for language recognition; choose speakers or utterances")
    if speakers is None:
        raise ValueError("resampling speakers needs a map from utterance to speaker (utt2spk); give one")
    for name in ids:
        if name not in speakers:
            raise ValueError(f"utterance {name!r} has no speaker in the speaker map; add it, or resample utterances")
    _, units = np.unique([speakers[name] for name in ids], return_inverse=True)
    return units, "speakers"


def weights(
    units: np.ndarray, draws: int, seed: int, strata: np.ndarray | None = None, width: int | None = None
) -> Iterator[np.ndarray]:
    """Yield the weights of ``draws`` resamples in blocks (B, S): how often each of the S items was drawn.

    units:  (S,) int, the unit of each item; items of a unit are drawn together
    strata: (S,) int, groups that are resampled separately (languages, for example), so that no group can vanish; a unit
            in two strata counts as two units
    width:  cells that the caller needs per resample; determines the block size (default S)
    """
    strata = np.zeros(len(units), dtype=np.int64) if strata is None else strata
    _, unit = np.unique(np.stack([strata, units]), axis=1, return_inverse=True)
    unit = unit.reshape(-1)
    total = int(unit.max()) + 1
    stratum = np.zeros(total, dtype=np.int64)
    stratum[unit] = strata
    members = [np.flatnonzero(stratum == s) for s in np.unique(stratum)]
    rng = np.random.default_rng(seed)
    block = max(1, CELLS // max(width or 0, len(units)))
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        counts = np.zeros((rows, total))
        for chosen in members:
            drawn = rng.integers(len(chosen), size=(rows, len(chosen)))
            flat = (drawn + np.arange(rows)[:, None] * len(chosen)).ravel()
            counts[:, chosen] = np.bincount(flat, minlength=rows * len(chosen)).reshape(rows, len(chosen))
        yield counts[:, unit]


def varies(units: np.ndarray, strata: np.ndarray | None = None) -> bool:
    """Whether resampling can change anything, that is, some stratum has two or more units."""
    if strata is None:
        return len(np.unique(units)) > 1
    return any(len(np.unique(units[strata == s])) > 1 for s in np.unique(strata))


def interval(values: np.ndarray, confidence: float) -> list[float] | None:
    """[low, high] of the percentile interval of ``values`` (B,), ignoring NaN (resamples without a word).

    None if no value is left.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return [float(low), float(high)]
