"""Open an experiment as the Snakefile does, without Snakemake.

    opened = open_experiment("config.yaml")
    opened.config, opened.slices, opened.layout

Standard library and PyYAML; jsonschema where the config is checked.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lowrank_speech import yaml_files
from lowrank_speech.workflow import check_sweeps, schema
from lowrank_speech.workflow.config import Config, complete, deep_merge
from lowrank_speech.workflow.paths import Layout
from lowrank_speech.workflow.slices import Slices

PROJECT = Path(__file__).resolve().parents[3]
"""The folder with the Snakefile, if the package lies in its repository."""


@dataclass(frozen=True)
class Experiment:
    """``config``: checked, with sweeps expanded and all defaults."""

    config: Config
    schema: schema.Schema

    @property
    def layout(self) -> Layout:
        return Layout(self.config["output"].rstrip("/"))

    @cached_property
    def slices(self) -> Slices:
        return Slices(self.config, self.schema)


def open_experiment(path: str | Path) -> Experiment:
    """Read and check the config file ``path``. Raises a one-line ValueError if it cannot be read or is refused."""
    root = read_schema()
    return Experiment(checked(merged(path), root), root)


def merged(path: str | Path) -> dict[str, Any]:
    """The config file ``path`` as the Snakefile sees it: over the default config, if it has no corpora."""
    found = yaml_files.load(path)
    return found if "corpora" in found else deep_merge(yaml_files.load(workflow_file("config.yaml")), found)


def checked(config: Mapping[str, Any], root: schema.Schema, check: bool = True) -> Config:
    """The config with all defaults. Raises ConfigError if it is refused; ``check``: whether to check it at all."""
    if check:
        check_sweeps.check(config, root)
    return schema.resolve(complete(config), root, root)


def read_schema() -> schema.Schema:
    """The schema of configs."""
    return json.loads(workflow_file("workflow/schemas/config.schema.json").read_text(encoding="utf-8"))


def workflow_file(name: str) -> Path:
    """A file of the repository. Raises ValueError if the package was installed without it."""
    path = PROJECT / name
    if not path.is_file():
        raise ValueError(
            f"this lowrank-speech was installed without the workflow ({path} does not exist); clone the repository and "
            f"install it from there (make setup, or pip install --editable .)"
        )
    return path
