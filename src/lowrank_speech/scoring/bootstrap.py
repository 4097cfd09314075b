"""Bootstrap intervals: what would the figure have been with other test utterances, or other speakers?

Units (utterances, or all utterances of a speaker together) are drawn with replacement, as many as there are, and the
figure is computed again; the interval holds the middle of those figures (percentile method). A resample is a row of
weights, the number of times that each item was drawn, so that figures come from matrix products.

Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

CELLS = 2_000_000  # weights held at once: 16 MB


def units_of(ids: Sequence[str], speakers: Mapping[str, str] | None, resample: str) -> tuple[np.ndarray, str]:
    """The unit (0, 1, ...) to which each id belongs, shape (S,), and what units are: "utterances" or "speakers".

    ``resample`` is "utterances", "speakers", or "auto": speakers where there is a map. ValueError when speakers are
    asked for without a map, or when the map lacks an id.
    """
    if resample == "utterances" or (resample == "auto" and speakers is None):
        return np.arange(len(ids)), "utterances"
    if speakers is None:
        raise ValueError("resampling speakers needs to know them: give a map from utterance to speaker (utt2spk)")
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
    strata: (S,) int, drawn from separately (a language, say), so that none can vanish from a resample; a unit that
            is in two strata counts as two units
    width:  cells that the caller holds per resample; decides the size of the blocks (default S)
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
    """Whether resampling can change anything: some stratum has two units or more."""
    if strata is None:
        return len(np.unique(units)) > 1
    return any(len(np.unique(units[strata == s])) > 1 for s in np.unique(strata))


def interval(values: np.ndarray, confidence: float) -> list[float] | None:
    """[low, high] of the percentile interval over ``values`` (B,); NaN (a resample without a word) is left out.

    None where no value is left.
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return [float(low), float(high)]
