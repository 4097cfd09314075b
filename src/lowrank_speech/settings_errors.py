"""Error messages of settings classes: pydantic's first error as one line that names the key and the value.

Separate from ``settings``, so that rewording a message does not run any stage again (``fingerprints``).
"""

import difflib
from collections.abc import Iterable
from typing import Any

import pydantic

TYPES = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "dataclass_type": "a mapping",
}
BOUNDS = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "finite_number": "finite",
}


def first_line(error: pydantic.ValidationError, where: str, cls: type | None = None) -> str:
    """The first problem in ``error`` as one line; ``where``: the path of the section in the config."""
    errors = error.errors()
    # A typo is reported as an unknown key, and often also as a missing one; the unknown key is more helpful.
    found = next((e for e in errors if e["type"] == "unexpected_keyword_argument"), errors[0])
    if found is errors[0]:
        # If a key has alternatives, the one with the deepest error is probably the intended one.
        top = _path(found)
        found = max((e for e in errors if _path(e)[: len(top)] == top), key=lambda e: len(_path(e)))
    path = _path(found)
    value, kind, context = found["input"], found["type"], found.get("ctx", {})
    if kind == "unexpected_keyword_argument":
        known = known_keys(cls, path[:-1]) if cls is not None else []
        section = dotted(where, path[:-1]) or "settings"
        listed = f"; known keys: {', '.join(sorted(known))}" if known else ""
        return f"{section}: unknown key {path[-1]!r}{nearest(path[-1], known)}{listed}"
    if kind in ("missing", "missing_argument") and isinstance(path[-1], int):
        return f"{dotted(where, path[:-1])}: expected at least {path[-1] + 1} values, got {value!r}"
    if kind in ("missing", "missing_argument"):
        return f"{dotted(where, path[:-1]) or 'settings'}: the key {path[-1]!r} is missing"
    name = dotted(where, path)
    if kind == "value_error":
        said = str(context["error"])
        # A key's validator says only what is wrong with the value; the check of a section names the keys itself.
        return f"{name} {said}" if said.startswith("is ") else f"{name}: {said}" if name else said
    if kind == "literal_error":
        legal = context["expected"].replace("'", "").replace(" or ", ", ")
        return f"{name}: {value!r} is not valid; expected one of: {legal}{nearest(value, legal.split(', '))}"
    if kind in BOUNDS:
        return f"{name} is {value!r}; it must be {BOUNDS[kind].format(**context)}"
    if kind in TYPES:
        return f"{name}: expected {TYPES[kind]}, got {value!r}"
    return f"{name}: {found['msg'][:1].lower()}{found['msg'][1:]}, got {value!r}"


def _path(error: Any) -> list[str | int]:
    """The path of an error, without the names that pydantic gives to alternatives."""
    return [part for part in error["loc"] if not (isinstance(part, str) and ("[" in part or part in ("str", "int")))]


def dotted(where: str, path: Iterable[str | int]) -> str:
    """``training.noise.snr`` or ``langs.chars.splits[0]``, from the section's path and the rest of the path."""
    text = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def nearest(value: Any, legal: Iterable[Any]) -> str:
    """`` (did you mean 'epochs'?)`` if ``value`` is similar to one of ``legal``, otherwise an empty string."""
    found = difflib.get_close_matches(str(value), list(map(str, legal)), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def known_keys(cls: type, path: Iterable[str | int]) -> list[str]:
    """Keys of the section at ``path`` below the settings class ``cls``; empty if that is not a section."""
    schema = pydantic.TypeAdapter(cls).json_schema()
    node: Any = schema
    for part in [None, *path]:
        if part is not None:
            node = node.get("properties", {}).get(part) if isinstance(part, str) else node.get("items")
        # A section may be optional, or a reference to a definition.
        while isinstance(node, dict) and ("$ref" in node or "anyOf" in node):
            reference = node.get("$ref") or next((n["$ref"] for n in node["anyOf"] if "$ref" in n), None)
            if reference is None:
                return []
            node = schema["$defs"][reference.rpartition("/")[2]]
        if not isinstance(node, dict):
            return []
    return list(node.get("properties", {}))
