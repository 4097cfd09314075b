"""The plan: which layer gets which rank.

Exactly one of five criteria decides the ranks:

    rank       the same rank for every layer
    fraction   rank = fraction * min(d_out, d_in)
    keep       share of its parameters that each layer keeps: r = keep * d_out d_in / (d_out + d_in)
    energy     the smallest rank that keeps this share of the layer's squared singular values
    reduction  share of the *whole model's* parameters to save: all layers get the same ``keep``, the largest that
               saves enough; if it saves 0.2 % too much, some layers get one rank step more

A layer whose factors would not be smaller than its matrix stays dense and is reported. ``lowrank.allocate``
redistributes the parameters of such a plan over the layers.
"""

import math
from collections.abc import Mapping
from fractions import Fraction

from torch import Tensor

from lowrank_speech.lowrank.structure import Plan, Shape, dense_size, factored_size, full_rank, rank_size

TOLERANCE = 0.002  # share of the whole model's parameters


def largest_rank(shape: Shape, multiple_of: int = 1) -> int:
    """The largest rank (a multiple of ``multiple_of``) at which the factors are smaller than the matrix; 0 if none."""
    exact = factored_size(shape, 0)
    most = (dense_size(shape) - exact - 1) // rank_size(shape)
    return max(min(most, full_rank(shape)), 0) // multiple_of * multiple_of


def plan_ranks(
    shapes: Mapping[str, Shape],
    total_params: int,
    rank: int | None = None,
    fraction: float | None = None,
    keep: float | None = None,
    energy: float | None = None,
    reduction: float | None = None,
    multiple_of: int = 1,
    spectra: Mapping[str, Tensor] | None = None,
) -> Plan:
    """Ranks for layers of ``shapes`` (name -> (d_out, d_in)) by exactly one criterion; see the module's table.

    ``total_params``: parameters of the whole model, to which ``reduction`` refers. ``spectra``: name -> singular values
    (min(d_out, d_in),) in descending order, which ``energy`` needs. ``multiple_of``: ranks are rounded
    to its multiples (``energy`` up, ``keep`` and ``reduction`` down, ``fraction`` to the nearest).

    Raises ValueError if there is not exactly one criterion, a value is out of range, a rank is above a layer's full
    rank, or the layers cannot reach a reduction.
    """
    wishes = {"rank": rank, "fraction": fraction, "keep": keep, "energy": energy, "reduction": reduction}
    given = [name for name, value in wishes.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give exactly one of {', '.join(wishes)}; given: {', '.join(given) or 'none'}")
    if not shapes:
        raise ValueError("there is no layer to factorise; name some layers")
    if multiple_of < 1:
        raise ValueError(f"multiple_of is {multiple_of}; it must be at least 1")
    kind, value = given[0], wishes[given[0]]
    _check(kind, value, multiple_of)
    if kind == "energy" and spectra is None:
        raise ValueError("energy needs the singular values of the layers")
    if kind == "reduction":
        ranks = _by_reduction(shapes, total_params, value, multiple_of)
    else:
        ranks = {
            name: _rank(kind, value, name, shape, multiple_of, spectra[name] if spectra else None)
            for name, shape in shapes.items()
        }
    ranks = {name: None if r is None or r > largest_rank(shapes[name]) else r for name, r in ranks.items()}
    reasons = {}
    for name in [name for name, r in ranks.items() if r is None]:
        limit = largest_rank(shapes[name], multiple_of)
        reasons[name] = f"its factors would not be smaller than its {shapes[name][:2]} matrix (largest rank: {limit})"
    return Plan({name: r for name, r in ranks.items() if r is not None}, reasons)


def _check(kind: str, value: float, multiple_of: int) -> None:
    if kind == "rank":
        if value < 1:
            raise ValueError(f"rank is {value}; it must be at least 1")
        if value % multiple_of:
            raise ValueError(f"rank is {value}; it must be a multiple of {multiple_of} (multiple_of)")
    elif not 0 < value <= 1 or (kind == "reduction" and value == 1):
        raise ValueError(f"{kind} is {value}; expected a share between 0 and 1")


def _rank(kind: str, value: float, name: str, shape: Shape, multiple_of: int, spectrum: Tensor | None) -> int:
    full = full_rank(shape)
    if kind == "rank":
        if value > full:
            raise ValueError(f"rank {value} is above the full rank {full} of the layer {name!r} {shape}")
        return value
    if kind == "fraction":
        wanted = round(value * full / multiple_of) * multiple_of
    elif kind == "keep":
        wanted = _keep_rank(Fraction(value), shape, multiple_of)
    else:
        squares = spectrum.double().square().cumsum(0)
        # Rounding errors must not require one more singular value.
        needed = int((squares < value * squares[-1] * (1 - 1e-12)).sum()) + 1
        wanted = math.ceil(needed / multiple_of) * multiple_of
    return min(max(wanted, multiple_of), full)


def _keep_rank(keep: Fraction, shape: Shape, multiple_of: int) -> int:
    kept = keep * dense_size(shape) - factored_size(shape, 0)
    return max(math.floor(kept / (rank_size(shape) * multiple_of)), 1) * multiple_of


def _by_reduction(shapes: Mapping[str, Shape], total: int, reduction: float, multiple_of: int) -> dict[str, int | None]:
    """Ranks from the largest ``keep`` ratio for all layers that saves enough. None: no rank makes the layer smaller."""
    able = {name: shape for name, shape in shapes.items() if largest_rank(shape, multiple_of)}
    target = reduction * total
    lowest = sum(dense_size(s) - factored_size(s, multiple_of) for s in able.values())
    if target > lowest:
        reachable = math.floor(1e4 * lowest / total) / 1e4
        raise ValueError(
            f"a reduction of {reduction:.4g} is out of reach with these {len(shapes)} layers: with rank {multiple_of} "
            f"in each, the reduction of the whole model ({total:,} parameters) is only {reachable}; lower reduction, "
            f"or name more layers"
        )
    counts: dict[Shape, int] = {}
    for shape in able.values():
        counts[shape] = counts.get(shape, 0) + 1

    def ranks_at(keep: Fraction) -> dict[Shape, int]:
        return {s: min(_keep_rank(keep, s, multiple_of), largest_rank(s, multiple_of)) for s in counts}

    def saving(ranks: Mapping[Shape, int]) -> int:
        return sum(n * (dense_size(s) - factored_size(s, ranks[s])) for s, n in counts.items())

    # The saving changes only at ratios where the rank of some shape changes.
    keeps = {
        Fraction(factored_size(s, r), dense_size(s))
        for s in counts
        for r in range(multiple_of, largest_rank(s, multiple_of) + 1, multiple_of)
    }
    # The largest ranks that save enough.
    by_shape = next(r for r in map(ranks_at, sorted(keeps, reverse=True)) if saving(r) >= target)
    ranks = {name: by_shape[shape] for name, shape in able.items()}
    spare = saving(by_shape) - target
    if spare > TOLERANCE * total:
        _raise_some(ranks, able, spare, multiple_of)
    return {name: ranks.get(name) for name in shapes}


def _raise_some(ranks: dict[str, int], shapes: Mapping[str, Shape], spare: float, step: int) -> None:
    """Raise the rank of some layers by one ``step``, in place, spending at most ``spare`` parameters."""
    names = list(ranks)
    # Multiples of the golden ratio, modulo 1, spread the raised layers evenly over the model's depth.
    for i in sorted(range(len(names)), key=lambda i: i * 0.6180339887498949 % 1):
        shape, rank = shapes[names[i]], ranks[names[i]] + step
        price = step * rank_size(shape)
        if price <= spare and rank <= largest_rank(shape, step):
            ranks[names[i]] = rank
            spare -= price
