"""The keys of a stage's slice as lines for its ``--help``, from the schema of its settings class."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lowrank_speech.schemas import Schemas

NAMES = {
    "boolean": "true or false",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "array": "list",
    "object": "mapping",
    "null": "null",
}


def help_text(config: type, runtime: type) -> str:
    """All keys of both classes, one line each: path, type, default, meaning."""
    parts = [_section("keys of --cfg:", config)]
    if rows := _section("keys of --runtime:", runtime):
        parts.append(rows)
    return "\n".join(filter(None, parts))


def _section(title: str, cls: type) -> str:
    rows = list(keys_of(Schemas().of(cls)))
    if not rows:
        return ""
    width = max(len(path) for path, *_ in rows)
    return f"{title}\n" + "".join(f"  {path:<{width}}  {what}\n" for path, what in rows)


def keys_of(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Path and description of every key of a section's schema, followed by those of the sections in it."""
    required = node.get("required", ())
    for name, part in node.get("properties", {}).items():
        nested = part.get("properties")
        default = "required" if name in required else "" if nested else f"default {json.dumps(part.get('default'))}"
        said = "; ".join(filter(None, (_type(part), default)))
        meaning = part.get("description")
        yield prefix + name, f"{said}: {meaning}" if meaning else said
        if nested:
            yield from keys_of(part, f"{prefix}{name}.")


def _type(part: Mapping[str, Any]) -> str:
    if "enum" in part:
        return " | ".join("null" if value is None else str(value) for value in part["enum"])
    if "properties" in part:
        return "section"
    types = part.get("type", [])
    return " or ".join(NAMES[kind] for kind in ([types] if isinstance(types, str) else types)) or "anything"
