"""Where the points of a plot go: which outliers leave the axis, and how points of equal size stand side by side."""

from collections.abc import Sequence

GAP = 2.5
"""An error is an outlier of its panel if it is more than so many times the others (`ceiling`)."""
STEP, WIDEST = 7.0, 40.0
"""Points between markers of equal size, and at most between the first and the last of them."""


def ceiling(errors: Sequence[float], highs: Sequence[float]) -> float | None:
    """Upper end of the axis: below outliers, which would flatten all others; None if there are none.

    The highest errors are outliers, at most a third of all, if even the lowest of them is more than ``GAP`` times the
    highest interval end (``highs``) of the others.
    """
    order = sorted(range(len(errors)), key=lambda i: errors[i])
    for number in range(len(order) // 3, 0, -1):
        kept, left_out = order[:-number], order[-number:]
        limit = max(highs[i] for i in kept)
        if limit > 0 and min(errors[i] for i in left_out) > GAP * limit:
            return 1.25 * limit
    return None


def offsets(sizes: Sequence[float]) -> list[float]:
    """Horizontal shift of each point in points of 1/72 inch: points of (nearly) equal size stand side by side."""
    span = (max(sizes) - min(sizes)) if sizes else 0.0
    near = max(0.03 * span, 1e-9)
    order, clusters = sorted(range(len(sizes)), key=lambda i: sizes[i]), []
    for i in order:
        if clusters and sizes[i] - sizes[clusters[-1][0]] <= near:
            clusters[-1].append(i)
        else:
            clusters.append([i])
    result = [0.0] * len(sizes)
    for members in clusters:
        step = min(STEP, WIDEST / max(len(members) - 1, 1))
        for place, i in enumerate(sorted(members)):
            result[i] = step * (place - (len(members) - 1) / 2)
    return result
