"""The docs name tests that exist, and commands that work as they stand."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"`(?:tests/)?(test_\w+\.py)(?:::(test_\w+))?`")


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_tests_that_the_docs_name_exist(path):
    for file, name in NAMED.findall(path.read_text(encoding="utf-8")):
        assert (ROOT / "tests" / file).is_file(), file
        assert not name or name in functions(ROOT / "tests" / file), f"{file}::{name}"


def test_every_row_of_the_reliability_table_has_a_test():
    text = (ROOT / "docs/RELIABILITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|(.*)$", text, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 29))
    assert all(row.count(" | ") == 3 and NAMED.search(row.rpartition(" | ")[2]) for _, row in rows)


@pytest.mark.parametrize("path", [*DOCS, ROOT / "Snakefile", ROOT / "Makefile"], ids=lambda path: path.name)
def test_no_target_follows_configfile(path):
    """--configfile takes several values, so it would take the target for another config."""
    for line in path.read_text(encoding="utf-8").splitlines():
        assert not re.search(r"--configfile [^\s`]+ (?![ #-])\S", line), line
