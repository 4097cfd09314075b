"""The grid over which the scales of a decoder are tuned on dev.

    tune: {lm_weight: [0, 0.5, 1], insertion: [-1, 0, 1]}      # a section of a decoder: 3 x 3 points

Reads only settings, because the config check builds the grid before the first job.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.schemas import Schemas
from lowrank_speech.settings import read
from lowrank_speech.settings_errors import nearest

NOT_TUNED = ("batch_seconds", "nbest")
"""Numbers that do not change the best hypothesis."""
MOST = 1000
"""Largest number of points."""


def tunable(cls: type) -> dict[str, bool]:
    """The keys of a decoder's settings class that have numbers -> whether they are whole numbers."""
    found = {}
    for name, part in Schemas().of(cls)["properties"].items():
        types = part.get("type", [])
        types = {types} if isinstance(types, str) else set(types)
        if types & {"number", "integer"} and name not in NOT_TUNED and not part.get("runtime"):
            found[name] = "number" not in types
    return found


def grid(
    cls: type, decoder: Mapping[str, Any], tune: Mapping[str, Sequence[float]], where: str
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Every point of the grid and its settings, in ascending order: the first key, in alphabetical order, varies least.

    ``decoder``: the keys of the decoder; ``tune``: key -> values; ``where`` names the decoder in messages. UserError: a
    key that cannot be tuned or has no values, a value out of range, too many points.
    """
    known = tunable(cls)
    for name, values in tune.items():
        at = f"{where}.tune.{name}"
        if name not in known:
            raise UserError(
                f"{at}: this key cannot be tuned; expected one of: {', '.join(sorted(known)) or 'none'}"
                f"{nearest(name, known)}"
            )
        if not values:
            raise UserError(f"{at} is empty; list the values to try")
        if len(set(values)) < len(values):
            twice = next(value for i, value in enumerate(values) if value in values[:i])
            raise UserError(f"{at}: {twice:g} occurs twice; remove one")
        if known[name] and (broken := next((value for value in values if value != int(value)), None)) is not None:
            raise UserError(f"{at}: {broken:g} is not a whole number")
    names = sorted(tune)
    values = [sorted(map(int, tune[name]) if known[name] else map(float, tune[name])) for name in names]
    points = [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]
    if len(points) > MOST:
        raise UserError(f"{where}.tune has {len(points)} points; at most {MOST} are allowed: list fewer values")
    for point in points:
        yield point, read(cls, {**decoder, **point}, where)
