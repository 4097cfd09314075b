"""Exact reruns: which edit makes which rules run again, on a copy of the workflow with stub stages (workflow_tree.py).

The tree is built once; each case edits it, asks for a dry run, and puts everything back.
"""

import contextlib
import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workflow_tree import Tree, manifest, tiny_config

pytestmark = pytest.mark.slow

# The whole grid is 2 bases x 2 tasks x 4 methods: 8 systems a task, 4 a method.
SYSTEMS = 16
DECODED = {"decode_asr": 8, "decode_lid": 8}
FROM_TRAIN = {"train": SYSTEMS, **DECODED, "score": SYSTEMS, "report": 1}
# The features of waveforms do not look at the base.
FROM_BASE = {"base": 2, "features": 6, "calibrate": 2, "factorise": 4, **FROM_TRAIN}
OF_ONE_METHOD = {"train": 4, "decode_asr": 2, "decode_lid": 2, "score": 4, "report": 1}
FROM_BABEL = {**FROM_BASE, "corpus_babel": 1, "lang_char": 1, "lang_sentencepiece": 1, "features_waveform": 3}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """The tree, complete: everything has run once."""
    built = Tree(tmp_path_factory.mktemp("reruns"), tiny_config())
    built.run()
    return built


@contextlib.contextmanager
def edited(path: Path, change: Callable[[str], str]) -> Iterator[None]:
    """``path`` with its text changed, and back afterwards."""
    before = path.read_text(encoding="utf-8")
    after = change(before)
    assert after != before, f"the edit does not change {path}"
    path.write_text(after, encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(before, encoding="utf-8")


def due_with(tree: Tree, change: Callable[[dict[str, Any]], Any]) -> dict[str, int]:
    """What would run after ``change`` of the config (in place, or a new one that it returns)."""
    config = tiny_config()
    changed = change(config)
    tree.write(changed if isinstance(changed, dict) else config)
    try:
        return tree.due()
    finally:
        tree.write(tiny_config())


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """An edit that sets the key at the dotted ``path``."""

    def change(config: dict[str, Any]) -> None:
        *sections, key = path.split(".")
        for section in sections:
            config = config.setdefault(section, {})
        config[key] = value

    return change


def reverse(value: Any) -> Any:
    """All mappings in the opposite order of keys."""
    if isinstance(value, dict):
        return {key: reverse(value[key]) for key in reversed(value)}
    return value


def add_method(config: dict[str, Any]) -> None:
    config["methods"]["another"] = copy.deepcopy(config["methods"]["lowrank"]) | {"constraint": {"mode": "exact"}}
    config["systems"]["methods"].append("another")


def drop_base(config: dict[str, Any]) -> None:
    config["systems"]["bases"].remove("whisper")


def test_nothing_to_do(tree):
    assert tree.due() == {}


CONFIG_EDITS = {
    "order of the keys": (reverse, {}),
    "title": (put("experiment", "other"), {"report": 1}),
    "report key": (put("report.dpi", 90), {"report": 1}),
    "bootstrap": (put("score.bootstrap", 60), {"score": SYSTEMS, "report": 1}),
    "score key of one type": (put("score.p_target", [0.5]), {"score": 8, "report": 1}),
    "decode key": (put("decode.batch_seconds", 20), {**DECODED, "score": SYSTEMS, "report": 1}),
    "decode key of one type": (put("decode.language", "detect"), {"decode_asr": 8, "score": 8, "report": 1}),
    "training key": (put("training.lr", 0.01), FROM_TRAIN),
    "training key of a method": (put("methods.full.training.lr", 0.01), OF_ONE_METHOD),
    "training key of a base": (
        put("bases.whisper.training.lr", 0.01),
        {"train": 8, "decode_asr": 4, "decode_lid": 4, "score": 8, "report": 1},
    ),
    "training key of a task": (
        put("tasks.lid.training.lr", 0.1),
        {"train": 8, "decode_lid": 8, "score": 8, "report": 1},
    ),
    "override equal to what is below": (put("methods.full.training.lr", 0.001), {}),
    "key of the task": (put("tasks.lid.segment.seconds", 2), {"train": 8, "decode_lid": 8, "score": 8, "report": 1}),
    "lora": (put("methods.lowrank_lora.lora.rank", 3), OF_ONE_METHOD),
    "calibration": (put("calibrate.utterances", 5), {"calibrate": 2, "factorise": 2, **OF_ONE_METHOD}),
    "factorisation of one of two that share": (
        put("methods.lowrank.factorise.reduction", 0.3),
        {"factorise": 2, **OF_ONE_METHOD},
    ),
    "a method that shares": (add_method, OF_ONE_METHOD),
    "a base less": (drop_base, {"report": 1}),
    "pretraining": (
        put("bases.whisper.pretrain.epochs", 3),
        {
            **{"base": 1, "features": 6, "calibrate": 1, "factorise": 2},
            **{"train": 8, "decode_asr": 4, "decode_lid": 4, "score": 8, "report": 1},
        },
    ),
    "vocabulary": (
        put("langs.pieces.vocab_size", 61),
        {
            **{"lang_sentencepiece": 1, "base": 1, "features": 6, "calibrate": 1, "factorise": 2},
            **{"train": 8, "decode_asr": 4, "decode_lid": 4, "score": 8, "report": 1},
        },
    ),
    "another language": (put("corpora.babel.languages", ["de", "en", "es"]), FROM_BABEL),
    "the other corpus": (
        put("corpora.ocean.language", "xx"),
        {
            **{"corpus_ocean": 1, "features": 3, "features_waveform": 3},
            **{"train": 8, "decode_asr": 8, "score": 8, "report": 1},
        },
    ),
    "seed": (
        put("seed", 2),
        {**FROM_BABEL, "corpus_ocean": 1, "features_waveform": 6},
    ),
}


@pytest.mark.parametrize("change, expected", CONFIG_EDITS.values(), ids=CONFIG_EDITS.keys())
def test_config_edit(tree, change, expected):
    assert due_with(tree, change) == expected


def test_window_of_a_published_base(tree):
    """Base and all that is made with it; another base's systems stay."""
    config = tiny_config()
    config["output"] = "exp/published"
    hub = {"family": "whisper", "source": "openai/whisper-tiny", "lang": "pieces", "features": "logmel"}
    config["bases"]["whisper"] = hub
    config["systems"] |= {"tasks": ["lid"], "methods": ["full", "lowrank"]}
    try:
        tree.write(config)
        tree.run()
        hub["window"] = 10
        tree.write(config)
        below = {"train": 2, "decode_lid": 2, "score": 2, "report": 1}
        assert tree.due() == {"base_import": 1, "features": 3, "factorise": 1, **below}
        hub["window"] = None
        tree.write(config)
        assert tree.due() == {}
    finally:
        tree.write(tiny_config())


def comment(text: str) -> str:
    return f"{text}\n# a comment\n"


def docstring(text: str) -> str:
    return text.replace('"""', '"""Another beginning. ', 1)


def statement(text: str) -> str:
    return f"{text}\nANOTHER_CONSTANT = 1\n"


CODE_EDITS = {
    "comment": ("training/loop.py", comment, {}),
    "docstring": ("training/loop.py", docstring, {}),
    "training loop": ("training/loop.py", statement, FROM_BASE),
    "helper of train alone": ("training/adapt.py", statement, FROM_TRAIN),
    "search": ("decoding/ctc/greedy.py", statement, {**DECODED, "score": SYSTEMS, "report": 1}),
    "scoring": ("scoring/asr.py", statement, {"score": SYSTEMS, "report": 1}),
    "report": ("reporting/page.py", statement, {"report": 1}),
    "style sheet": ("reporting/page.css", lambda text: f"{text}\np {{}}\n", {"report": 1}),
    "reader of one kind": ("corpora/espeak.py", statement, FROM_BABEL),
    "sentences": ("corpora/sentences/de.yaml", comment, FROM_BABEL),
    "orchestration": ("workflow/paths.py", statement, {}),
    "command line": ("cli.py", statement, {}),
}


@pytest.mark.parametrize("file, change, expected", CODE_EDITS.values(), ids=CODE_EDITS.keys())
def test_code_edit(tree, file, change, expected):
    with edited(tree.root / "src" / "lowrank_speech" / file, change):
        assert tree.due() == expected


def test_comment_in_rule(tree):
    with edited(tree.root / "workflow" / "rules" / "train.smk", comment):
        assert tree.due() == {}


def test_touching_everything(tree):
    for path in tree.root.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)
    assert tree.due() == {}


def test_weights_are_not_compared_by_time(tree):
    # Above 1 MB Snakemake compares times alone.
    weights = tree.root / "exp/tiny/base/whisper/model/model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(bytes(2_000_000))
    try:
        assert tree.due() == {}
    finally:
        weights.write_bytes(before)


def test_lost_file_is_made_again_where_it_is_needed(tree):
    lost = tree.root / "exp/tiny/decode/whisper/asr/full/hyp.txt"
    before = lost.read_bytes()
    lost.unlink()
    try:
        assert tree.due() == {}
        assert due_with(tree, put("score.bootstrap", 60)) == {"decode_asr": 1, "score": SYSTEMS, "report": 1}
    finally:
        lost.write_bytes(before)


def test_an_edit_runs_exactly_what_it_concerns(tree):
    folder = tree.root / "exp/tiny"
    runs = {path: manifest(path)["run"] for path in folder.rglob("*.json") if path.name != "config.json"}
    config = tiny_config()
    put("methods.full.training.lr", 0.01)(config)
    tree.write(config)
    try:
        tree.run()
        again = {path for path, run in runs.items() if manifest(path)["run"] != run}
        systems = [f"{base}/{task}/full" for base in ("wav2vec2", "whisper") for task in ("asr", "lid")]
        expected = {
            folder / stage / name / f"{stage}.json" for stage in ("train", "decode", "score") for name in systems
        }
        assert again == expected | {folder / "report/report.json"}
        assert "Nothing to be done" in tree.run()
    finally:
        tree.write(tiny_config())
        tree.run()
