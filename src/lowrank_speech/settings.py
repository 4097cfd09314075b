"""Settings: frozen dataclasses that validate themselves, and a JSON reader with errors that people can act on.

Each config section is a class with :func:`settings`. It is the only place for types, ranges, defaults and meanings: the
config schema (``workflow/schemas``), ``--help`` and ``docs/configuration.md`` are generated from it.

>>> @settings
... class Noise:
...     snr: Range = key((5.0, 20.0), "lowest and highest signal-to-noise ratio, dB")
...     probability: Share = key(0.5, "share of the utterances that get noise")
>>> read(Noise, {"probability": 2}, "training.noise")
Traceback (most recent call last):
lowrank_speech.errors.UserError: training.noise.probability is 2; it must be at most 1

Imports only pydantic, nothing heavy. ``lowrank`` and ``scoring`` do not depend on this package; they use pydantic
directly.
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
    """A field with its default (``REQUIRED``: none) and its meaning, a phrase for the documentation.

    ``runtime``: the setting affects how a stage runs but never its result, so no hash includes it. ``options``: those
    of pydantic's ``Field`` (gt, ge, le, alias, default_factory ...).
    """
    extra = {"runtime": True} if runtime else None
    if "default_factory" in options:
        return Field(description=meaning, json_schema_extra=extra, **options)
    return Field(default, description=meaning, json_schema_extra=extra, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(key, Field))
def settings(cls: type[T]) -> type[T]:
    """Make a frozen dataclass that validates its values; invalid ones raise a one-line ValueError.

    ``__post_init__`` checks keys that depend on each other.
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
    """Build the settings class ``cls`` from a JSON value. Raises a one-line UserError with the path below ``where``."""
    try:
        # Strict JSON validation only converts lists to tuples.
        return adapter(cls).validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        raise UserError(first_line(error, where, cls)) from error


def resolved(value: Any) -> dict[str, Any]:
    """The settings ``value`` as JSON, with all defaults."""
    return adapter(type(value)).dump_python(value, mode="json", by_alias=True)


@functools.cache
def adapter(cls: type) -> TypeAdapter:
    """Pydantic's reader and writer for a settings class."""
    return TypeAdapter(cls)


# -- shared types ------------------------------------------------------------------------------------------------------


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError(f"is {list(pair)}; give the lowest value first, then the highest")
    return pair


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
# All integers have an upper bound: 1e30 is a typo, and a stage would find it hours later.
Count = Annotated[int, Field(ge=1, le=LARGE)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGE)]
Large = Annotated[int, Field(ge=1, le=1_000_000_000)]  # steps, utterances
LargeOrZero = Annotated[int, Field(ge=0, le=1_000_000_000)]
Seed = Annotated[int, Field(ge=0, le=4_294_967_295)]  # 32 bits; the stages add 32 bits of their own
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
