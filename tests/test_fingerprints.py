"""The fingerprint of a stage's code: what changes it and what does not."""

import subprocess
import sys
from pathlib import Path

import pytest

from lowrank_speech import fingerprints
from lowrank_speech.fingerprints import SRC, closure, code_hash

FILES = {
    "pack/__init__.py": "",
    "pack/stages/__init__.py": "",
    "pack/stages/train.py": '"""Train."""\nfrom pack import shared\n\ndef body():\n    from pack.loop import run\n',
    "pack/stages/score.py": "import typing\nfrom pack import shared\nif typing.TYPE_CHECKING:\n    import pack.typed\n",
    "pack/shared.py": 'def f(x):\n    """Double."""\n    return 2 * x  # twice\n',
    "pack/loop.py": "from . import relative\nfrom .parts.one import thing as other\n",
    "pack/relative.py": "",
    "pack/typed.py": "",
    "pack/parts/__init__.py": "",
    "pack/parts/one.py": "thing = 1\n",
    "pack/unused.py": "x = 1\n",
    "pack/loop.txt": "data of the loop\n",
    "pack/shared/words.yaml": "[one]\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package with two stages."""
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def hashes(src: Path) -> dict[str, str]:
    """Hash of both stages, computed anew."""
    for function in (
        fingerprints.code_hash,
        fingerprints._file,
        fingerprints._tree,
        fingerprints._read,
        fingerprints._cases,
    ):
        function.cache_clear()
    return {stage: code_hash(f"pack.stages.{stage}", src) for stage in ("train", "score")}


def changed(src: Path, name: str, text: str) -> set[str]:
    """The stages whose hash changes when the file gets ``text``."""
    before = hashes(src)
    path = src / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return {stage for stage, value in hashes(src).items() if value != before[stage]}


def test_closure_follows_imports_in_functions_relative_ones_and_parents(package):
    expected = {"pack", "pack.stages", "pack.stages.train", "pack.shared", "pack.loop", "pack.relative"}
    assert closure("pack.stages.train", package) == expected | {"pack.parts", "pack.parts.one"}
    assert closure("pack.stages.score", package) == {"pack", "pack.stages", "pack.stages.score", "pack.shared"}


def test_pruned_modules_and_what_only_they_import_are_left_out(package):
    assert "pack.loop" not in closure("pack.stages.train", package, without=["pack.loop"])
    assert "pack.relative" not in closure("pack.stages.train", package, without=["pack.loop"])
    assert "pack.parts.one" not in closure("pack.stages.train", package, without=["pack.parts"])


@pytest.mark.parametrize(
    "name, text, stages",
    [
        ("pack/shared.py", "# why\ndef f(x):\n    return (2 *\n        x)\n", set()),
        ("pack/shared.py", 'def f(x):\n    """Twice as much."""\n    return 2 * x\n', set()),
        ("pack/shared.py", "def f(x):\n    return 3 * x\n", {"train", "score"}),
        ("pack/loop.py", FILES["pack/loop.py"] + "y = 1\n", {"train"}),
        ("pack/parts/one.py", "thing = 2\n", {"train"}),
        ("pack/relative.py", "z = 1\n", {"train"}),
        ("pack/stages/score.py", FILES["pack/stages/score.py"] + "pass\n", {"score"}),
        ("pack/typed.py", "z = 1\n", set()),
        ("pack/unused.py", "x = 2\n", set()),
        ("pack/parts/__init__.py", "x = 2\n", {"train"}),
        ("pack/loop.txt", "other data\n", {"train"}),
        ("pack/shared/words.yaml", "[two]\n", {"train", "score"}),
        ("pack/shared/more.yaml", "[two]\n", {"train", "score"}),
    ],
)
def test_what_changes_which_stage(package, name, text, stages):
    assert changed(package, name, text) == stages


def test_errors_name_module_and_line(package):
    with pytest.raises(ValueError, match=r"module pack\.nothing does not exist under"):
        code_hash("pack.nothing", package)
    (package / "pack/relative.py").write_text("x = 1\ndef\n")
    with pytest.raises(ValueError, match=r"relative\.py, line 2"):
        hashes(package)


def test_every_data_file_of_the_package_belongs_to_a_module():
    files = {
        path for path in (SRC / "lowrank_speech").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    owned = {data for path in (SRC / "lowrank_speech").rglob("*.py") for data in fingerprints._data_files(path)}
    for_type_checkers = {SRC / "lowrank_speech" / name for name in ("__init__.pyi", "py.typed")}
    assert files - for_type_checkers == owned


def test_no_stage_follows_what_people_import():
    """``from lowrank_speech import load`` runs code of the package's own __init__, but no hash has it."""
    assert fingerprints._read("lowrank_speech", SRC)[1] == ()
    assert fingerprints._read("lowrank_speech", SRC)[0] == fingerprints._read("lowrank_speech.stages", SRC)[0]
    for path in (SRC / "lowrank_speech/stages").glob("*.py"):
        assert not any(
            name.startswith("lowrank_speech.inference") for name in closure(f"lowrank_speech.stages.{path.stem}")
        )


def test_only_the_stages_concerned_follow_a_part_of_the_package():
    def reach(stage: str) -> set[str]:
        return {name.split(".")[1] for name in closure(f"lowrank_speech.stages.{stage}") if name.count(".")}

    assert "scoring" in reach("score")
    assert {"torch", "models", "training", "decoding"}.isdisjoint(reach("score"))
    assert "training" in reach("train") and "decoding" not in reach("train")
    assert "decoding" in reach("decode") and "training" not in reach("decode")
    assert {"models", "training", "decoding"}.isdisjoint(reach("report"))
    for path in (SRC / "lowrank_speech" / "stages").glob("[a-z]*.py"):
        assert "workflow" not in reach(path.stem)


def test_workflow_package_is_light():
    # Under SLURM every job imports it. Without these packages, which take most of the time, it takes less than 0.3 s.
    program = (
        "import sys\n"
        "from lowrank_speech.workflow import checks, closures, config, launch, paths, records, results\n"
        "from lowrank_speech.workflow import schema, slices\n"
        "heavy = {'torch', 'numpy', 'pandas', 'lhotse', 'transformers', 'jsonschema', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


REGISTRY = """
KINDS = ("one", "two"{name})
TABLE = {{"one": 1, "two": 2{row}}}

def module(kind):
    match kind:
        case "one":
            from pack.parts import one as found
        case "two":
            from pack.parts import two as found{case}
        case _:
            raise ValueError(kind)
    return found
"""


def test_a_registry_counts_with_the_kinds_that_run(package):
    def code(without: tuple[str, ...], **more: str) -> str:
        text = REGISTRY.format(**{"name": "", "row": "", "case": ""} | more)
        (package / "pack/registry.py").write_text(text, encoding="utf-8")
        (package / "pack/stages/train.py").write_text("from pack import registry\n", encoding="utf-8")
        hashes(package)
        return code_hash("pack.stages.train", package, without)

    for name in ("two", "three"):
        (package / f"pack/parts/{name}.py").write_text("", encoding="utf-8")
    third = {"name": ', "three"', "row": ', "three": 3', "case": ""}
    third["case"] = '\n        case "three":\n            from pack.parts import three as found'
    only_one = ("pack.parts.two", "pack.parts.three")
    assert code(only_one) == code(only_one, **third)
    assert code(("pack.parts.three",)) == code(("pack.parts.three",), **third) != code(only_one)
    assert code(()) != code((), **third)
    assert code(only_one) != code(only_one, row=', "other": 3')
    assert code(only_one) != code(only_one, case="\n        case 'three':\n            found = None")


def test_functions_that_guess_a_kind_count_for_nothing(package):
    def code(text: str) -> str:
        (package / "pack/stages/train.py").write_text(text, encoding="utf-8")
        hashes(package)
        return code_hash("pack.stages.train", package)

    bare = "import os\n"
    assert code(bare) == code(bare + "def looks_like(path):\n    from pack.parts import one\n    return {}\n")
    assert code(bare) != code(bare + "def looks_alike(path):\n    return {}\n")
