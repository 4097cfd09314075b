"""The code hash of a job: it leaves out only modules that exist, and the schema knows all modules of a kind.

tests/test_whole_run.py checks that no job runs code outside its hash.
"""

import re

import pytest
import yaml

from closures import jobs
from lowrank_speech.fingerprints import PACKAGE, SRC
from lowrank_speech.workflow import closures
from lowrank_speech.workflow.slices import NAMES
from workflow_config import sliced
from workflow_tree import REPOSITORY, tiny_config

EXPERIMENTS = [REPOSITORY / "config.yaml", *sorted((REPOSITORY / "workflow/experiments").glob("*.yaml"))]


@pytest.mark.parametrize("path", [*EXPERIMENTS, None], ids=lambda path: path.stem if path else "tiny")
def test_what_is_left_out_exists(path):
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path else tiny_config()
    slices, stages = sliced(config), set()
    for stage, wildcards in jobs(slices):
        stages.add(stage)
        for name in closures.unused(stage, slices, wildcards):
            file = SRC / PACKAGE / name.replace(".", "/")
            assert file.with_suffix(".py").is_file() or (file / "__init__.py").is_file(), (stage, name)
    assert set(NAMES) - stages <= {"graph", "calibrate", "factorise", "lm", "backend"}


@pytest.mark.parametrize(
    ("kinds", "folder"),
    [
        ("corpora", "corpora"),
        ("decoders", "decoding/*"),
        ("families", "models/families"),
        ("heads", "models/heads"),
        ("losses", "training/losses"),
        ("exports", "exporting"),
        ("backends", "backend"),
    ],
)
def test_the_schema_knows_every_module_of_a_kind(kinds, folder):
    """One that it does not know would be in the hash of every job."""
    listed = {f"{PACKAGE}.{name}" for name in sliced(tiny_config()).schema["modules"][kinds].values()}
    registry = "models" if kinds == "families" else folder.partition("/*")[0]
    text = (SRC / PACKAGE / registry / "registry.py").read_text(encoding="utf-8")
    imported = set()
    for file in (SRC / PACKAGE).glob(f"{folder}/*.py"):
        module = ".".join(file.relative_to(SRC).with_suffix("").parts)
        package, _, name = module.rpartition(".")
        # What a registry imports in the branch of a `case` is a kind.
        if re.search(rf"        from ({module} import|{package} import {name}\b)", text):
            imported.add(module)
    assert imported == listed
