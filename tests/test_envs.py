"""The conda environments: versions match the lock, and they contain all packages that their stages import."""

import ast
import re
import sys

import pytest
import yaml

from lowrank_speech.fingerprints import PACKAGE, SRC, _file, closure
from workflow_tree import REPOSITORY

ENVS = sorted((REPOSITORY / "envs").glob("*.yaml"))
DISTRIBUTIONS = {"yaml": "pyyaml", "sklearn": "scikit-learn"}
OPTIONAL = {"k2", "bitsandbytes", "kenlm", "pyarrow", "onnx", "onnxscript", "onnxruntime", "ctranslate2"}
"""Imported where the config asks for them; their absence is an error that says what to install."""


def packages(environment: dict) -> set[str]:
    return {re.split("[=<>\\[]", pin)[0].lower().replace("_", "-") for pin in environment["dependencies"][-1]["pip"]}


def imports(name: str) -> set[str]:
    """Top-level packages that a module imports, those of Python and its own left out."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(_file(name, SRC).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    tops = {name.partition(".")[0] for name in found}
    tops -= set(sys.stdlib_module_names) | {PACKAGE} | OPTIONAL
    return {DISTRIBUTIONS.get(top, top.replace("_", "-")) for top in tops}


def rules() -> dict[str, str]:
    """Stage -> its environment, as the rules have it."""
    found = {}
    for path in (REPOSITORY / "workflow" / "rules").glob("*.smk"):
        for text in re.split(r"^rule ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            stage = re.search(r"lowrank_speech\.stages\.(\w+)", text)[1]
            env = re.search(r'conda:\s+(?:"../../envs/(\w+)\.yaml"|training_env|decoding_env)', text)
            found[stage] = env[1] or "torch"
    return found


@pytest.mark.parametrize("path", ENVS, ids=lambda path: path.stem)
def test_versions_are_those_of_the_lock(path):
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    lock = {line.lower() for line in lines if line and not line.startswith("#")}
    assert all("==" in line and "/" not in line and " " not in line for line in lock)
    environment = yaml.safe_load(path.read_text(encoding="utf-8"))
    # k2's wheel is not a version: the user says which one it is.
    assert set(environment["dependencies"][-1]["pip"]) <= lock | {"${K2_WHEEL}"}
    assert "python=3.11" in environment["dependencies"]


def test_every_stage_has_a_rule_with_an_environment():
    programs = {path.stem for path in (SRC / PACKAGE / "stages").glob("[a-z]*.py")} - {
        "common",
        "decoding",
        "keys",
        "task",
    }
    assert set(rules()) == programs


@pytest.mark.parametrize(("stage", "env"), sorted(rules().items()))
def test_an_environment_has_what_its_stages_import(stage, env):
    environment = yaml.safe_load((REPOSITORY / f"envs/{env}.yaml").read_text(encoding="utf-8"))
    # The workflow's own code runs in the Python that has Snakemake.
    modules = closure(f"{PACKAGE}.stages.{stage}", without=(f"{PACKAGE}.workflow",))
    missing = {name: extra for name in modules if (extra := imports(name) - packages(environment))}
    assert missing == {}


def test_the_environment_with_k2_is_the_one_without_and_k2():
    plain, k2 = (
        yaml.safe_load((REPOSITORY / f"envs/{name}.yaml").read_text(encoding="utf-8")) for name in ("torch", "k2")
    )
    assert packages(k2) == packages(plain) | {"${k2-wheel}"}
