"""Fingerprint the code that a stage runs; together with its config slice, it decides whether the stage runs again.

``code_hash`` follows the stage's imports under ``src/`` (also those inside functions, and the ``__init__`` of every
parent package), parses each file and hashes the syntax trees without docstrings. Comments, layout and docstrings do not
change the hash, and a helper that only one stage imports only affects that stage. Installed libraries are not included.

Only import statements are followed, not names given to importlib. Imports under ``if TYPE_CHECKING:`` do not run and
are left out. Data files belong to the module of the same name: ``page.css`` and ``page.html.j2`` to ``page.py``, the
files in ``sentences/`` to ``sentences.py``; their bytes are hashed.

A registry has a ``match`` that imports a module in each ``case``. The cases of modules that this use of the stage does
not run are left out, with their names in the registry's tuples and tables, so a new kind does not change the hashes of
the others. Functions called ``looks_like`` are left out too: they only guess the kind of a folder for a new config.

The ``__getattr__`` of a package (PEP 562) is left out: it is how people reach ``lowrank_speech.load``, and no stage
asks for it.

Imports only the standard library.

``ast.dump`` differs between minor versions of Python, so another version runs everything again.
"""

import ast
import copy
import functools
import hashlib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

SRC = Path(__file__).resolve().parents[1]
PACKAGE = "lowrank_speech"
NEVER = (f"{PACKAGE}.fingerprints",)
"""Modules that never affect a result, because they only compute hashes."""


@functools.cache
def code_hash(module: str, src: Path = SRC, without: tuple[str, ...] = ()) -> str:
    """Hex sha256 over the import closure of ``module`` (dotted name) below ``src``.

    ``without``: modules and packages that this use of the stage does not run; modules that only they import are left
    out too. Raises ValueError if the module does not exist or a file of the closure is not valid Python.
    """
    digest, without = hashlib.sha256(), (*without, *NEVER)
    for name in sorted(closure(module, src, without)):
        unused = {kind for kind, names in _cases(name, src) if any(_left_out(part, without) for part in names)}
        digest.update(f"{name} {_read(name, src, tuple(sorted(unused)))[0]}\n".encode())
    return digest.hexdigest()


def closure(module: str, src: Path = SRC, without: Iterable[str] = ()) -> set[str]:
    """Names of all modules below ``src`` that ``module`` imports, directly or indirectly, including itself."""
    if _file(module, src) is None:
        raise ValueError(f"the module {module} does not exist under {src}")
    found: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        parents = name.split(".")
        for end in range(1, len(parents) + 1):
            part = ".".join(parents[:end])
            if part not in found and not _left_out(part, without) and _file(part, src) is not None:
                found.add(part)
                pending += _read(part, src)[1]
    return found


def _left_out(name: str, without: Iterable[str]) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in without)


@functools.cache
def _file(name: str, src: Path) -> Path | None:
    path = src.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def _tree(name: str, src: Path) -> ast.Module:
    path = _file(name, src)
    try:
        tree = _Bare().visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error
    if path.name == "__init__.py":
        tree.body = [node for node in tree.body if getattr(node, "name", None) != "__getattr__"]
    return tree


@functools.cache
def _read(name: str, src: Path, unused: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...]]:
    """Digest of a module's code and data, without its ``unused`` kinds, and the names that it imports (modules or their
    members)."""
    path, tree = _file(name, src), _tree(name, src)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imported = tuple(_imports(tree, package))
    if unused:
        tree = _Without(unused).visit(copy.deepcopy(tree))
    digest = hashlib.sha256(ast.dump(tree).encode())
    for data in _data_files(path):
        digest.update(f"{data.relative_to(src)} {hashlib.sha256(data.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest(), imported


@functools.cache
def _cases(name: str, src: Path) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The kinds of a registry, each with the names that its case imports; empty for other modules."""
    package = name.rpartition(".")[0]
    cases = [case for node in ast.walk(_tree(name, src)) if isinstance(node, ast.Match) for case in node.cases]
    found = ((_constant(case), tuple(_imports(ast.Module(case.body, []), package))) for case in cases)
    return tuple((kind, names) for kind, names in found if kind is not None and names)


def _constant(case: ast.match_case) -> str | None:
    """The string that a case compares with."""
    value = getattr(case.pattern, "value", None)
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


class _Without(ast.NodeTransformer):
    """Drops the cases of some kinds, and their names from the tuples and tables of the module."""

    def __init__(self, kinds: Collection[str]):
        self.kinds = kinds

    def visit_Match(self, node: ast.Match) -> ast.Match:
        node.cases = [case for case in node.cases if _constant(case) not in self.kinds]
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        value = node.value
        if isinstance(value, ast.Tuple):
            value.elts = [item for item in value.elts if not self._names(item)]
        elif isinstance(value, ast.Dict):
            rows = [row for row in zip(value.keys, value.values, strict=True) if not self._names(row[0])]
            value.keys, value.values = [key for key, _ in rows], [row for _, row in rows]
        return node

    def _names(self, node: ast.expr | None) -> bool:
        return isinstance(node, ast.Constant) and node.value in self.kinds


UNHASHED = "looks_like"
"""Functions of this name only run in ``corpora/detect.py``, before there is an experiment."""


class _Bare(ast.NodeTransformer):
    """Drops code that no stage runs: docstrings and other bare strings, blocks for type checkers, ``looks_like``."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        return None if node.name == UNHASHED else self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING") else node


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _data_files(path: Path) -> list[Path]:
    """Non-Python files with the module's name, and the files in a folder of that name, sorted."""
    if path.name == "__init__.py":
        return []
    beside = [p for p in path.parent.glob(f"{path.stem}.*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    folder = path.with_suffix("")
    inside = folder.rglob("*") if not (folder / "__init__.py").exists() else ()
    return sorted(beside + [p for p in inside if p.is_file() and p.suffix != ".pyc"])
