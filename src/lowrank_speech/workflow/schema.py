"""Checks a config against the JSON schema and says in one line what is wrong and where.

jsonschema comes with Snakemake; it is loaded when the check runs. Its own messages print the whole schema.
"""

import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from lowrank_speech.workflow.config import ConfigError

TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def validate(config: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """ConfigError with one line on the first thing that ``schema`` (draft 2020-12) does not allow."""
    import jsonschema

    _check_values(config, ())
    draft = jsonschema.Draft202012Validator
    # JSON Schema takes 2.0 for a whole number; the stages do not.
    types = draft.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    errors = jsonschema.validators.extend(draft, type_checker=types)(schema).iter_errors(config)
    first = min(errors, key=_order, default=None)
    if first is not None:
        raise ConfigError(message(first))


def _order(error: Any) -> tuple[bool, list[str], bool]:
    """What is told first."""
    # A typo shows as an unknown key, and often as a missing one as well: the unknown one says more. So does the bound
    # that 1e30 is beyond, than that it is no whole number.
    return error.validator != "additionalProperties", list(map(str, error.absolute_path)), error.validator == "type"


def message(error: Any) -> str:
    """One line for a jsonschema.ValidationError."""
    where = dotted(error.absolute_path)
    value = error.instance
    match error.validator:
        case "additionalProperties":
            known = error.schema.get("properties", {})
            key = next(key for key in value if key not in known)
            return f"{where}: unknown key {key!r}{nearest(key, known)}; known keys: {', '.join(sorted(known))}"
        case "required":
            missing = next(key for key in error.validator_value if key not in value)
            return f"{where}: the key {missing!r} is missing"
        case "type":
            types = [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
            return f"{where}: expected {' or '.join(TYPES[t] for t in types)}, got {value!r}{_hint(value, types)}"
        case "enum" | "const":
            legal = [error.validator_value] if error.validator == "const" else error.validator_value
            return f"{where}: {value!r} is none of {', '.join(map(str, legal))}{nearest(value, legal)}"
        case "pattern":
            return f"{where}: {value!r} will not do; use {error.schema.get('description', error.validator_value)}"
        case "minItems" | "minProperties":
            return f"{where}: at least {error.validator_value} is needed, got {value!r}"
    return f"{where}: {error.message}"


def nearest(value: Any, legal: Iterable[Any]) -> str:
    """`` (did you mean 'epochs'?)`` where ``value`` looks like one of ``legal``, else nothing."""
    found = difflib.get_close_matches(str(value), list(map(str, legal)), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def dotted(path: Iterable[str | int]) -> str:
    """``bases.wav2vec2.model`` or ``langs.chars.splits[0]`` from the parts; ``config`` for none."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "config"


def _hint(value: Any, types: list[str]) -> str:
    if isinstance(value, bool) and "string" in types:
        return " (YAML reads no, off and yes so; put it in quotes)"
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return f" (write {int(value)})"
    if isinstance(value, str) and {"number", "integer"} & set(types):
        try:
            number = float(value)
        except ValueError:
            return ""
        if not abs(number) <= sys.float_info.max:
            return ""
        return f" (YAML reads it as text: write {number!r} without quotes, and a point before an e, as in 1.0e-4)"
    return ""


def _check_values(value: Any, path: tuple[str | int, ...]) -> None:
    """YAML has keys such as no and 1, which it reads as other types, and numbers such as .nan: JSON holds neither."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{dotted(path)}: YAML reads the key {key!r} as no text; put it in quotes")
            _check_values(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_values(inner, (*path, index))
    elif isinstance(value, int | float) and not abs(value) <= sys.float_info.max:  # of NaN nothing holds
        raise ConfigError(f"{dotted(path)}: {value!r} is no finite number; give one")
