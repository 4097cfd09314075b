"""Reading an experiment's config: the grid of systems, what overrides what, and names for shared artefacts.

Imported by the Snakefile, under SLURM once per job: standard library only, loads in milliseconds.
The config is the plain mapping that Snakemake reads from YAML; ``workflow.schema`` has checked its keys and types,
``workflow.checks`` its cross references.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Config = Mapping[str, Any]


class ConfigError(ValueError):
    """A setting that cannot stand. The message is one line: which key, which value, which values are legal."""


class System(NamedTuple):
    """A base, adapted to a task by a method: one point of the grid."""

    base: str
    task: str
    method: str


def systems(config: Config) -> list[System]:
    """The grid bases x tasks x methods, in the order of the lists under ``systems``."""
    grid = config["systems"]
    return [System(b, t, m) for b in grid["bases"] for t in grid["tasks"] for m in grid["methods"]]


def deep_merge(below: Any, above: Any) -> Any:
    """``above`` laid over ``below``: mappings key by key, anything else (None, lists) replaces what was there.

    >>> deep_merge({"lr": 1, "spec_augment": {"time_masks": 2}}, {"spec_augment": {"time_masks": 3, "time_width": 5}})
    {'lr': 1, 'spec_augment': {'time_masks': 3, 'time_width': 5}}
    """
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{key: deep_merge(below.get(key), value) for key, value in above.items()}}


def training(config: Config, system: System) -> dict[str, Any]:
    """The training keys of one system: ``training`` < that of the base < that of the task < that of the method."""
    merged = dict(config.get("training", {}))
    for section, name in zip(("bases", "tasks", "methods"), system, strict=True):
        merged = deep_merge(merged, config[section][name].get("training", {}))
    return merged


def corpora_used(config: Config) -> list[str]:
    """Names of the corpora that the grid needs, sorted: those of tasks, pretraining, token sets and calibration."""
    grid = config["systems"]
    found = {config["tasks"][task]["corpus"] for task in grid["tasks"]}
    for name in grid["bases"]:
        base = config["bases"][name]
        if base["source"] == "scratch":
            found.add(base["pretrain"]["corpus"])
        if needs_lang(config, name):
            found.update(config["langs"][base["lang"]].get("corpora", ()))
    if any(calibrated(config["methods"][method]) for method in grid["methods"]):
        found.add(config["calibrate"]["corpus"])
    return sorted(found)


def needs_lang(config: Config, base: str) -> bool:
    """Whether the grid needs the base's token set: to pretrain it, or to recognise speech."""
    scratch = config["bases"][base]["source"] == "scratch"
    return scratch or any(config["tasks"][task]["type"] == "asr" for task in config["systems"]["tasks"])


def calibrated(method: Mapping[str, Any]) -> bool:
    """Whether a method's factors start from the inputs' second moments (stage calibrate)."""
    return method.get("factorise", {}).get("init") == "activation"


def factorise_key(section: Mapping[str, Any]) -> str:
    """Folder name of the low-rank model of a ``factorise`` section, such as ``rank512-1f0c9a3e``.

    It depends on the section alone, so that methods with equal sections share one model, and neither their names, nor
    their order, nor a method added later make anything run again.
    """
    wish = next((key for key in WISHES if section.get(key) is not None), "")
    return f"{wish}{section.get(wish, '')}-{_digest(section)}"


def calibrate_key(section: Mapping[str, Any]) -> str:
    """Folder name of the moments for a ``factorise`` section: sections that name the same layers share them."""
    layers = section.get("layers")
    readable = re.sub(r"[^A-Za-z0-9]+", "-", layers) if isinstance(layers, str) else "layers"
    return f"{readable.strip('-') or 'layers'}-{_digest(layers)}"


WISHES = ("rank", "fraction", "keep", "energy", "reduction")
"""Ways to say how small a factorised layer gets, of which a ``factorise`` section gives exactly one."""


def canonical_json(value: Any) -> str:
    """Sorted keys, no white space: equal settings give equal strings whatever the order in the YAML."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:8]
