"""Check a config with sweeps: first under the names that people wrote, then each expansion. See ``workflow.sweeps``."""

import itertools
from collections.abc import Mapping
from typing import Any

from lowrank_speech.workflow import checks, schema, sweeps
from lowrank_speech.workflow.config import Config, ConfigError, System, factorise_key, model_task, start_share
from lowrank_speech.workflow.slices import Slices

EMPTY = ("training", "seed", "distil", "constraint", "progressive")
"""Keys of a method that change nothing where nothing is trained."""


def check(config: Config, root: schema.Schema) -> None:
    """Raise ConfigError for the first problem of the config, as it was written."""
    if sweeps.has_sweeps(config):
        schema.validate(sweeps.firsts(config), root)  # messages with the names of people
    expanded = sweeps.expand(config)
    schema.validate(expanded, root)
    checks.check(expanded, root)
    if expanded is not config:
        _check_effects(config, expanded, root)


def _check_effects(config: Config, expanded: Config, root: schema.Schema) -> None:
    """Refuse a key whose values make no difference to any system, whether or not the grid has all of them."""
    slices = Slices(schema.resolve(expanded, root, root), root)
    grid = expanded["systems"]
    for name, known in sweeps.expansions(config).items():
        method, where = config["methods"][name], f"methods.{name}.{sweeps.KEY}"
        chosen = [System(*names) for names in itertools.product(grid["bases"], grid["tasks"], known)]
        for key in method[sweeps.KEY]:
            adapts = {slices.config["methods"][system.method]["adapt"] for system in chosen}
            idle = adapts == {"none"} and key.partition(".")[0] in EMPTY
            if idle and not any(_trains_a_head(slices, system) for system in chosen):
                raise ConfigError(f"{where}.{key}: adapt: none trains nothing, so it has no effect; remove the key")
            if len(method[sweeps.KEY][key]) > 1 and not _differs(slices, chosen, known, key):
                shown = " or ".join(sorted(adapts))
                raise ConfigError(f"{where}.{key}: it has no effect with adapt: {shown}; remove the key")


def _trains_a_head(slices: Slices, system: System) -> bool:
    """Whether the task needs a head that the base may lack."""
    of = model_task(slices.config, slices.schema, system.base, system.task)
    return of == "classify" or (of == "ctc" and slices.config["bases"][system.base]["source"] != "scratch")


def _differs(slices: Slices, chosen: list[System], known: Mapping[str, sweeps.Values], key: str) -> bool:
    """Whether two systems that differ only in ``key`` are made in different ways."""
    seen: dict[str, set[str]] = {}
    for system in chosen:
        others = {name: value for name, value in known[system.method].items() if name != key}
        place = f"{system.base}/{system.task}/{sorted(others.items())!r}"
        seen.setdefault(place, set()).add(_made(slices, system))
    return any(len(ways) > 1 for ways in seen.values())


def _made(slices: Slices, system: System) -> str:
    method: Mapping[str, Any] = slices.config["methods"][system.method]
    low_rank = factorise_key(method["factorise"], start_share(method)) if method.get("factorise") else ""
    return f"{low_rank} {slices.train(system).cfg_json}"
