"""Generate JSON schemas from settings classes, in a plain form that the workflow reads without pydantic.

In: a settings class. Out: a schema (draft 2020-12) with only closed objects, with all defaults, without ``anyOf`` for
nullable values, and with the branches of a section with several kinds selected by the key ``kind``.

    >>> tool = Schemas()
    >>> tool.define("training", TrainConfig)
    {'$ref': '#/$defs/training'}

``experiment.py`` uses it to assemble the schema of the whole config.
"""

from collections.abc import Mapping
from typing import Any

from lowrank_speech.settings import adapter

Node = dict[str, Any]
# Keywords of pydantic's schemas that are not needed here.
_DROPPED = ("title", "discriminator")


class Schemas:
    """Collects definitions (``definitions``), one per settings class."""

    def __init__(self) -> None:
        self.definitions: dict[str, Node] = {}

    def define(self, name: str, cls: type) -> Node:
        """Add the schema of ``cls`` under ``name``; returns a reference to it."""
        self.definitions[name] = self.of(cls)
        return ref(name)

    def of(self, cls: type) -> Node:
        """The schema of ``cls`` with all references resolved."""
        raw = adapter(cls).json_schema(by_alias=True)
        return _plain(raw, raw.get("$defs", {}))


def ref(name: str) -> Node:
    """A reference to the definition ``name``."""
    return {"$ref": f"#/$defs/{name}"}


def partial(node: Node) -> Node:
    """``node`` as a section that overrides another one, so without its own defaults."""
    return node | {"partial": True}


def nullable(node: Node) -> Node:
    """``node``, or null."""
    if "enum" in node:
        return {**node, "enum": [*node["enum"], None]}
    types = node["type"]
    return {**node, "type": list(dict.fromkeys([*([types] if isinstance(types, str) else types), "null"]))}


def named(node: Node, least: int = 0) -> Node:
    """A mapping of names (of folders and files) to ``node``."""
    result: Node = {"type": "object", "propertyNames": ref("name"), "additionalProperties": node}
    return result | ({"minProperties": least} if least else {})


def by_kind(branches: Mapping[str, Node], key: str = "kind") -> Node:
    """A section whose ``key`` selects one of ``branches`` (closed objects that also have ``key``)."""
    cases = [
        {"if": {"properties": {key: {"const": kind}}, "required": [key]}, "then": node}
        for kind, node in branches.items()
    ]
    return {"type": "object", "required": [key], "properties": {key: {"enum": list(branches)}}, "allOf": cases}


def _plain(node: Any, definitions: Mapping[str, Node]) -> Any:
    if not isinstance(node, Mapping):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    node = {key: value for key, value in node.items() if key not in _DROPPED and key != "$defs"}
    if "anyOf" in node:
        node = _laid_over(node, definitions)
    if "const" in node:
        node = {key: value for key, value in node.items() if key not in ("const", "type")} | {"enum": [node["const"]]}
    elif "enum" in node:
        node.pop("type", None)
    if "prefixItems" in node:
        node = _pair(node)
    if "properties" in node:
        node["properties"] = {key: _property(part, definitions) for key, part in node["properties"].items()}
        node["additionalProperties"] = False
        for key, part in node["properties"].items():
            # Pydantic leaves out the defaults of a default_factory; such sections have their own defaults.
            if "default" not in part and key not in node.get("required", ()):
                part["default"] = [] if part.get("type") == "array" else {}
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), Mapping):
            node[key] = _plain(node[key], definitions)
    return node


def _property(part: Node, definitions: Mapping[str, Node]) -> Node:
    return _plain(part, definitions)


def _laid_over(node: Node, definitions: Mapping[str, Node]) -> Node:
    """Merge alternatives of different JSON types; all keywords except ``type`` and ``enum`` apply to only one type."""
    merged: Node = {}
    types: list[str] = []
    enum: list[Any] | None = None
    for option in node["anyOf"]:
        option = _plain(option, definitions)
        if "enum" in option:
            enum = [*(enum or []), *option["enum"]]
        elif isinstance(option.get("type"), str):
            types.append(option["type"])
        else:
            types += option.get("type", [])
        merged |= {key: value for key, value in option.items() if key not in ("type", "enum", "description")}
    if enum is not None:
        merged["enum"] = enum + ([None] if "null" in types else [])
    else:
        merged["type"] = types[0] if len(types) == 1 else types
    return merged | {key: value for key, value in node.items() if key != "anyOf"}


def _pair(node: Node) -> Node:
    """A tuple of fixed length with equal item types, as an array."""
    first, *rest = node["prefixItems"]
    assert all(item == first for item in rest), f"a tuple of different types has no plain schema: {node}"
    return {key: value for key, value in node.items() if key != "prefixItems"} | {"items": first}
