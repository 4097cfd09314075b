"""The config of an experiment: its sections, composed of the settings classes of all parts.

    python -m lowrank_speech.experiment            writes the schema and the reference of all keys
    python -m lowrank_speech.experiment --check    fails if they are out of date

Outputs: ``workflow/schemas/config.schema.json``, from which the workflow checks configs and fills in defaults without
importing any part, and ``docs/configuration.md``. Both are committed; a test compares them with the classes.

``check(config)`` reads every section with the class of its stage, so that rules about several keys are enforced before
the first job.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.corpora import registry as corpora
from lowrank_speech.corpora import tracking
from lowrank_speech.decoding import registry as decoding
from lowrank_speech.errors import UserError
from lowrank_speech.exporting import registry as exports
from lowrank_speech.lang.config import KINDS as LANGS
from lowrank_speech.lang.config import read as read_lang
from lowrank_speech.lowrank.constraint_settings import ConstraintSettings
from lowrank_speech.lowrank.lora_settings import LoraSettings
from lowrank_speech.lowrank.recipe import Factorise
from lowrank_speech.models.files import imported_files
from lowrank_speech.models.heads import registry as heads
from lowrank_speech.models.registry import FAMILIES
from lowrank_speech.models.settings import BaseSettings
from lowrank_speech.schemas import Node, Schemas, by_kind, named, nullable, partial, ref
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.settings import REQUIRED, Seed, key, read, settings
from lowrank_speech.stages import calibrate, emissions, report
from lowrank_speech.stages.task import Task
from lowrank_speech.training.config import Noise, Runtime, TrainConfig
from lowrank_speech.training.losses import registry as losses
from lowrank_speech.workflow.config import System, systems
from lowrank_speech.workflow.slices import Slices

PROJECT = Path(__file__).resolve().parents[2]
SCHEMA = PROJECT / "workflow" / "schemas" / "config.schema.json"
REFERENCE = PROJECT / "docs" / "configuration.md"
NAME = "^[A-Za-z][A-Za-z0-9_-]*$"
FOLDER = "^[A-Za-z0-9._/-]+$"


# -- sections that only the workflow reads -----------------------------------------------------------------------------


@settings
class SplitName:
    """A split of a corpus."""

    split: str = key(REQUIRED, "a split of the corpus")
    corpus: str | None = key(None, "its corpus; null: that of the task")


@settings
class TaskSection:
    """The splits and decoders of a task."""

    corpus: str = key(REQUIRED, "the corpus of the splits below")
    train: str = key(REQUIRED, "the split to train on")
    dev: str = key(REQUIRED, "the split that chooses the epoch")
    test: str | tuple[str, ...] | dict[str, SplitName] = key(
        REQUIRED, "test sets: a split, a list of splits, or name -> {corpus, split}"
    )
    decoders: tuple[str, ...] | None = key(None, "names under `decoders`; null: greedy (asr) or scores (lid)")


@settings
class BaseSection:
    """What the pipeline does with a base."""

    lang: str | None = key(None, "the token set; source: scratch and recognition need one")
    features: Literal["conv", "waveform", "fbank", "logmel"] = key(
        REQUIRED, "what is computed once and stored: conv, fbank or logmel by family; waveform: nothing is stored"
    )
    features_dtype: Literal["float32", "float16"] | None = key(None, "of what is stored; null: float32")


@settings
class MethodSection:
    """How a method adapts a base."""

    adapt: Literal["none", "head", "full", "lora"] = key(
        REQUIRED, "what trains: none (only a head that the task needs and the base lacks), head, full, or lora"
    )
    seed: Seed | None = key(None, "seed of its training; null: that of the experiment")


@settings
class PretrainSection:
    """Where a base from scratch is pretrained."""

    corpus: str = key(REQUIRED, "the corpus of the splits")
    train: str = key(REQUIRED, "the split to pretrain on")
    dev: str = key(REQUIRED, "the split that chooses the epoch")


@settings
class CalibrateSection:
    """Which utterances `init: activation` sees."""

    corpus: str = key(REQUIRED, "their corpus")
    split: str = key(REQUIRED, "their split")


@settings
class LangSection:
    """Which transcripts a token set is made from."""

    corpora: tuple[str, ...] = key(REQUIRED, "corpora whose transcripts are read")
    splits: tuple[str, ...] = key(REQUIRED, "splits of each of them")


# -- the schema --------------------------------------------------------------------------------------------------------


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
        ("report", report.ReportConfig),
    ):
        tool.define(name, cls)
    tool.define("score", ScoreOptions)
    tool.define("runtime", Runtime)
    tool.definitions["calibrate"] = _closed(
        _without(_with_runtime(tool.of(calibrate.Config), tool, ("device",)), ("seed", "layers")),
        tool.of(CalibrateSection),
    )
    tool.definitions["emissions"] = _with_runtime(tool.of(emissions.Settings), tool, ("device",))
    decoders = _decoders(tool)
    sections: dict[str, Node] = {
        "experiment": {"type": "string", "minLength": 1, "description": "title of the report"},
        "output": {
            "type": "string",
            "pattern": FOLDER,
            "expected": "a path of letters, digits, ., _, - and /",
            "description": "folder of everything that is made",
        },
        "seed": _of_type(tool, Seed)
        | {"description": "seed of all random draws: synthesis, splits, weights, order of batches, bootstrap"},
        "corpora": named(_corpora(tool), 1),
        "langs": named(_langs(tool)) | {"default": {}},
        "bases": named(_base(tool), 1),
        "tasks": named(_task(tool), 1),
        "methods": named(_method(tool), 1),
        "systems": _systems(),
        "calibrate": ref("calibrate"),
        "training": ref("training") | {"default": {}},
        "decode": partial(tool.definitions["decode"]) | {"default": {}},
        "decoders": named(by_kind(decoders)) | {"default": {}},
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
            "heads": {kind: f"models.heads.{kind}" for kind in heads.KINDS},
            "losses": {name: f"training.losses.{name}" for name in losses.NAMES},
            "exports": {name: f"exporting.{name}" for name in exports.FORMATS},
        },
        "heads": heads.DEFAULT,
        "losses": losses.OF_TASK,
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
        tool.definitions[f"lang.{kind}"] = node
        branches[kind] = ref(f"lang.{kind}")
    return by_kind(branches)


def _base(tool: Schemas) -> Node:
    tool.definitions["pretrain"] = _closed(partial(tool.definitions["training"]), tool.of(PretrainSection))
    node = _closed(tool.of(BaseSettings), tool.of(BaseSection))
    node["properties"]["family"]["enum"] = list(FAMILIES)
    node["properties"] |= {"pretrain": ref("pretrain"), "training": partial(ref("training"))}
    tool.definitions["base"] = node
    return ref("base")


def _task(tool: Schemas) -> Node:
    node = _closed(tool.of(Task), tool.of(TaskSection))
    node["properties"]["training"] = partial(ref("training"))
    tool.definitions["task"] = node
    return ref("task")


def _method(tool: Schemas) -> Node:
    node = tool.of(MethodSection)
    node["properties"] |= {
        "factorise": ref("factorise"),
        "constraint": ref("constraint"),
        "lora": ref("lora"),
        "training": partial(ref("training")),
    }
    tool.definitions["method"] = node
    return ref("method")


def _systems() -> Node:
    names = {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "string"}}
    keys = ("bases", "tasks", "methods")
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(keys),
        "properties": dict.fromkeys(keys, names),
        "description": "the grid: every base x every task x every method, in the order of the report",
    }


def _decoders(tool: Schemas) -> dict[str, Node]:
    """Kind -> schema of its section, which has the keys of that kind on models of any family. Also defines
    ``decoder.<kind>.<model task>`` and ``decode``, the keys of all."""
    branches: dict[str, Node] = {}
    every: Node = {"type": "object", "additionalProperties": False, "properties": {}}
    for kind in decoding.kinds():
        node = _with_runtime(_kind(tool.of(kind.settings), kind.name), tool, ("device",))
        tool.definitions[f"decoder.{kind.name}.{kind.task}"] = node | {"emissions": kind.reads == "emissions"}
        before = branches.get(kind.name, {"properties": {}})
        branches[kind.name] = partial(node) | {"properties": {**before["properties"], **node["properties"]}}
        every["properties"] |= {name: part for name, part in node["properties"].items() if name != "kind"}
    tool.definitions["decode"] = every
    return branches


# -- pieces of it ------------------------------------------------------------------------------------------------------


def _kind(node: Node, kind: str) -> Node:
    """``node`` with the key ``kind`` as configs have it: required, with one value."""
    properties = {"kind": {"enum": [kind]}, **{k: v for k, v in node["properties"].items() if k != "kind"}}
    required = ["kind", *(name for name in node.get("required", ()) if name != "kind")]
    return node | {"properties": properties, "required": required}


def _closed(*nodes: Node) -> Node:
    """One section with the keys of several."""
    result = dict(nodes[0])
    for node in nodes[1:]:
        result["properties"] = {**result["properties"], **node["properties"]}
        result["required"] = [*result.get("required", ()), *node.get("required", ())]
    return result


def _without(node: Node, keys: Sequence[str]) -> Node:
    properties = {name: part for name, part in node["properties"].items() if name not in keys}
    return node | {"properties": properties, "required": [k for k in node.get("required", ()) if k not in keys]}


def _with_runtime(node: Node, tool: Schemas, keys: Sequence[str] | None = None) -> Node:
    """``node`` with the keys of the section ``runtime``, which override that section; null: they do not."""
    known = tool.of(Runtime)["properties"]
    own = {name: nullable(known[name]) | {"default": None, "runtime": True} for name in keys or known}
    return node | {"properties": {**node["properties"], **own}}


def _of_type(tool: Schemas, kind: Any) -> Node:
    @settings
    class Holder:
        value: kind = key(REQUIRED, "")  # type: ignore[valid-type]

    return {k: v for k, v in tool.of(Holder)["properties"]["value"].items() if k != "description"}


# -- the check ---------------------------------------------------------------------------------------------------------


def check(config: Mapping[str, Any]) -> None:
    """One-line ValueError: the class of a section refuses it. The schema has checked and resolved ``config``."""
    try:
        for name, section in config["corpora"].items():
            corpora.read(section, f"corpora.{name}")
        for name, section in config["langs"].items():
            own = {k: v for k, v in section.items() if k not in ("corpora", "splits")}
            read_lang(own, f"langs.{name}")
        for name, section in config["methods"].items():
            for part, cls in (("factorise", Factorise), ("constraint", ConstraintSettings), ("lora", LoraSettings)):
                if section.get(part) is not None:
                    read(cls, section[part], f"methods.{name}.{part}")
        read(ScoreOptions, config["score"], "score")
        read(report.ReportConfig, config["report"], "report")
        _check_jobs(config)
        for name in config["systems"]["tasks"]:
            _check_languages(config, name)
    except UserError as error:
        raise ValueError(str(error)) from error


def _check_jobs(config: Mapping[str, Any]) -> None:
    """Check the recipes of the grid's bases and systems."""
    slices, seen = Slices(config, json.loads(SCHEMA.read_text(encoding="utf-8"))), set()

    def once(cls: type, keys: Mapping[str, Any], where: str, whose: str) -> None:
        if (text := json.dumps([where, keys], sort_keys=True)) not in seen:
            seen.add(text)
            try:
                read(cls, keys, where)
            except UserError as error:
                raise UserError(f"{error} ({whose})") from error

    for name in config["systems"]["bases"]:
        if config["bases"][name]["source"] == "scratch":
            found = slices.base(System(name, "", ""))
            where, whose = f"bases.{name}.pretrain", f"the pretraining of {name}"
            _check_device(where, found.cfg["pretrain"], found.runtime, whose)
            once(TrainConfig, found.cfg["pretrain"], where, whose)
    for system in systems(config):
        found = slices.train(system)
        _check_device("training", found.cfg["training"], found.runtime, f"the system {'/'.join(system)}")
        once(TrainConfig, found.cfg["training"], "training", f"the system {'/'.join(system)}")


def _check_languages(config: Mapping[str, Any], name: str) -> None:
    """UserError: the tables on the disk say that a language recognition task would train on one language."""
    task = config["tasks"][name]
    section = config["corpora"][task["corpus"]]
    source = section["splits"][task["train"]].get("source")
    if task["type"] != "lid" or section["kind"] != "kaldi" or section["language"] is None:
        return
    try:
        _, root = _located(section, "corpora")
    except UserError:
        return  # it is not here; see lost_corpora
    folder = Path(root, source)
    if folder.is_dir() and not (folder / "utt2lang").is_file():
        raise UserError(
            f"tasks.{name}.train: {folder} has no utt2lang, so all its utterances are in {section['language']!r}; "
            f"language recognition needs two languages"
        )


def _check_device(where: str, recipe: Mapping[str, Any], runtime: Mapping[str, Any], whose: str) -> None:
    if recipe["precision"] == "fp16" and runtime["device"] == "cpu":
        raise UserError(
            f"{where}: precision is fp16 and device cpu: fp16 needs CUDA: set precision: bf16 or fp32, or device: cuda "
            f"({whose})"
        )


# -- files from outside ------------------------------------------------------------------------------------------------


def lost_corpora(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> why the data of a corpus cannot be found, for the corpora ``names`` in ``config`` (resolved)."""
    found = {}
    for name in names:
        try:
            _located(config["corpora"][name], f"corpora.{name}")
        except UserError as error:
            found[name] = f"corpora.{name}: {error}"
    return found


def corpus_sources(section: Mapping[str, Any]) -> dict[str, str] | None:
    """Name -> path of the tables that a corpus (resolved) is made from; None: it cannot be found here."""
    try:
        config, root = _located(section, "corpora")
    except UserError:
        return None
    sources = corpora.module(section["kind"]).sources(config, root)
    return {name: str(path) for name, path in tracking.tables(sources, root).items()}


def _located(section: Mapping[str, Any], where: str) -> tuple[Any, Path | None]:
    """The settings of a corpus and its folder. UserError: the folder is not what they say."""
    corpus, data_root = corpora.module(section["kind"]), os.environ.get("SPEECH_DATA")
    config = read(corpus.Config, section, where)
    return config, corpus.locate(config, Path(data_root) if data_root else None)


def noise_sources(recipe: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Name -> path of the noise recordings of a recipe (resolved); None: it has none, or they are not here."""
    folder = ((recipe or {}).get("noise") or {}).get("folder")
    if folder is None or not Path(folder).is_dir():
        return None
    return {name: str(path) for name, path in Noise(folder=folder).recordings().items()}


def lost_noise(recipes: Mapping[str, Mapping[str, Any] | None]) -> str | None:
    """Why the noise of the first of ``recipes`` (whose -> recipe) is not to be found; None: all are there."""
    for whose, recipe in recipes.items():
        folder = ((recipe or {}).get("noise") or {}).get("folder")
        if folder is not None and not noise_sources(recipe):
            reason = "has no recordings (*.wav, *.flac, *.ogg)" if Path(folder).is_dir() else "does not exist"
            return f"training.noise.folder: {folder} {reason}; correct the path ({whose})"
    return None


def base_sources(source: str) -> dict[str, str] | None:
    """Name -> path of the files of a local model folder; None: ``source`` is not a folder."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return None
    return {path.name: str(path) for path in imported_files(folder)}


# -- the files ---------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Write the schema and the reference, or with --check compare them; returns the exit code."""
    from lowrank_speech.reference import text

    arguments = list(sys.argv[1:] if argv is None else argv)
    found = schema()
    made = {SCHEMA: json.dumps(found, indent=1, ensure_ascii=False) + "\n", REFERENCE: text(found)}
    stale = [p for p, content in made.items() if not p.is_file() or p.read_text(encoding="utf-8") != content]
    if "--check" in arguments:
        for path in stale:
            sys.stderr.write(f"{path} is out of date: run python -m lowrank_speech.experiment\n")
        return 1 if stale else 0
    for path in stale:
        path.write_text(made[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
