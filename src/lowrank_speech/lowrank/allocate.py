"""Rank allocation: choose the ranks that lose the least energy over all layers, within a parameter budget.

Layer l at rank r costs r (d_out + d_in) parameters and loses the squares of its discarded singular values. A dense
layer costs d_out d_in and loses nothing. The points (cost, loss) of a layer are convex except for the last one. The
search therefore climbs each layer's lower convex hull in the order of loss saved per parameter. This is the Lagrangian
solution, optimal at the budgets that it hits. Single rank steps in the same order use up the rest of the budget.

With the singular values of W, the loss is the squared error of the weights. With those of W C^(1/2), where C is the
second moment of the layer's inputs, it is the squared error of the layer's output.
"""

import bisect
import heapq
from collections.abc import Mapping

from torch import Tensor

Shape = tuple[int, int]  # (d_out, d_in)
Point = tuple[int, float, int | None]  # cost, loss, rank (None: dense)


def allocate_ranks(
    shapes: Mapping[str, Shape],
    spectra: Mapping[str, Tensor],
    start: Mapping[str, int | None],
    multiple_of: int = 1,
) -> dict[str, int | None]:
    """Ranks with the least total loss that cost no more than those of ``start``; None: the layer stays dense.

    ``spectra``: name -> singular values (min(d_out, d_in),) in descending order. ``start``: the uniform plan; the
    result is never worse.
    """
    points = {name: _points(shapes[name], spectra[name], multiple_of) for name in shapes}
    budget = sum(_cost(shapes[name], rank) for name, rank in start.items())
    at = dict.fromkeys(points, 0)
    left = budget - sum(p[0][0] for p in points.values())
    if left < 0:  # even the smallest ranks cost more
        return dict(start)
    left = _climb(points, {name: _hull(p) for name, p in points.items()}, at, left)
    _climb(points, {name: list(range(len(p))) for name, p in points.items()}, at, left)
    found = {name: points[name][i][2] for name, i in at.items()}
    if loss(spectra, found) > loss(spectra, start):
        return dict(start)
    return found


def loss(spectra: Mapping[str, Tensor], ranks: Mapping[str, int | None]) -> float:
    """Sum of the squared singular values that the ranks discard."""
    return sum(float(spectra[n].double()[r:].square().sum()) for n, r in ranks.items() if r is not None)


def _cost(shape: Shape, rank: int | None) -> int:
    return shape[0] * shape[1] if rank is None else rank * (shape[0] + shape[1])


def _points(shape: Shape, spectrum: Tensor, multiple_of: int) -> list[Point]:
    squares = spectrum.double().square()
    tails = [*squares.flip(0).cumsum(0).flip(0).tolist(), 0.0]  # tails[r]: loss at rank r
    largest = (shape[0] * shape[1] - 1) // (shape[0] + shape[1])
    points = [(_cost(shape, r), tails[r], r) for r in range(multiple_of, largest + 1, multiple_of)]
    return [*points, (_cost(shape, None), 0.0, None)]


def _hull(points: list[Point]) -> list[int]:
    """Indices of the lower convex hull of (cost, loss)."""
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
    """Take steps along ``paths`` (indices of points), best loss per parameter first, while they fit into ``left``.

    Changes ``at`` in place; returns the rest of the budget.
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
