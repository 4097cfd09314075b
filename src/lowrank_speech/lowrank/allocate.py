"""Rank allocation in units of the loss: choose the ranks that change the model's output least, within a budget.

Errors of layers' outputs do not predict the loss of the whole model: outputs matter differently, and by several orders
of magnitude. So each layer is tried alone, at a few ranks, with all others dense, and the divergence of the model's
output from the dense model's is measured (``curves``). Between the measured ranks the logarithm of the divergence is
linear. The divergences of several layers do not add up, because errors compound. But they order plans as the loss of
the whole model does, so the plan with the least sum is close to the best one (``docs/RESULTS.md`` has the correlation).

Layer l at rank r costs ``factored_size`` parameters, and diverges by its curve; a dense layer diverges by nothing. The
search climbs each layer's lower convex hull of (cost, divergence) in the order of divergence saved per parameter. This
is the Lagrangian solution, optimal at the budgets that it hits. Single rank steps in the same order use up the rest.
"""

import bisect
import heapq
import math
from collections.abc import Callable, Mapping, Sequence

from lowrank_speech.lowrank.plan import largest_rank
from lowrank_speech.lowrank.structure import Shape, dense_size, factored_size, full_rank

Point = tuple[int, float, int | None]  # cost, divergence, rank (None: dense)
Curve = Sequence[tuple[int, float]]  # rank, divergence; by ascending rank
TRIALS = 5  # ranks at which a layer is tried
LEAST = 1e-9  # divergence; the logarithm of less is noise


def trial_ranks(shape: Shape, floor: float, multiple_of: int = 1) -> list[int]:
    """The ranks at which a layer is tried: evenly spaced from the least one to the largest useful one.

    ``floor``: least rank as a share of the full rank. Empty if no rank makes the layer smaller.
    """
    least, most = bounds(shape, floor, multiple_of)
    if most < least:
        return []
    steps = (most - least) // multiple_of
    return sorted({least + round(i * steps / (TRIALS - 1)) * multiple_of for i in range(TRIALS)})


def bounds(shape: Shape, floor: float, multiple_of: int = 1) -> tuple[int, int]:
    """The least rank that ``floor`` allows, and the largest at which the factors are smaller than the matrix."""
    least = max(math.ceil(floor * full_rank(shape) / multiple_of), 1) * multiple_of
    return least, largest_rank(shape, multiple_of)


def curves(
    shapes: Mapping[str, Shape], divergence: Callable[[dict[str, int]], float], floor: float, multiple_of: int = 1
) -> dict[str, Curve]:
    """Measure the curve of each layer; ``divergence`` is that of the model with the given layers at the given ranks."""
    return {
        name: [(rank, divergence({name: rank})) for rank in trial_ranks(shape, floor, multiple_of)]
        for name, shape in shapes.items()
    }


def allocate_ranks(
    shapes: Mapping[str, Shape], measured: Mapping[str, Curve], budget: int, multiple_of: int = 1
) -> dict[str, int | None]:
    """Ranks with the least sum of divergences that cost at most ``budget`` parameters; None: the layer stays dense.

    Raises ValueError if even the least ranks of ``measured`` cost more.
    """
    points = {name: _points(shapes[name], measured[name], multiple_of) for name in shapes}
    left = budget - sum(p[0][0] for p in points.values())
    if left < 0:
        raise ValueError(
            f"the layers cost {budget - left:,} parameters at their least ranks, but the budget is {budget:,}; "
            f"lower the floor or the reduction, or name more layers"
        )
    at = dict.fromkeys(points, 0)
    left = _climb(points, {name: _hull(p) for name, p in points.items()}, at, left)
    _climb(points, {name: list(range(len(p))) for name, p in points.items()}, at, left)
    return {name: points[name][i][2] for name, i in at.items()}


def predicted(measured: Mapping[str, Curve], ranks: Mapping[str, int | None]) -> float:
    """Sum of the layers' divergences at ``ranks``."""
    return sum(_at(measured[name], rank) for name, rank in ranks.items() if rank is not None)


def _at(curve: Curve, rank: int) -> float:
    """The divergence at ``rank``, log-linear between measured ranks, never rising with the rank."""
    ranks = [r for r, _ in curve]
    logs, best = [], math.inf
    for _, value in curve:
        best = min(best, math.log(max(value, LEAST)))
        logs.append(best)
    i = min(max(bisect.bisect_right(ranks, rank), 1), len(ranks) - 1)
    if len(ranks) == 1 or rank <= ranks[0]:
        return math.exp(logs[0])
    if rank >= ranks[-1]:
        return math.exp(logs[-1])
    share = (rank - ranks[i - 1]) / (ranks[i] - ranks[i - 1])
    return math.exp(logs[i - 1] + share * (logs[i] - logs[i - 1]))


def _points(shape: Shape, curve: Curve, multiple_of: int) -> list[Point]:
    dense = (dense_size(shape), 0.0, None)
    if not curve:  # no rank makes the layer smaller
        return [dense]
    ranks = range(curve[0][0], curve[-1][0] + 1, multiple_of)
    return [*((factored_size(shape, r), _at(curve, r), r) for r in ranks), dense]


def _hull(points: list[Point]) -> list[int]:
    """Indices of the lower convex hull of (cost, divergence)."""
    hull: list[int] = []
    for i, (cost, value, _) in enumerate(points):
        while len(hull) > 1:
            (x0, y0, _), (x1, y1, _) = points[hull[-2]], points[hull[-1]]
            if (y1 - y0) * (cost - x1) < (value - y1) * (x1 - x0):
                break
            hull.pop()
        hull.append(i)
    return hull


def _climb(points: Mapping[str, list[Point]], paths: Mapping[str, list[int]], at: dict[str, int], left: int) -> int:
    """Take steps along ``paths`` (indices of points), best divergence per parameter first, while they fit.

    ``left``: parameters to spend. Changes ``at`` in place; returns the rest of the budget.
    """
    queue: list[tuple[float, str, int, int]] = []

    def push(name: str) -> None:
        here, path = at[name], paths[name]
        position = bisect.bisect_right(path, here)
        if position < len(path):
            following = path[position]
            (cost, value, _), (more, less, _) = points[name][here], points[name][following]
            heapq.heappush(queue, ((less - value) / (more - cost), name, following, more - cost))

    for name in points:
        push(name)
    while queue:
        _, name, following, price = heapq.heappop(queue)
        if price <= left:
            left -= price
            at[name] = following
            push(name)
    return left
