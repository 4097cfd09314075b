"""Generate the reference of all config keys as Markdown, from the schema that ``experiment.schema`` makes."""

from collections.abc import Iterator, Mapping
from typing import Any

from lowrank_speech.stages.keys import NAMES, keys_of
from lowrank_speech.workflow.schema import followed

HEAD = """# Configuration

Every key of an experiment's config, with its type, default and meaning. This page is generated from the settings
classes (`python -m lowrank_speech.experiment`); `config.yaml` is a complete example with comments. Unknown
keys are errors.

"""

SECTIONS = {
    "corpora": ("Corpora", "`corpora.<name>`, by `kind`. The keys of `splits` go below the name of each split."),
    "langs": ("Token sets", "`langs.<name>`, by `kind`."),
    "lms": ("Language models", "`lms.<name>`: n-gram models. Only those that a decoder of the grid names are made."),
    "bases": ("Bases", "`bases.<name>`."),
    "tasks": ("Tasks", "`tasks.<name>`."),
    "methods": ("Methods", "`methods.<name>`."),
    "head": (
        "Heads",
        "`tasks.<name>.head` and `methods.<name>.head`, by `kind`: the classifier of a task of type `lid`; see "
        "[language-recognition.md](language-recognition.md#heads). A method's head replaces the task's.",
    ),
    "systems": ("Systems", "`systems`: every base x every task x every method."),
    "calibrate": ("Calibration", "`calibrate`: needed by `factorise.init: activation`."),
    "training": (
        "Training",
        "`training`, overridden key by key by `bases.<name>.training`, `tasks.<name>.training` and "
        "`methods.<name>.training`. `bases.<name>.pretrain` takes the same keys and inherits nothing. Keys that are "
        "also in `runtime` override that section, unless they are null.",
    ),
    "decoders": (
        "Decoders",
        "`decoders.<name>`, by `kind`. The section `decode` sets keys for all decoders.",
    ),
    "decode": ("Decoding", "`decode`: each key applies to every decoder that has it; `decoders.<name>` overrides it."),
    "score": ("Scoring", "`score`."),
    "report": ("Report", "`report`."),
    "runtime": (
        "Runtime",
        "`runtime`: how the stages run. Changing these keys changes no result and reruns nothing. `training`, "
        "`decode`, `calibrate` and `pretrain` may override them.",
    ),
}


def text(schema: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = [HEAD, "## Top level\n\n", _table(_top(schema))]
    for name, (title, said) in SECTIONS.items():
        parts.append(f"## {title}\n\n{said}\n\n")
        node = schema["properties"].get(name) or schema["$defs"][name]
        node = followed(node, schema)
        if isinstance(node.get("additionalProperties"), Mapping):
            node = followed(node["additionalProperties"], schema)
        for heading, section in _branches(node, schema):
            parts.append(f"### {heading}\n\n" if heading else "")
            parts.append(_table(keys_of(_inlined(section, schema))))
    return "".join(parts).rstrip() + "\n"


def _top(schema: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    required = schema["required"]
    for name, part in schema["properties"].items():
        if name in SECTIONS:
            title, optional = SECTIONS[name][0], "" if name in required else ", optional"
            yield name, f"section{optional}: see [{title}](#{title.lower().replace(' ', '-')})"
        elif part.get("description"):
            yield name, f"{NAMES[part['type']]}; required: {part['description']}"


def _branches(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "allOf" not in node:
        yield "", node
        return
    for case in node["allOf"]:
        kind = case["if"]["properties"]["kind"]["const"]
        yield f"kind: {kind}", followed(case["then"], schema)


def _inlined(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Write out nested sections, except those that repeat (training), which link to their own table."""
    properties = {}
    for name, part in node.get("properties", {}).items():
        if part.get("partial") and part.get("$ref", "").endswith("/training"):
            properties[name] = {
                "type": "object",
                "default": None,
                "description": "keys of [training](#training) that differ",
            }
            continue
        if part.get("$ref", "").endswith("/head"):
            properties[name] = {
                "type": "object",
                "default": None,
                "description": "lid: the classifier, see [heads](#heads)",
            }
            continue
        if name == "pretrain":
            recipe, known = followed(part, schema), schema["$defs"]["training"]["properties"]
            properties[name] = {
                "description": "scratch: these keys, and those of [training](#training)",
                "properties": {key: value for key, value in recipe["properties"].items() if key not in known},
                "required": recipe["required"],
            }
            continue
        found = _inlined(followed(part, schema), schema)
        below = found.get("additionalProperties")
        if isinstance(below, Mapping) and followed(below, schema).get("properties"):
            inner = _inlined(followed(below, schema), schema)
            found = {**found, "properties": {"<name>": inner}}
        properties[name] = found
    return {**node, "properties": properties} if properties else node


def _table(rows: Iterator[tuple[str, str]]) -> str:
    lines = ["| key | |\n|---|---|\n"]
    for path, said in rows:
        escaped = said.replace("|", "\\|")
        lines.append(f"| `{path}` | {escaped} |\n")
    return "".join(lines) + "\n"
