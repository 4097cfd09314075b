"""The schema of a config, composed of the settings classes of all parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank_speech.backend import registry as backends
from lowrank_speech.corpora import registry as corpora
from lowrank_speech.decoding import registry as decoding
from lowrank_speech.decoding.resources import read_by
from lowrank_speech.experiment.sections import (
    BackendSection,
    BaseSection,
    CalibrateSection,
    DecoderSection,
    DistilSection,
    LangSection,
    LmSection,
    MethodSection,
    PretrainSection,
    TaskSection,
)
from lowrank_speech.exporting import registry as exports
from lowrank_speech.lang.config import KINDS as LANGS
from lowrank_speech.lang.lm.config import LmSettings
from lowrank_speech.lowrank.constraint_settings import ConstraintSettings
from lowrank_speech.lowrank.lora_settings import LoraSettings
from lowrank_speech.lowrank.recipe import Factorise
from lowrank_speech.lowrank.truncate_settings import Progressive
from lowrank_speech.models.heads import registry as heads
from lowrank_speech.models.registry import FAMILIES
from lowrank_speech.models.settings import BaseSettings
from lowrank_speech.schemas import Node, Schemas, by_kind, named, nullable, partial, ref
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.settings import REQUIRED, Seed, key, settings
from lowrank_speech.stages import backend as backend_stage
from lowrank_speech.stages import calibrate, emissions, report
from lowrank_speech.stages.task import Task
from lowrank_speech.training.config import Runtime, TrainConfig
from lowrank_speech.training.distil_settings import DistilSettings
from lowrank_speech.training.losses import registry as losses

FILE = Path(__file__).resolve().parents[3] / "workflow" / "schemas" / "config.schema.json"
"""The generated file."""
NAME = "^[A-Za-z][A-Za-z0-9_-]*$"
FOLDER = "^[A-Za-z0-9._/-]+$"


def schema() -> Node:
    """The schema of the whole config, with what the workflow needs to know about families and decoders."""
    tool = Schemas()
    tool.definitions["name"] = {
        "type": "string",
        "pattern": NAME,
        "expected": "a letter, then letters, digits, - and _",
    }
    training = _with_runtime(tool.of(TrainConfig), tool)
    tool.definitions["training"] = training
    for name, cls in (
        ("factorise", Factorise),
        ("constraint", ConstraintSettings),
        ("lora", LoraSettings),
        ("progressive", Progressive),
        ("report", report.ReportConfig),
    ):
        tool.define(name, cls)
    tool.definitions["distil"] = _closed(tool.of(DistilSettings), tool.of(DistilSection))
    tool.definitions["distil"]["properties"]["untranscribed"] |= {"minItems": 1, "uniqueItems": True}
    tool.define("score", ScoreOptions)
    tool.define("runtime", Runtime)
    tool.definitions["calibrate"] = _closed(
        _without(_with_runtime(tool.of(calibrate.Config), tool, ("device",)), ("seed", "layers", "gradients")),
        tool.of(CalibrateSection),
    )
    tool.definitions["head"] = _heads(tool)
    tool.definitions["emissions"] = _with_runtime(tool.of(emissions.Settings), tool, ("device",))
    decoders = _decoders(tool)
    sections: dict[str, Node] = {
        "experiment": {"type": "string", "minLength": 1, "description": "title of the report"},
        "output": {
            "type": "string",
            "pattern": FOLDER,
            "expected": "a path of letters, digits, ., _, - and /",
            "description": "folder for all outputs",
        },
        "seed": _of_type(tool, Seed)
        | {"description": "seed of all random draws: synthesis, splits, weights, order of batches, bootstrap"},
        "corpora": named(_corpora(tool), 1),
        "langs": named(_langs(tool)) | {"default": {}},
        "lms": named(_lm(tool)) | {"default": {}},
        "bases": named(_base(tool), 1),
        "tasks": named(_task(tool), 1),
        "methods": named(_method(tool), 1),
        "systems": _systems(),
        "calibrate": ref("calibrate"),
        "training": ref("training") | {"default": {}},
        "decode": partial(tool.definitions["decode"]) | {"default": {}},
        "decoders": named(by_kind(decoders)) | {"default": {}},
        "backends": named(_backends(tool)) | {"default": {}},
        "score": ref("score") | {"default": {}},
        "report": ref("report") | {"default": {}},
        "runtime": ref("runtime") | {"default": {}},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": "Generated: python -m lowrank_speech.experiment",
        "type": "object",
        "additionalProperties": False,
        "required": ["experiment", "output", "seed", "corpora", "bases", "tasks", "methods", "systems"],
        "properties": sections,
        "$defs": dict(sorted(tool.definitions.items())),
        "families": {
            name: {
                "features": list(f.features),
                "recognises_by": f.recognises,
                "scratch": f.scratch,
                "front_end": f.front_end,
                "window": f.window,
                "tokenizer": f.tokenizer,
            }
            for name, f in FAMILIES.items()
        },
        "decoders": {
            kind: {"types": sorted({k.type for k in decoding.kinds() if k.name == kind})} for kind in decoders
        },
        # Modules that only some jobs run, for the code hashes.
        "modules": {
            "corpora": {kind: f"corpora.{kind}" for kind in corpora.KINDS},
            "decoders": {
                f"{k.name}.{k.task}": f"decoding.{decoding.FOLDERS[k.task]}.{k.name}" for k in decoding.kinds()
            },
            "families": {name: f"models.families.{name.replace('-', '_')}" for name in FAMILIES},
            "heads": {kind: f"models.heads.{kind.replace('-', '_')}" for kind in heads.KINDS},
            "losses": {name: f"training.losses.{name}" for name in losses.NAMES},
            "backends": {kind: f"backend.{kind}" for kind in backends.KINDS},
            "exports": {name: f"exporting.{name.replace('-', '_')}" for name in exports.FORMATS},
        },
        "heads": heads.DEFAULT,
        "losses": losses.OF_TASK,
        "loss_tasks": losses.TASK_OF,
    }


def _corpora(tool: Schemas) -> Node:
    branches = {}
    for kind in corpora.KINDS:
        node = tool.of(corpora.module(kind).Config)
        node["properties"]["splits"] |= {"minProperties": 1, "propertyNames": ref("name")}
        tool.definitions[f"corpus.{kind}"] = _kind(node, kind)
        branches[kind] = ref(f"corpus.{kind}")
    result = by_kind(branches)
    result["required"].append("splits")
    return result


def _langs(tool: Schemas) -> Node:
    branches = {}
    for kind, cls in LANGS.items():
        node = _kind(tool.of(cls), kind)
        if kind != "whisper":  # the tokenizer that comes with a base: nothing is made
            node = _closed(node, tool.of(LangSection))
            for name in ("corpora", "splits"):
                node["properties"][name] |= {"minItems": 1, "uniqueItems": True}
        tool.definitions[f"lang.{kind}"] = node
        branches[kind] = ref(f"lang.{kind}")
    return by_kind(branches)


def _lm(tool: Schemas) -> Node:
    node = _closed(tool.of(LmSettings), tool.of(LmSection))
    for name in ("corpora", "splits", "text"):
        node["properties"][name] |= {"uniqueItems": True}
    tool.definitions["lm"] = node
    return ref("lm")


def _base(tool: Schemas) -> Node:
    tool.definitions["pretrain"] = _closed(partial(tool.definitions["training"]), tool.of(PretrainSection))
    node = _closed(tool.of(BaseSettings), tool.of(BaseSection))
    node["properties"]["family"]["enum"] = list(FAMILIES)
    node["properties"] |= {"pretrain": ref("pretrain"), "training": partial(ref("training"))}
    tool.definitions["base"] = node
    return ref("base")


def _task(tool: Schemas) -> Node:
    node = _closed(tool.of(Task), tool.of(TaskSection))
    node["properties"]["test"] |= {"minItems": 1, "uniqueItems": True, "minProperties": 1, "propertyNames": ref("name")}
    for name in ("decoders", "backends", "languages"):
        node["properties"][name]["uniqueItems"] = True
    node["properties"] |= {"head": ref("head"), "training": partial(ref("training"))}
    tool.definitions["task"] = node
    return ref("task")


def _method(tool: Schemas) -> Node:
    node = tool.of(MethodSection)
    node["properties"] |= {
        "head": ref("head"),
        "factorise": ref("factorise"),
        "constraint": ref("constraint"),
        "lora": ref("lora"),
        "progressive": ref("progressive"),
        "distil": ref("distil"),
        "training": partial(ref("training")),
    }
    tool.definitions["method"] = node
    return ref("method")


def _heads(tool: Schemas) -> Node:
    """The classifiers, by kind. A task's head is for all methods that do not name another."""
    branches = {}
    for kind in heads.KINDS:
        cls = heads.head_class(kind)
        if cls.TASK == "classify":
            tool.definitions[f"head.{kind}"] = _kind(tool.of(cls.SETTINGS), kind)
            branches[kind] = ref(f"head.{kind}")
    return by_kind(branches)


def _backends(tool: Schemas) -> Node:
    branches = {}
    least = {"least": tool.of(backend_stage.Config)["properties"]["least"]}
    for kind in backends.KINDS:
        node = _closed(_kind(tool.of(backends.module(kind).Settings), kind), tool.of(BackendSection))
        tool.definitions[f"backend.{kind}"] = node | {"properties": {**node["properties"], **least}}
        branches[kind] = ref(f"backend.{kind}")
    return by_kind(branches)


def _systems() -> Node:
    names = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string"}}
    keys = ("bases", "tasks", "methods")
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(keys),
        "properties": {name: names | {"description": f"names under `{name}`"} for name in keys},
        "description": "the grid: every base x every task x every method, in the order of the report",
    }


def _decoders(tool: Schemas) -> dict[str, Node]:
    """Kind -> schema of its section, which has the keys of that kind on models of any family. Also defines
    ``decoder.<kind>.<model task>``, and ``decode`` with the keys of all kinds."""
    branches: dict[str, Node] = {}
    every: Node = {"type": "object", "additionalProperties": False, "properties": {}}
    for kind in decoding.kinds():
        node = _with_runtime(_kind(tool.of(kind.settings), kind.name), tool, ("device",))
        tool.definitions[f"decoder.{kind.name}.{kind.task}"] = node | {
            "emissions": kind.reads == "emissions",
            "resources": [name for name in read_by(kind.settings) if name in node["properties"]],
        }
        before = branches.get(kind.name, {"properties": {}})
        properties = {**before["properties"], **node["properties"]}
        if kind.type == "asr":
            properties |= {"tune": _tune(tool)}
        branches[kind.name] = partial(node) | {"properties": properties}
        every["properties"] |= {name: part for name, part in node["properties"].items() if name != "kind"}
    tool.definitions["decode"] = every
    return branches


def _tune(tool: Schemas) -> Node:
    node = tool.of(DecoderSection)["properties"]["tune"]
    node["additionalProperties"] |= {"minItems": 1, "uniqueItems": True}
    return node | {"minProperties": 1}


# -- pieces of it ------------------------------------------------------------------------------------------------------


def _kind(node: Node, kind: str) -> Node:
    """``node`` with the key ``kind``, required and with one value."""
    properties = {"kind": {"enum": [kind]}, **{k: v for k, v in node["properties"].items() if k != "kind"}}
    required = ["kind", *(name for name in node.get("required", ()) if name != "kind")]
    return node | {"properties": properties, "required": required}


def _closed(*nodes: Node) -> Node:
    """A section with the keys of all ``nodes``."""
    result = dict(nodes[0])
    for node in nodes[1:]:
        result["properties"] = {**result["properties"], **node["properties"]}
        result["required"] = [*result.get("required", ()), *node.get("required", ())]
    return result


def _without(node: Node, keys: Sequence[str]) -> Node:
    properties = {name: part for name, part in node["properties"].items() if name not in keys}
    return node | {"properties": properties, "required": [k for k in node.get("required", ()) if k not in keys]}


def _with_runtime(node: Node, tool: Schemas, keys: Sequence[str] | None = None) -> Node:
    """``node`` with the keys of the section ``runtime``, which override that section unless they are null."""
    known = tool.of(Runtime)["properties"]
    own = {name: nullable(known[name]) | {"default": None, "runtime": True} for name in keys or known}
    return node | {"properties": {**node["properties"], **own}}


def _of_type(tool: Schemas, kind: Any) -> Node:
    @settings
    class Holder:
        value: kind = key(REQUIRED, "")  # type: ignore[valid-type]

    return {k: v for k, v in tool.of(Holder)["properties"]["value"].items() if k != "description"}
