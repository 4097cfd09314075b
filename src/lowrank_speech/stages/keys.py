"""The keys of a stage's slice as lines for its ``--help``, from the dataclass that reads them."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "anything"}


def keys_of(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Path and description (type, default) of every key of the dataclass ``cls``, those of its sections below it."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        found = [kind for kind in _alternatives(hints[field.name]) if kind is not types.NoneType]
        sections = [kind for kind in found if dataclasses.is_dataclass(kind)]
        yield prefix + field.name, "".join([" or ".join(map(_named, found)), _default(field)])
        for section in sections:
            yield from keys_of(section, f"{prefix}{field.name}.")


def help_text(cls: type) -> str:
    """All keys, a line each."""
    rows = list(keys_of(cls))
    width = max(len(path) for path, _ in rows)
    return "keys of --cfg:\n" + "".join(f"  {path:<{width}}  {what}\n" for path, what in rows)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _named(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return "section"
    if origin is typing.Literal:
        return " | ".join(map(str, inner))
    if origin is tuple:
        return f"list of {_named(inner[0])}"
    if origin is dict or kind is dict:
        return "mapping"
    return NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _default(field: dataclasses.Field) -> str:
    if isinstance(field.default, FieldInfo):
        if field.default.is_required():
            return "; required"
        value = field.default.get_default(call_default_factory=True)
        return "" if dataclasses.is_dataclass(value) else f"; default: {json.dumps(value, default=str)}"
    if field.default is not dataclasses.MISSING:
        return f"; default: {json.dumps(field.default, default=str)}"
    if field.default_factory is dataclasses.MISSING:
        return "; required"
    value = field.default_factory()
    return "" if dataclasses.is_dataclass(value) else f"; default: {json.dumps(value, default=str)}"
