"""Configs for the tests of the checks before the first job."""

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest

from lowrank_speech.experiment.check import check
from lowrank_speech.workflow import experiments, schema
from lowrank_speech.workflow.config import ConfigError, complete
from lowrank_speech.workflow.slices import Slices
from workflow_tree import REPOSITORY, tiny_config

SCHEMA = json.loads((REPOSITORY / "workflow/schemas/config.schema.json").read_text(encoding="utf-8"))
REMOVED = object()


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """What the Snakefile does with a config; the config with its defaults."""
    before = copy.deepcopy(config)
    resolved = experiments.checked(config, SCHEMA)
    check(Slices(resolved, SCHEMA))
    assert config == before
    return resolved


def sliced(config: dict[str, Any]) -> Slices:
    """The slices of a config."""
    return Slices(schema.resolve(complete(config), SCHEMA, SCHEMA), SCHEMA)


def edited(path: str, value: Any) -> dict[str, Any]:
    """tiny_config with the key at the dotted ``path`` set (or removed)."""
    config = tiny_config()
    *sections, key = path.split(".")
    section = config
    for name in sections:
        section = section.setdefault(name, {})
    if value is REMOVED:
        del section[key]
    else:
        section[key] = value
    return config


def refused(config: dict[str, Any]) -> str:
    """The message, which must be one line."""
    with pytest.raises((ConfigError, ValueError)) as caught:
        checked(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def wildcards(**names: str) -> SimpleNamespace:
    return SimpleNamespace(**names)
