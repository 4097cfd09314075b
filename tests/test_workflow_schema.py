"""The config schema: messages, bounds, and that it matches the settings classes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lowrank_speech.experiment import __main__ as experiment
from workflow_config import REMOVED, SCHEMA, checked, edited, refused
from workflow_tree import REPOSITORY, write_ocean

EXPERIMENTS = [
    REPOSITORY / "config.yaml",
    *sorted((REPOSITORY / "workflow/experiments").glob("*.yaml")),
    *sorted((REPOSITORY / "tests/configs").glob("*.yaml")),
]


@pytest.fixture(autouse=True)
def ocean(tmp_path, monkeypatch):
    """The folder with the corpus that the configs name."""
    write_ocean(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_are_valid(path: Path):
    checked(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_experiments_write_to_folders_of_their_own():
    outputs = [yaml.safe_load(path.read_text(encoding="utf-8"))["output"] for path in EXPERIMENTS]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("experimnt", "x", "config: unknown key 'experimnt' (did you mean 'experiment'?)"),
        ("training.epoch", 1, "training: unknown key 'epoch' (did you mean 'epochs'?)"),
        ("methods.full.training.epoch", 1, "methods.full.training: unknown key 'epoch'"),
        ("bases.whisper.pretrain.lrate", 1, "bases.whisper.pretrain: unknown key 'lrate'"),
        ("corpora.babel.splits.train.utterence", 1, "corpora.babel.splits.train: unknown key 'utterence'"),
        ("corpora.ocean.languages", ["en"], "corpora.ocean: unknown key 'languages' (did you mean 'language'?)"),
        ("corpora.ocean.checks.max", 1, "corpora.ocean.checks: unknown key 'max'"),
        (
            "corpora.ocean.kind",
            "kaldy",
            "corpora.ocean.kind: 'kaldy' is not valid; expected one of: atco2, commonvoice, datasets, digits, espeak,",
        ),
        ("langs.chars.vocab_size", 10, "langs.chars: unknown key 'vocab_size'"),
        (
            "langs.chars.kind",
            "chars",
            "langs.chars.kind: 'chars' is not valid; expected one of: char, sentencepiece, whisper",
        ),
        ("langs.chars.splits", [], "langs.chars.splits: expected at least 1 entry, got []"),
        ("tasks.asr.test", [], "tasks.asr.test: expected at least 1 entry, got []"),
        ("tasks.asr.test", {}, "tasks.asr.test: expected at least 1 entry, got {}"),
        ("tasks.asr.test", ["test", "test"], "tasks.asr.test: 'test' occurs twice in ['test', 'test']; remove one"),
        ("tasks.asr.test", {"a b": {"split": "test"}}, "tasks.asr.test: 'a b' is not valid; use a letter, then"),
        ("tasks.asr.decoders", ["greedy", "greedy"], "tasks.asr.decoders: 'greedy' occurs twice in"),
        ("tasks.lid.languages", ["de", "de"], "tasks.lid.languages: 'de' occurs twice in ['de', 'de']; remove one"),
        ("training.device", "gpu", "training.device: 'gpu' is not valid; expected one of: auto, cpu, cuda, null (did"),
        (
            "langs.chars.min_count",
            "2",
            "langs.chars.min_count: expected a whole number, got '2' (YAML reads it as text: write 2 without",
        ),
        ("langs.chars.corpora", REMOVED, "langs.chars: the key 'corpora' is missing"),
        ("seed", REMOVED, "config: the key 'seed' is missing"),
        ("seed", "1", "seed: expected a whole number, got '1' (YAML reads it as text"),
        ("training.lr", "1e-4", "training.lr: expected a number, got '1e-4' (YAML reads it as text: write 0.0001"),
        ("training.keep", "first", "training.keep: 'first' is not valid; expected one of: best, last"),
        ("corpora.babel.languages", [False], "corpora.babel.languages[0]: expected text, got False (YAML reads no"),
        ("corpora.babel.languages", {False: {}}, "corpora.babel.languages: YAML does not read the key False as text"),
        (
            "methods.full.adapt",
            "ful",
            "methods.full.adapt: 'ful' is not valid; expected one of: none, head, full, lora (did you mean 'full'?)",
        ),
        (
            "methods.lowrank.factorise.layers",
            "fnn",
            "methods.lowrank.factorise.layers is 'fnn'; expected ffn, attention, all",
        ),
        (
            "methods.lowrank.factorise.layers",
            ["*.fc1", "fc2"],
            "methods.lowrank.factorise.layers is 'fc2'; expected ffn",
        ),
        ("output", "exp/my run", "output: 'exp/my run' is not valid; use a path of letters"),
        ("methods.a/b", {"adapt": "full"}, "methods: 'a/b' is not valid; use a letter, then letters"),
        ("systems.tasks", [], "systems.tasks: expected at least 1 entry, got []"),
        ("bases.whisper", None, "bases.whisper: expected a mapping, got None"),
        ("bases.whisper.window", 0, "bases.whisper.window is 0; it must be above 0"),
        ("bases.whisper.window", "10 s", "bases.whisper.window: expected a number or null, got '10 s'"),
        ("training.noise", {"probability": 1.5}, "training.noise.probability is 1.5; it must be at most 1"),
        (
            "training.reverberation",
            {"probability": -1},
            "training.reverberation.probability is -1; it must be at least 0",
        ),
        ("training.dropout", 1, "training.dropout is 1; it must be below 1"),
        ("training.label_smoothing", 1.0, "training.label_smoothing is 1.0; it must be below 1"),
    ],
)
def test_schema_errors_name_key_and_place(path, value, message):
    assert refused(edited(path, value)).startswith(message)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf"), 10**400], ids=["nan", "inf", "-inf", "large"]
)
@pytest.mark.parametrize(
    "path",
    [
        "training.lr",
        "training.epochs",
        "training.speed[1]",
        "bases.whisper.pretrain.lr",
        "bases.whisper.window",
        "bases.whisper.model.layerdrop",
        "tasks.lid.segment.seconds",
        "corpora.ocean.splits.train.part[0]",
        "methods.lowrank.factorise.reduction",
        "seed",
    ],
)
def test_numbers_are_finite(path, value):
    name, item, index = path.removesuffix("]").partition("[")
    config = edited(name, [0.0] * int(index) + [value] if item else value)
    assert refused(config) == f"{path} is {value!r}; it must be finite"


@pytest.mark.parametrize(
    "path, bound",
    [
        ("training.workers", 256),
        ("training.processes", 1024),
        ("training.compile_buckets", 10**6),
        *((f"training.{key}", 10**6) for key in ("epochs", "accumulate", "average", "evaluate_every")),
        *((f"training.{key}", 10**6) for key in ("patience", "blank_patience")),
        ("bases.whisper.pretrain.patience", 10**6),
        ("training.max_steps", 10**9),
        ("training.freeze_encoder_steps", 10**9),
        ("methods.full.seed", 2**32 - 1),
        ("methods.lowrank_lora.lora.rank", 10**6),
        ("corpora.babel.splits.train.utterances", 10**6),
        ("calibrate.utterances", 10**6),
        ("decode.max_new_tokens", 10**6),
        ("score.bootstrap", 10**6),
    ],
)
def test_whole_numbers_have_a_bound(path, bound):
    for value in (1e30, bound + 1):
        assert refused(edited(path, value)) == f"{path} is {value!r}; it must be at most {bound}"
    config = edited(path, bound)
    if path.endswith("compile_buckets"):
        config["training"]["compile"] = True
    checked(config)


def test_no_whole_number_of_the_schema_is_without_bounds():
    def unbounded(node: Any, path: str) -> list[str]:
        if isinstance(node, list):
            return [found for i, item in enumerate(node) for found in unbounded(item, f"{path}[{i}]")]
        if not isinstance(node, dict):
            return []
        kind = node.get("type")
        whole = kind == "integer" or (isinstance(kind, list) and "integer" in kind)
        found = [path] if whole and not {"minimum", "maximum"} <= set(node) else []
        return found + [f for key, item in node.items() for f in unbounded(item, f"{path}.{key}")]

    assert unbounded(SCHEMA, "") == []


def test_a_whole_number_has_no_point():
    # The stages' dataclasses refuse it, and so does torchrun.
    assert refused(edited("training.epochs", 10.0)) == "training.epochs: expected a whole number, got 10.0 (write 10)"
    assert refused(edited("training.epochs", 1.5)) == "training.epochs: expected a whole number, got 1.5"
    assert refused(edited("seed", True)).startswith("seed: expected a whole number, got True")
    checked(edited("training.lr", 1))


def test_schema_and_reference_are_those_of_the_classes():
    assert experiment.main(["--check"]) == 0, "run python -m lowrank_speech.experiment"


def test_no_section_of_the_schema_lets_typos_through():
    def open_objects(node: Any, path: str) -> list[str]:
        if isinstance(node, list):
            return [found for i, item in enumerate(node) for found in open_objects(item, f"{path}[{i}]")]
        if not isinstance(node, dict):
            return []
        found = [path] if "properties" in node and node.get("additionalProperties") is not False else []
        return found + [f for key, item in node.items() if key != "if" for f in open_objects(item, f"{path}.{key}")]

    # Those that branch by kind: each branch is closed.
    sections = ("corpora", "langs", "decoders", "backends")
    found = [f".properties.{name}.additionalProperties" for name in sections]
    assert sorted(open_objects(SCHEMA, "")) == sorted([*found, ".$defs.head"])
