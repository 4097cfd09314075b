"""Check a config against the JSON schema, and fill in the schema's defaults.

``experiment.schema`` generates the schema (``workflow/schemas/config.schema.json``) from the settings classes. It has
three extensions: ``partial`` (a section that overrides another one and gets no defaults), ``runtime`` (a key that no
hash includes) and, in a section with several kinds, the branch that the key ``kind`` selects.

jsonschema comes with Snakemake, and is loaded when the check runs. Its own messages would print the whole schema.
"""

import copy
import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from lowrank_speech.workflow.config import ConfigError

Schema = Mapping[str, Any]

TYPES = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


# -- defaults ----------------------------------------------------------------------------------------------------------


def resolve(value: Any, node: Schema, root: Schema) -> Any:
    """A copy of ``value`` with every default of ``node``, a part of the schema ``root``.

    Numbers become floats if the schema requires a number, so that 1 and 1.0 are the same setting.
    """
    node = followed(node, root)
    if isinstance(value, Mapping):
        node = branch(value, node, root)
        if node.get("partial"):
            return copy.deepcopy(dict(value))
        properties, rest = node.get("properties", {}), node.get("additionalProperties")
        made = {}
        for key, part in properties.items():
            if key in value:
                made[key] = resolve(value[key], part, root)
            elif "default" in (part if isinstance(part, Mapping) else {}):
                made[key] = resolve(copy.deepcopy(part["default"]), part, root)
        for key in value:
            if key not in properties:
                made[key] = resolve(value[key], rest if isinstance(rest, Mapping) else {}, root)
        return made
    if isinstance(value, list):
        items = node.get("items")
        return [resolve(item, items if isinstance(items, Mapping) else {}, root) for item in value]
    if type(value) is int and "number" in _types(node) and "integer" not in _types(node):
        return float(value)
    return value


def branch(value: Mapping[str, Any], node: Schema, root: Schema) -> Schema:
    """The branch of ``node`` that the ``kind`` of ``value`` selects; ``node`` itself if it has no branches."""
    for case in node.get("allOf", ()):
        wanted = case["if"]["properties"]
        if all(value.get(key, _default(node, key)) == part["const"] for key, part in wanted.items()):
            return followed(case["then"], root)
    return node


def section(root: Schema, name: str) -> Schema:
    """The schema of a section that is defined under ``name``."""
    return root["$defs"][name]


def runtime_keys(node: Schema, root: Schema) -> list[str]:
    """Keys of ``node`` that cannot change a stage's result."""
    properties = followed(node, root).get("properties", {})
    return [key for key, part in properties.items() if isinstance(part, Mapping) and part.get("runtime")]


def _default(node: Schema, key: str) -> Any:
    return node.get("properties", {}).get(key, {}).get("default")


def followed(node: Schema, root: Schema) -> Schema:
    """``node`` with the definition that it refers to; its own words win."""
    while "$ref" in node:
        target = root["$defs"][node["$ref"].rpartition("/")[2]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    return node


def _types(node: Schema) -> list[str]:
    types = node.get("type", [])
    return [types] if isinstance(types, str) else types


# -- the check ---------------------------------------------------------------------------------------------------------


def validate(config: Mapping[str, Any], schema: Schema) -> None:
    """Raise a one-line ConfigError for the first violation of ``schema`` (draft 2020-12)."""
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
    """Sort key: the error to report comes first."""
    # A typo is an unknown key and often also a missing one; the unknown key is more helpful. Likewise, for 1e30 the
    # bound is more helpful than 'expected a whole number'.
    return error.validator != "additionalProperties", list(map(str, error.absolute_path)), error.validator == "type"


BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


def message(error: Any) -> str:
    """One line for a jsonschema.ValidationError."""
    where = dotted(error.absolute_path)
    value, limit = error.instance, error.validator_value
    match error.validator:
        case "additionalProperties":
            known = error.schema.get("properties", {})
            key = next(key for key in value if key not in known)
            return f"{where}: unknown key {key!r}{nearest(key, known)}; known keys: {', '.join(sorted(known))}"
        case "required":
            missing = next(key for key in limit if key not in value)
            return f"{where}: the key {missing!r} is missing"
        case "type":
            types = [limit] if isinstance(limit, str) else limit
            return f"{where}: expected {' or '.join(TYPES[t] for t in types)}, got {value!r}{_hint(value, types)}"
        case "enum" | "const":
            legal = [limit] if error.validator == "const" else limit
            shown = ", ".join("null" if one is None else str(one) for one in legal)
            return f"{where}: {value!r} is not valid; expected one of: {shown}{nearest(value, legal)}"
        case "pattern":
            return f"{where}: {value!r} is not valid; use {error.schema.get('expected', limit)}"
        case "minItems" | "minProperties":
            return f"{where}: expected at least {limit} {'entry' if limit == 1 else 'entries'}, got {value!r}"
        case "uniqueItems":
            twice = next(one for i, one in enumerate(value) if one in value[:i])
            return f"{where}: {twice!r} occurs twice in {value!r}; remove one"
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            return f"{where} is {value!r}; it must be {BOUNDS[error.validator].format(limit)}"
    return f"{where}: {error.message}"


def nearest(value: Any, legal: Iterable[Any]) -> str:
    """`` (did you mean 'epochs'?)`` if ``value`` is similar to one of ``legal``, otherwise an empty string."""
    found = difflib.get_close_matches(str(value), list(map(str, legal)), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def dotted(path: Iterable[str | int]) -> str:
    """``bases.wav2vec2.model`` or ``langs.chars.splits[0]`` from the parts; ``config`` if there are none."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "config"


def _hint(value: Any, types: list[str]) -> str:
    if isinstance(value, bool) and "string" in types:
        return " (YAML reads no, off and yes as true or false; put it in quotes)"
    if isinstance(value, float) and value.is_integer() and "integer" in types:
        return f" (write {int(value)})"
    if isinstance(value, str) and {"number", "integer"} & set(types):
        try:
            number = float(value)
        except ValueError:
            return ""
        if not abs(number) <= sys.float_info.max:
            return ""
        if "number" not in types:
            return f" (YAML reads it as text: write {number:.0f} without quotes)" if number.is_integer() else ""
        return f" (YAML reads it as text: write {number!r} without quotes, and a point before an e, as in 1.0e-4)"
    return ""


def _check_values(value: Any, path: tuple[str | int, ...]) -> None:
    """Refuse what JSON does not support: keys that YAML does not read as text (no, 1), and numbers such as .nan."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ConfigError(f"{dotted(path)}: YAML does not read the key {key!r} as text; put it in quotes")
            _check_values(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_values(inner, (*path, index))
    elif isinstance(value, int | float) and not abs(value) <= sys.float_info.max:  # NaN compares false
        raise ConfigError(f"{dotted(path)} is {value!r}; it must be finite")
