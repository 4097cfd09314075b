"""Settings: frozen dataclasses that check themselves, and JSON read into them with errors that people can act on.

A section of the config is a class with :func:`settings`. Types, ranges, defaults and meanings stand there and nowhere
else: the config schema (``workflow/schemas``), ``--help`` and ``docs/configuration.md`` are generated from them.

>>> @settings
... class Noise:
...     snr: Range = key((5.0, 20.0), "lowest and highest ratio to the speech, dB")
...     probability: Share = key(0.5, "share of the utterances that get noise")
>>> read(Noise, {"probability": 2}, "training.noise")
Traceback (most recent call last):
lowrank_speech.errors.UserError: training.noise.probability is 2; it must be at most 1

Imports pydantic and nothing heavy. ``lowrank`` and ``scoring`` know nothing of this package and use pydantic itself.
"""

import functools
import json
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from lowrank_speech.errors import UserError
from lowrank_speech.settings_errors import first_line

T = TypeVar("T")

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, validate_by_name=True, validate_by_alias=True)
REQUIRED: Any = ...
LARGE = 1_000_000


def key(default: Any, meaning: str, *, runtime: bool = False, **options: Any) -> Any:
    """A field with its default (``REQUIRED``: none) and its meaning, one phrase for the documentation.

    ``runtime``: the setting decides how a stage runs and never what comes out; no hash sees it. ``options``: those of
    pydantic's ``Field`` (gt, ge, le, alias, default_factory ...).
    """
    extra = {"runtime": True} if runtime else None
    if "default_factory" in options:
        return Field(description=meaning, json_schema_extra=extra, **options)
    return Field(default, description=meaning, json_schema_extra=extra, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(key, Field))
def settings(cls: type[T]) -> type[T]:
    """A frozen dataclass whose values are checked; what it refuses is a ValueError of one line.

    ``__post_init__`` checks what concerns several keys together.
    """
    made = dataclass(frozen=True, config=CONFIG)(cls)
    checked = made.__init__

    @functools.wraps(checked)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            checked(self, *args, **kwargs)
        except pydantic.ValidationError as error:
            raise ValueError(first_line(error, "")) from error

    made.__init__ = init
    return made


def read(cls: type[T], value: Any, where: str = "cfg") -> T:
    """Build the settings class ``cls`` from a JSON value. UserError with the key's path below ``where``, one line."""
    try:
        # From text, and strictly: JSON's lists become tuples, and nothing else is converted.
        return adapter(cls).validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        raise UserError(first_line(error, where, cls)) from error


def resolved(value: Any) -> dict[str, Any]:
    """The settings ``value`` as JSON, every default written out."""
    return adapter(type(value)).dump_python(value, mode="json", by_alias=True)


@functools.cache
def adapter(cls: type) -> TypeAdapter:
    """Pydantic's reader and writer of a settings class."""
    return TypeAdapter(cls)


# -- types that several sections share ---------------------------------------------------------------------------------


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"is {list(pair)}; give the lowest value first, then the highest")
    return pair


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
# Whole numbers have an upper bound everywhere: 1e30 is a slip, and a stage would find it hours later.
Count = Annotated[int, Field(ge=1, le=LARGE)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGE)]
Large = Annotated[int, Field(ge=1, le=1_000_000_000)]  # steps, utterances
LargeOrZero = Annotated[int, Field(ge=0, le=1_000_000_000)]
Seed = Annotated[int, Field(ge=0, le=4_294_967_295)]  # 32 bits, to which the stages add 32 of their own
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
