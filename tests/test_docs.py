"""The documentation names only what exists (links, paths, modules, tests, keys), and its examples and commands work."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from conftest import REPOSITORY
from lowrank_speech import cli
from lowrank_speech.workflow import schema
from workflow_config import SCHEMA
from workflow_tree import tiny_config

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("benchmarks/*.md")])
HISTORY = {"CHANGELOG.md"}
"""Pages that name what is gone."""
PACKAGE = REPOSITORY / "src" / "lowrank_speech"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SUFFIXES = {"json", "yaml", "py", "html"}
PLACEHOLDER = re.compile(r"[<>{}*$]|\.\.\.|[A-Z]{2,}/")


def every_page(test):
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())(test)


def text_of(page) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page):
    for target in LINK.findall(text_of(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@every_page
def test_paths_exist(page):
    """Paths of the project, from its root, the package, the tests or the page."""
    roots = (REPOSITORY, PACKAGE, REPOSITORY / "tests", page.parent)
    folders = {path.name for root in roots[:2] for path in root.iterdir() if path.is_dir()} - {"__pycache__"}
    files = {
        path.name
        for folder in ("src", "tests", "workflow", "benchmarks")
        for path in (REPOSITORY / folder).rglob("*.*")
    }
    for word in words(page):
        if page.name in HISTORY or PLACEHOLDER.search(word):
            continue
        if re.fullmatch(r"\w+\.(py|smk)", word):
            assert word in files, word
        elif "/" in word and word.partition("/")[0] in folders:
            assert any((root / word).exists() for root in roots), word


@every_page
def test_modules_exist(page):
    for name in re.findall(r"\blowrank_speech(?:\.\w+)+", text_of(page)):
        if page.name in HISTORY:
            continue
        *package, last = name.split(".")[1:]
        module = PACKAGE.joinpath(*package)
        if (module / last).is_dir() or (module / f"{last}.py").is_file():
            continue
        tree = ast.parse(module.with_suffix(".py").read_text(encoding="utf-8"))
        assert last in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}, name


@every_page
def test_tests_exist(page):
    source = "".join(path.read_text(encoding="utf-8") for path in REPOSITORY.glob("tests/**/test_*.py"))
    for name in words(page):
        if re.fullmatch(r"test_\w+", name):
            assert f"def {name}(" in source, name


def keys(node, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all keys below a part of the schema; ``<name>`` for names that a person chooses."""
    node = schema.followed(node, SCHEMA)
    for case in node.get("allOf", ()):
        yield from keys(case["then"], prefix)
    for part in node.get("anyOf", ()):
        yield from keys(part, prefix)
    for name, part in node.get("properties", {}).items():
        yield (*prefix, name)
        yield from keys(part, (*prefix, name))
    if isinstance(node.get("additionalProperties"), dict):
        yield (*prefix, "<name>")
        yield from keys(node["additionalProperties"], (*prefix, "<name>"))


@every_page
def test_keys_of_the_config_exist(page):
    """Dotted keys in code, such as `bases.<name>.window`; words that a person chose stand for any name."""
    known = set(keys(SCHEMA))
    for word in words(page):
        path = tuple(word.partition(":")[0].split("."))
        if page.name in HISTORY or len(path) < 2 or path[0] not in SCHEMA["properties"] or path[-1] in SUFFIXES:
            continue
        if all(re.fullmatch(r"\w+|<\w+>|\*", part) for part in path):
            assert any(fits(path, other) for other in known), word


def fits(path: tuple[str, ...], known: tuple[str, ...]) -> bool:
    return len(path) == len(known) and all(b in (a, "<name>") for a, b in zip(path, known, strict=True))


@every_page
def test_examples_of_configs_are_valid(page):
    for language, text in FENCE.findall(text_of(page)):
        found = yaml.safe_load(text) if language == "yaml" else None
        if isinstance(found, dict) and set(found) <= set(SCHEMA["properties"]):
            schema.validate(tiny_config() | found, SCHEMA)


def words(page) -> Iterator[str]:
    """What stands in code, word by word."""
    for code in CODE.findall(FENCE.sub("", text_of(page))):
        yield from (word.rstrip(",.;:") for word in code.split())


# -- tests and commands that the docs name ----------------------------------------------------------------------------

DOCS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NAMED = re.compile(r"`(?:tests/)?(test_\w+\.py)(?:::(test_\w+))?`")


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_tests_that_the_docs_name_exist(path):
    for file, name in NAMED.findall(path.read_text(encoding="utf-8")):
        assert (REPOSITORY / "tests" / file).is_file(), file
        assert not name or name in functions(REPOSITORY / "tests" / file), f"{file}::{name}"


def test_every_row_of_the_reliability_table_has_a_test():
    text = (REPOSITORY / "docs/RELIABILITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|(.*)$", text, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 29))
    assert all(row.count(" | ") == 3 and NAMED.search(row.rpartition(" | ")[2]) for _, row in rows)


@pytest.mark.parametrize("path", [*DOCS, REPOSITORY / "Snakefile", REPOSITORY / "Makefile"], ids=lambda path: path.name)
def test_no_target_follows_configfile(path):
    """--configfile takes several values, so it would take the target for another config."""
    for line in path.read_text(encoding="utf-8").splitlines():
        assert not re.search(r"--configfile [^\s`]+ (?![ #-])\S", line), line


COMMAND = re.compile(r"(?:^ {4}|`|\$ )(lowrank-speech [a-z][^`\n]*)", re.MULTILINE)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_and_options_that_the_docs_name_exist(path):
    for line in COMMAND.findall(text_of(path)):
        command = typer.main.get_command(cli.app)
        words = shlex.split(line.replace("'", " "), comments=True)[1:]
        words = words[: words.index("--")] if "--" in words else words
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, line
            command, words = command.commands[words[0]], words[1:]
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0].rstrip(",.;:)") for word in words if word.startswith("--")}
        assert used <= known | {"--help"}, line
