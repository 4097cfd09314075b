"""Adding a corpus, decoder, head, family, loss or export format takes one new file and an edit of one registry.

Each case follows CONTRIBUTING.md in a copy of the project. Other tests run the dummy decoder (test_emissions.py), the
dummy family and head (test_model_seams.py) and the dummy loss (test_training_losses.py).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile

import test_emissions
import test_model_seams
import test_training_losses
from conftest import REPOSITORY
from lowrank_speech.models.folder import save_model
from tiny_models import member
from workflow_tree import tiny_config

CORPUS = '''"""A folder for each split; each WAV file in it is an utterance, and its name is the text."""

from typing import Literal

from lowrank_speech.corpora.common import TRACK, Checks, Track, Utterance, find_folder
from lowrank_speech.settings import REQUIRED, key, settings


@settings
class Split:
    """One split."""

    source: str = key(REQUIRED, "its folder")


@settings
class Config:
    """A corpus of folders."""

    kind: Literal["folders"] = key(REQUIRED, "folders of WAV files")
    splits: dict[str, Split] = key(REQUIRED, "name -> which folder")
    path: str | None = key(None, "folder that contains them; null: folders below $SPEECH_DATA")
    checks: Checks = key(None, "which audio is accepted", default_factory=Checks)
    track: Track = key("auto", TRACK, runtime=True)


def locate(config, data_root):
    return find_folder(config.kind, config.path, data_root, "folders", "folders of WAV files")


def sources(config, root):
    return []


def read(config, split, root, audio_dir, seed, jobs=1):
    for path in sorted((root / config.splits[split].source).glob("*.wav")):
        yield Utterance(id=path.stem, audio=str(path), language="en", speaker=path.stem, text=path.stem)
'''
EXPORT = '''"""Export format names: the names of the parameters."""


def write(model, source, out):
    names = [name for name, _ in model.named_parameters()]
    out.mkdir()
    (out / "names.txt").write_text("".join(f"{name}\\n" for name in names))
    return {"names": len(names)}
'''
OTHERS = "        case _:\n"
CORPUS_CASE = """        case "folders":
            from lowrank_speech.corpora import folders as found
"""
EXPORT_CASE = """        case "names":
            from lowrank_speech.exporting import names as found
"""


class Kind(NamedTuple):
    """A dummy of a kind: its name, file, registry, edits of the registry; keys of a config that use it."""

    name: str
    file: str
    text: str
    registry: str
    edits: dict[str, str]
    config: Mapping[str, Any] = MappingProxyType({})
    """Dotted path -> value. An export format is not chosen in a config."""


KINDS = {
    "corpora": Kind(
        "folders",
        "corpora/folders.py",
        CORPUS,
        "corpora/registry.py",
        {'"tsv",\n': '"tsv",\n    "folders",\n', OTHERS: CORPUS_CASE + OTHERS},
        {"corpora.mine": {"kind": "folders", "path": ".", "splits": {"train": {"source": "a"}}}},
    ),
    "decoders": Kind(
        "dummy.ctc",
        "decoding/ctc/dummy.py",
        test_emissions.DUMMY,
        "decoding/registry.py",
        {OTHERS: test_emissions.CASE + OTHERS},
        {"decoders.mine": {"kind": "dummy", "scale": 2}},
    ),
    "heads": Kind(
        "deviation",
        "models/heads/deviation.py",
        test_model_seams.HEAD,
        "models/heads/registry.py",
        {
            '"language-tokens")': '"language-tokens", "deviation")',
            "    match kind:\n": "    match kind:\n" + test_model_seams.HEAD_CASE,
        },
        {"tasks.lid.head": {"kind": "deviation", "size": 4}},
    ),
    "families": Kind(
        "unispeech",
        "models/families/unispeech.py",
        test_model_seams.FAMILY,
        "models/registry.py",
        {
            "FAMILIES = {\n": "FAMILIES = {\n" + test_model_seams.ROW,
            "    match family:\n": "    match family:\n" + test_model_seams.CASE,
        },
        {"bases.mine": {"family": "unispeech", "source": "owner/name", "features": "conv"}},
    ),
    "losses": Kind(
        "dummy",
        "training/losses/dummy.py",
        test_training_losses.DUMMY,
        "training/losses/registry.py",
        {'"aam")': '"aam", "dummy")', "    match name:\n": "    match name:\n" + test_training_losses.CASE},
        {"tasks.lid.training": {"loss": "dummy"}},
    ),
    "exports": Kind(
        "names",
        "exporting/names.py",
        EXPORT,
        "exporting/registry.py",
        {'"lowrank")': '"lowrank", "names")', OTHERS: EXPORT_CASE + OTHERS},
    ),
}
TESTS = REPOSITORY / "tests"
GENERATED = {"workflow/schemas/config.schema.json", "docs/configuration.md"}
CHECK = """
import json, sys
from pathlib import Path
from lowrank_speech.experiment.__main__ import main
from lowrank_speech.experiment.check import check
from lowrank_speech.experiment.schema import FILE
from lowrank_speech.workflow import checks, schema
from lowrank_speech.workflow.config import complete
from lowrank_speech.workflow.slices import Slices

assert main([]) == 0 == main(["--check"])
config, made = json.loads(sys.argv[1]), json.loads(FILE.read_text())
schema.validate(config, made)
checks.check(config, made)
check(Slices(schema.resolve(complete(config), made, made), made))
print(json.dumps(made["modules"]))
"""
CODE = """
import json, sys
sys.path.append(sys.argv[2])
from closures import jobs
from lowrank_speech.experiment.schema import FILE
from lowrank_speech.workflow import closures, schema
from lowrank_speech.workflow.config import complete
from lowrank_speech.workflow.slices import Slices

made = json.loads(FILE.read_text())
slices = Slices(schema.resolve(complete(json.loads(sys.argv[1])), made, made), made)
print(json.dumps({f"{stage} {vars(w)}": closures.code_hash(stage, slices, w) for stage, w in jobs(slices)}))
"""


def added(kind: Kind, root: Path) -> None:
    """``kind`` in a copy of the project below ``root``."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "workflow/schemas"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=ignored)
    (root / "docs").mkdir()
    shutil.copy(REPOSITORY / "docs/configuration.md", root / "docs")
    package = root / "src" / "lowrank_speech"
    (package / kind.file).write_text(kind.text, encoding="utf-8")
    text = (package / kind.registry).read_text(encoding="utf-8")
    for old, new in kind.edits.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (package / kind.registry).write_text(text, encoding="utf-8")


def hashes(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(root: Path, *command: Any) -> subprocess.CompletedProcess:
    """``python`` with the copy below ``root`` as its package."""
    env = os.environ | {"PYTHONPATH": str(root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *map(str, command)], env=env, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("kinds", KINDS)
def test_a_kind_is_one_file_and_its_registry(kinds, tmp_path):
    kind = KINDS[kinds]
    added(kind, tmp_path)
    config = tiny_config()
    for path, value in kind.config.items():
        section, key = path.rsplit(".", 1)
        within = config
        for name in section.split("."):
            within = within.setdefault(name, {})
        within[key] = value
    modules = json.loads(run(tmp_path, "-c", CHECK, json.dumps(config)).stdout)
    module = kind.file.removesuffix(".py").replace("/", ".")
    assert modules[kinds][kind.name] == module

    after = hashes(tmp_path)
    before = {name: hashlib.sha256((REPOSITORY / name).read_bytes()).hexdigest() for name in after if exists(name)}
    changed = {name for name, digest in after.items() if before.get(name) != digest}
    assert changed - GENERATED == {f"src/lowrank_speech/{kind.file}", f"src/lowrank_speech/{kind.registry}"}

    # No job of an experiment that does not use it runs again.
    code = [
        json.loads(run(root, "-c", CODE, json.dumps(tiny_config()), TESTS).stdout) for root in (REPOSITORY, tmp_path)
    ]
    assert code[0] == code[1] and len(code[0]) > 50


def exists(name: str) -> bool:
    return (REPOSITORY / name).is_file()


@pytest.mark.slow
def test_the_stage_corpus_reads_a_new_kind(tmp_path):
    added(KINDS["corpora"], tmp_path)
    (tmp_path / "speech").mkdir()
    for name in ("one", "two"):
        noise = np.random.default_rng(len(name)).normal(0, 0.1, 8000)
        soundfile.write(tmp_path / "speech" / f"{name}.wav", noise, 16_000)
    cfg = {"seed": 1, "corpus": {"kind": "folders", "path": ".", "splits": {"train": {"source": "speech"}}}}
    options = ("--cfg", json.dumps(cfg), "--split", "train", "--out", "out", "--manifest", "out/train.json")
    run(tmp_path, "-m", "lowrank_speech.stages.corpus", *options)
    metrics = json.loads((tmp_path / "out/train.json").read_text())["metrics"]
    assert metrics["utterances"] == metrics["transcribed"] == 2 and not metrics["set_aside"]


@pytest.mark.slow
def test_the_stage_export_writes_a_new_format(tmp_path):
    added(KINDS["exports"], tmp_path)
    model = member("wav2vec2")
    save_model(model, tmp_path / "model")
    options = ("--cfg", '{"format": "names"}', "--model", "model", "--out", "out", "--manifest", "export.json")
    run(tmp_path, "-m", "lowrank_speech.stages.export", *options)
    metrics = json.loads((tmp_path / "export.json").read_text())["metrics"]
    names = (tmp_path / "out/names.txt").read_text().splitlines()
    assert names == [name for name, _ in model.named_parameters()] and metrics["names"] == len(names)
