"""The config: schema, cross references, overrides, slices."""

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from lowrank_speech.workflow import checks, schema, slices
from lowrank_speech.workflow.config import (
    ConfigError,
    System,
    calibrate_key,
    corpora_used,
    deep_merge,
    factorise_key,
    systems,
    training,
)
from workflow_tree import REPOSITORY, tiny_config

SCHEMA = yaml.safe_load((REPOSITORY / "workflow/schemas/config.schema.yaml").read_text(encoding="utf-8"))
EXPERIMENTS = [
    REPOSITORY / "config.yaml",
    *sorted((REPOSITORY / "workflow/experiments").glob("*.yaml")),
    *sorted((REPOSITORY / "tests/configs").glob("*.yaml")),
]
REMOVED = object()


def checked(config: dict[str, Any]) -> None:
    """What the Snakefile does with a config."""
    schema.validate(config, SCHEMA)
    checks.check(config)


def edited(path: str, value: Any) -> dict[str, Any]:
    """tiny_config with the key at the dotted ``path`` set (or removed)."""
    config = tiny_config()
    *sections, key = path.split(".")
    section = config
    for name in sections:
        section = section.setdefault(name, {})
    if value is REMOVED:
        del section[key]
    else:
        section[key] = value
    return config


def refused(config: dict[str, Any]) -> str:
    """The message, which must be one line."""
    with pytest.raises(ConfigError) as caught:
        checked(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_samples_can_be_augmented_where_they_are_read():
    config = edited("training", {"speed": [0.9, 1.1], "noise": {"snr": [5, 10]}, "reverberation": {}, "workers": 2})
    for base in config["bases"].values():
        base["features"] = "waveform"
        base.pop("features_dtype", None)
    checked(config)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_are_valid(path: Path):
    checked(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_every_key_is_commented_in_the_default_config():
    text = (REPOSITORY / "config.yaml").read_text(encoding="utf-8")
    for section in ("training", "decode", "score", "report", "calibrate", "factorise", "lora", "constraint", "base"):
        for key in SCHEMA["$defs"][section]["properties"]:
            assert key in text, f"{section}.{key}"


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
            "corpora.ocean.kind: 'kaldy' is none of digits, espeak, kaldi, tsv (did you mean",
        ),
        ("langs.chars.vocab_size", 10, "langs.chars: unknown key 'vocab_size'"),
        ("langs.chars.kind", "chars", "langs.chars.kind: 'chars' is none of char, sentencepiece, whisper"),
        ("langs.chars.corpora", REMOVED, "langs.chars: the key 'corpora' is missing"),
        ("seed", REMOVED, "config: the key 'seed' is missing"),
        ("seed", "1", "seed: expected a whole number, got '1' (YAML reads it as text"),
        ("training.lr", "1e-4", "training.lr: expected a number, got '1e-4' (YAML reads it as text: write 0.0001"),
        ("training.keep", "first", "training.keep: 'first' is none of best, last"),
        ("corpora.babel.languages", [False], "corpora.babel.languages[0]: expected text, got False (YAML reads no"),
        ("corpora.babel.languages", {False: {}}, "corpora.babel.languages: YAML reads the key False"),
        (
            "methods.full.adapt",
            "ful",
            "methods.full.adapt: 'ful' is none of none, head, full, lora (did you mean 'full'?)",
        ),
        (
            "methods.lowrank.factorise.layers",
            "fnn",
            "methods.lowrank.factorise.layers: 'fnn' will not do; use ffn, attention or all",
        ),
        (
            "methods.lowrank.factorise.layers",
            ["*.fc1", "fc2"],
            "methods.lowrank.factorise.layers[1]: 'fc2' will not do",
        ),
        ("output", "exp/my run", "output: 'exp/my run' will not do; use a path of letters"),
        ("methods.a/b", {"adapt": "full"}, "methods: 'a/b' will not do; use a letter, then letters"),
        ("systems.tasks", [], "systems.tasks: at least 1 is needed, got []"),
        ("bases.whisper", None, "bases.whisper: expected a mapping, got None"),
        ("bases.whisper.window", 0, "bases.whisper.window: 0 is less than or equal to the minimum of 0"),
        ("bases.whisper.window", "10 s", "bases.whisper.window: expected a number or null, got '10 s'"),
        ("training.noise", {"probability": 1.5}, "training.noise.probability: 1.5 is greater than the maximum of 1"),
        ("training.reverberation", {"probability": -1}, "training.reverberation.probability: -1 is less than the min"),
        (
            "training.reverberation",
            {"rt60": [0, 1]},
            "training.reverberation.rt60[0]: 0 is less than or equal to the m",
        ),
        ("training.dropout", 1, "training.dropout: 1 is greater than or equal to the maximum of 1"),
        ("training.label_smoothing", 1.0, "training.label_smoothing: 1.0 is greater than or equal to the maximum of 1"),
    ],
)
def test_schema_errors_name_key_and_place(path, value, message):
    assert refused(edited(path, value)).startswith(message)


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("systems.tasks", ["asr", "ldi"], "systems.tasks: 'ldi' is none of asr, lid"),
        ("systems.methods", ["ful"], "systems.methods: 'ful' is none of full, lowrank, lowrank_lora, aware (did you"),
        ("systems.bases", ["xlsr"], "systems.bases: 'xlsr' is none of wav2vec2, whisper"),
        ("tasks.asr.corpus", "sea", "tasks.asr.corpus: 'sea' is none of babel, ocean"),
        ("tasks.asr.test", "eval", "tasks.asr.test: 'eval' is none of the splits of corpora.ocean: train, dev, test"),
        ("tasks.asr.dev", "train", "tasks.asr.dev: 'train' is the train split already"),
        ("tasks.asr.languages", ["de"], "tasks.asr.languages: classes belong to type: lid"),
        ("bases.whisper.lang", "char", "bases.whisper.lang: 'char' is none of chars, pieces"),
        ("bases.whisper.lang", REMOVED, "bases.whisper.lang: source: scratch needs it"),
        ("bases.whisper.pretrain", REMOVED, "bases.whisper.pretrain: source: scratch needs it"),
        ("bases.whisper.pretrain.train", "tran", "bases.whisper.pretrain.train: 'tran' is none of the splits of"),
        ("bases.whisper.pretrain.train", "test", "bases.whisper.pretrain.train: 'test' is the test split of tasks.lid"),
        ("bases.whisper.pretrain.dev", "pretrain", "bases.whisper.pretrain.dev: 'pretrain' is the train split already"),
        (
            "bases.whisper.features",
            "conv",
            "bases.whisper.features: 'conv' does not fit the family whisper; it takes log",
        ),
        ("bases.wav2vec2.features", "logmel", "bases.wav2vec2.features: 'logmel' does not fit the family wav2vec2"),
        (
            "training.speed",
            [0.9, 1.1],
            "training.speed: it changes samples, and the system whisper/asr/full reads",
        ),
        ("training.noise", {"snr": [5, 10]}, "training.noise: it changes samples"),
        ("training.reverberation", {"rt60": [0.2, 0.4]}, "training.reverberation: it changes samples"),
        ("bases.wav2vec2.features", "fbank", "bases.wav2vec2.features: 'fbank' does not fit the family wav2vec2"),
        ("bases.wav2vec2.features_dtype", "float16", "bases.wav2vec2.features_dtype: waveforms are not stored"),
        ("bases.whisper.window", 10, "bases.whisper.window: for source: scratch set model.max_source_positions"),
        ("bases.wav2vec2.window", 10, "bases.wav2vec2.window: wav2vec2 models have none"),
        ("bases.whisper.source", "openai/whisper-tiny", "bases.whisper.pretrain: this belongs to source: scratch"),
        ("langs.pieces", {"kind": "whisper"}, "bases.whisper.lang: a base from scratch needs a token set of kind char"),
        ("langs.chars", {"kind": "whisper"}, "bases.wav2vec2.lang: 'chars' is Whisper's own tokenizer"),
        (
            "langs.chars.corpora",
            ["bable"],
            "langs.chars.corpora: 'bable' is none of babel, ocean (did you mean 'babel'?)",
        ),
        ("langs.chars.splits", ["tain"], "langs.chars.splits: 'tain' is none of the splits of corpora.babel"),
        ("langs.chars.splits", ["train", "test"], "langs.chars.splits: 'test' is the test split of tasks.lid"),
        ("methods.full.lora", {"rank": 2}, "methods.full.lora: it has no effect with adapt: full"),
        ("methods.lowrank_lora.lora", REMOVED, "methods.lowrank_lora.lora: adapt: lora needs it"),
        ("methods.full.constraint", {}, "methods.full.constraint: it holds the first factors semi-orthogonal"),
        (
            "methods.lowrank.factorise.rank",
            2,
            "methods.lowrank.factorise: give exactly one of rank, fraction, keep, ene",
        ),
        ("methods.lowrank.factorise.reduction", REMOVED, "methods.lowrank.factorise: give exactly one of"),
        (
            "methods.full.factorise",
            {"energy": 0.9, "allocate": True},
            "methods.full.factorise.allocate: energy decides",
        ),
        ("calibrate", REMOVED, "methods.aware.factorise.init: activation needs the section `calibrate`"),
        ("calibrate.split", "x", "calibrate.split: 'x' is none of the splits of corpora.babel"),
        (
            "tasks.lid.training",
            {"train_front_end": True},
            "training.train_front_end: the system whisper/lid/full reads",
        ),
    ],
)
def test_cross_references(path, value, message):
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
    assert refused(config) == f"{path}: {value!r} is no finite number; give one"


@pytest.mark.parametrize(
    "path, bound",
    [
        ("training.workers", 256),
        ("training.processes", 1024),
        ("training.compile_buckets", 1000),
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
        assert refused(edited(path, value)) == f"{path}: {value!r} is greater than the maximum of {bound}"
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


# What training/config.py refuses as well: recipe, first key of the message, what it says.
TOGETHER = [
    ({"warmup": 0.7}, "warmup", "has warmup: 0.7 and hold: 0.4 (its default); they are shares of all steps"),
    ({"hold": 0.95}, "hold", "has warmup: 0.1 (its default) and hold: 0.95; they are shares of all steps"),
    ({"warmup": 0.6, "hold": 0.6}, "warmup", "has warmup: 0.6 and hold: 0.6; they are shares of all steps, at most 1"),
    (
        {"frozen_dtype": "bf16"},
        "frozen_dtype",
        "has frozen_dtype: bf16 and precision: fp32 (its default); frozen weights are held in fp32 or in what is "
        "computed in: set precision: bf16",
    ),
    ({"frozen_dtype": "fp16", "precision": "bf16"}, "frozen_dtype", "has frozen_dtype: fp16 and precision: bf16; fro"),
    ({"compile_buckets": 8}, "compile_buckets", "has compile_buckets: 8 and compile: false (its default); set compile"),
    ({"compile_buckets": 8, "compile": False}, "compile_buckets", "has compile_buckets: 8 and compile: false; set"),
    ({"noise": {"snr": [20, 5]}}, "noise.snr", "has [20, 5]; give the lowest and the highest value"),
    ({"noise": {"kinds": []}}, "noise.kinds", "has neither kinds nor a folder"),
    ({"reverberation": {"rt60": [0.5, 0.2]}}, "reverberation.rt60", "has [0.5, 0.2]; give the lowest"),
    ({"reverberation": {"direct": [3, 0]}}, "reverberation.direct", "has [3, 0]; give the lowest"),
]
# What the stage refuses once it knows device and model.
ON_THE_DEVICE = [
    (
        {"precision": "fp16", "device": "cpu"},
        "precision",
        "has precision: fp16 and device: cpu; fp16 is for CUDA alone",
    ),
]


@pytest.mark.parametrize("recipe, key, text", TOGETHER + ON_THE_DEVICE)
def test_keys_of_a_recipe_go_together(recipe, key, text):
    message = refused(edited("tasks.lid.training", recipe))
    assert message.startswith(f"training.{key}: the system wav2vec2/lid/full {text}")
    message = refused(edited("methods.aware.training", recipe))
    assert message.startswith(f"training.{key}: the system wav2vec2/asr/aware {text}")
    config = tiny_config()
    config["bases"]["whisper"]["pretrain"] |= recipe
    assert refused(config).startswith(f"bases.whisper.pretrain.{key}: the pretraining of whisper {text}")


@pytest.mark.parametrize("recipe", [recipe for recipe, *_ in TOGETHER])
def test_the_stage_refuses_these_recipes_as_well(recipe):
    from lowrank_speech.errors import UserError
    from lowrank_speech.stages.common import from_json
    from lowrank_speech.training.config import TrainConfig

    with pytest.raises(UserError):
        from_json(TrainConfig, recipe)


@pytest.mark.parametrize(
    "recipe",
    [
        {"warmup": 0.6},
        {"warmup": 0.3, "hold": 0.7},
        {"warmup": 1, "hold": 0},
        {"frozen_dtype": "bf16", "precision": "bf16"},
        {"frozen_dtype": "fp32", "precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "fp16", "device": "auto"},
        {"precision": "fp16", "device": "cuda"},
        {"precision": "bf16", "device": "cpu"},
        {"compile_buckets": 8, "compile": True},
        {"compile_buckets": None, "factor_sgd": None, "noise": None, "reverberation": None, "speed": []},
    ],
)
def test_recipes_that_work(recipe):
    from lowrank_speech.settings import read
    from lowrank_speech.training.config import TrainConfig, split_runtime

    read(TrainConfig, split_runtime(recipe)[0])
    checked(edited("training", recipe))
    config = tiny_config()
    config["bases"]["whisper"]["pretrain"] |= recipe
    checked(config)


def test_a_recipe_is_checked_once_its_overrides_are_laid_over_each_other():
    config = edited("training", {"frozen_dtype": "bf16", "warmup": 0.7})
    config["tasks"]["asr"]["training"] = config["tasks"]["lid"]["training"] = {"precision": "bf16"}
    for name, method in config["methods"].items():
        method["training"] = {"hold": 0.3} if name != "lowrank" else {}
    assert refused(config).startswith("training.warmup: the system wav2vec2/asr/lowrank has warmup: 0.7 and hold: 0.4")
    config["methods"]["lowrank"]["training"]["hold"] = 0.1
    checked(config)


def test_defaults_that_the_checks_know_are_those_of_the_recipe():
    from lowrank_speech.training.config import TrainConfig

    assert {key: getattr(TrainConfig(), key) for key in checks.RECIPE} == checks.RECIPE


def test_sgd_for_factors_needs_factors_that_train():
    config = edited("training.factor_sgd", {"lr": 0.05})
    assert refused(config) == (
        "training.factor_sgd: the system wav2vec2/asr/full has no factors for it (methods.full does not factorise); "
        "set it in the training of methods with factorise and adapt: full, or methods.full.training.factor_sgd: null"
    )
    config["methods"]["full"]["training"] = {"factor_sgd": None}
    assert refused(config).startswith(
        "training.factor_sgd: the system wav2vec2/asr/lowrank_lora has no factors for it (with adapt: lora no factors"
    )
    config["methods"]["lowrank_lora"]["training"] = {"factor_sgd": None}
    checked(config)
    config = tiny_config()
    config["bases"]["whisper"]["pretrain"]["factor_sgd"] = {}
    assert refused(config).startswith("bases.whisper.pretrain.factor_sgd: a base from scratch has no factors")


def test_a_base_from_a_folder_may_have_factors():
    base = {"family": "wav2vec2", "source": "facebook/wav2vec2-base", "lang": "chars", "features": "waveform"}
    config = edited("bases.wav2vec2", base)
    config["systems"] = {"bases": ["wav2vec2"], "tasks": ["asr"], "methods": ["full"]}
    config["training"]["factor_sgd"] = {}
    assert "(methods.full does not factorise, and facebook/wav2vec2-base is a name on the hub; if" in refused(config)
    for folder in ("./models/mine", "/models", "exp/first/train/wav2vec2/asr/lowrank/model"):
        config["bases"]["wav2vec2"]["source"] = folder
        checked(config)


def test_augmentation_by_defaults_alone_changes_samples_too():
    for key in ("noise", "reverberation"):
        message = refused(edited(f"training.{key}", {}))
        assert message.startswith(f"training.{key}: it changes samples, and the system whisper/asr/full reads")


def test_w2v_bert_comes_from_a_folder_and_has_no_front_end():
    base = {"family": "w2v-bert", "source": "facebook/w2v-bert-2.0", "features": "waveform", "lang": "chars"}
    checked(edited("bases.wav2vec2", base | {"features": "fbank", "features_dtype": "float16"}))
    config = edited("bases.wav2vec2", base)
    checked(config)
    config["tasks"]["asr"]["training"] = {"train_front_end": True}
    assert refused(config).startswith("training.train_front_end: the system wav2vec2/asr/full reads what a frozen")
    config = edited("bases.wav2vec2", base | {"features_dtype": "float16"})
    assert refused(config).endswith("take features: fbank")
    config = edited("bases.wav2vec2", base | {"source": "scratch"})
    assert refused(config).startswith("bases.wav2vec2.source: scratch makes wav2vec2 and whisper")


def test_recognition_needs_a_token_set():
    config = edited("bases.whisper", {"family": "whisper", "source": "openai/whisper-tiny", "features": "logmel"})
    assert refused(config).startswith("bases.whisper.lang: the task asr recognises speech and needs a token set")
    config["systems"]["tasks"] = ["lid"]
    checked(config)


def test_a_window_goes_to_the_stage_base_alone():
    hub = {"family": "whisper", "source": "openai/whisper-tiny", "lang": "pieces", "features": "logmel"}
    config = edited("bases.whisper", hub | {"window": 2.02})
    checked(config)
    without = edited("bases.whisper", hub)
    names = wildcards(base="whisper", task="lid", method="full")
    assert slices.slice_base(config, names) == slices.slice_base(without, names) | {"window": 2.02}
    for stage in (slices.slice_features, slices.slice_train, slices.slice_decode, slices.slice_report):
        assert stage(config, names) == stage(without, names)
    for seconds in (2.01, 1e7, 1e308):
        config["bases"]["whisper"]["window"] = seconds
        assert "is no multiple of 0.02 s" in refused(config)


def test_overrides_go_from_experiment_to_base_to_task_to_method():
    config = tiny_config()
    config["training"] = {
        "lr": 1,
        "epochs": 1,
        "warmup": 1,
        "clip": 1,
        "spec_augment": {"time_masks": 1, "time_width": 1},
    }
    config["bases"]["whisper"]["training"] = {"epochs": 2, "warmup": 2, "clip": 2}
    config["tasks"]["asr"]["training"] = {"warmup": 3, "clip": 3, "spec_augment": {"time_width": 3}}
    config["methods"]["full"]["training"] = {"clip": 4}
    before = copy.deepcopy(config)
    augment = {"time_masks": 1, "time_width": 3}
    expected = {"lr": 1, "epochs": 2, "warmup": 3, "clip": 4, "spec_augment": augment}
    assert training(config, System("whisper", "asr", "full")) == expected
    assert training(config, System("wav2vec2", "lid", "lowrank")) == config["training"]
    assert config == before


def test_a_method_may_have_a_seed_of_its_own():
    config = tiny_config()
    config["methods"]["again"] = config["methods"]["full"] | {"seed": 7}
    first, second = (slices.slice_train(config, System("whisper", "asr", name)) for name in ("full", "again"))
    assert second == first | {"seed": 7} and first["seed"] == config["seed"] != 7


def test_deep_merge():
    assert deep_merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    assert deep_merge({"a": {"b": 1}}, {"a": None}) == {"a": None}
    assert deep_merge({"a": None}, {"a": {"b": 1}}) == {"a": {"b": 1}}
    assert deep_merge({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}


def test_grid_is_the_product_in_the_order_of_the_lists():
    config = tiny_config()
    config["systems"] = {"bases": ["whisper", "wav2vec2"], "tasks": ["lid"], "methods": ["lowrank", "full"]}
    names = ["whisper/lid/lowrank", "whisper/lid/full", "wav2vec2/lid/lowrank", "wav2vec2/lid/full"]
    assert ["/".join(system) for system in systems(config)] == names


def test_corpora_used_are_those_of_the_grid():
    config = tiny_config()
    assert corpora_used(config) == ["babel", "ocean"]
    config["systems"]["tasks"] = ["lid"]
    assert corpora_used(config) == ["babel"]


def test_keys_of_shared_artefacts_depend_on_the_section_alone():
    section = {"layers": "ffn", "rank": 512, "init": "svd"}
    assert factorise_key(section) == factorise_key(dict(reversed(section.items())))
    assert factorise_key(section).startswith("rank512-")
    assert factorise_key(section) != factorise_key({**section, "rank": 256})
    assert calibrate_key({**section, "rank": 256}) == calibrate_key(section) != calibrate_key({"layers": ["*fc1"]})


def wildcards(**names: str) -> SimpleNamespace:
    return SimpleNamespace(**names)


def test_slices_have_the_keys_of_their_stage_alone():
    config = tiny_config()
    config["decode"] = {"batch_seconds": 30, "language": "given", "priors": False}
    config["score"] = {"bootstrap": 50, "p_target": [0.5], "worst": 3}
    system = {"base": "whisper", "task": "lid", "method": "lowrank_lora"}
    assert slices.slice_train(config, wildcards(**system)) == {
        "seed": 1,
        "task": {"type": "lid"},
        "adapt": "lora",
        "lora": {"rank": 2},
        "training": {"epochs": 1, "lr": 0.001},
    }
    config["training"]["ctc"] = {"backend": "torch"}  # the loss of recognition alone
    assert "ctc" not in slices.slice_train(config, wildcards(**system))["training"]
    recognition = slices.slice_train(config, wildcards(**{**system, "task": "asr"}))
    assert recognition["training"]["ctc"] == {"backend": "torch"}
    assert slices.slice_decode(config, wildcards(**system))["decode"] == {"batch_seconds": 30, "priors": False}
    assert slices.slice_score(config, wildcards(**system))["score"] == {"bootstrap": 50, "p_target": [0.5]}
    system["task"] = "asr"
    assert slices.slice_decode(config, wildcards(**system))["decode"] == {"batch_seconds": 30, "language": "given"}
    assert slices.slice_score(config, wildcards(**system))["score"] == {"bootstrap": 50, "worst": 3}
    row = slices.slice_report(config)["systems"][1]
    assert row == {
        "base": "wav2vec2",
        "task": "asr",
        "method": "lowrank",
        "type": "asr",
        "factorisation": row["factorisation"],
    }
    assert row["factorisation"] == factorise_key(config["methods"]["lowrank_lora"]["factorise"])
    assert slices.slice_base(config, wildcards(base="whisper"))["pretrain"] == {"epochs": 2}
    assert slices.slice_features(config, wildcards(base="whisper")) == {"kind": "logmel"}
    assert slices.slice_lang(config, wildcards(lang="pieces"))["lang"] == {"kind": "sentencepiece", "vocab_size": 60}


def test_device_is_that_of_the_slice():
    config = tiny_config()
    config["methods"]["full"]["training"] = {"device": "cuda"}
    config["bases"]["whisper"]["pretrain"]["device"] = "cuda"
    full = wildcards(base="whisper", task="lid", method="full")
    assert slices.device(config, "train", full) == "cuda"
    assert slices.device(config, "train", wildcards(base="whisper", task="lid", method="lowrank")) is None
    assert slices.device(config, "decode", full) is None
    assert slices.device(config, "base", wildcards(base="whisper")) == "cuda"
    assert slices.device(config, "base", wildcards(base="wav2vec2")) is None


# Sections of the schema, and the dataclasses that read them; keys that only the orchestration reads.
def sections() -> dict[str, tuple[type, set[str]]]:
    from lowrank_speech.corpora import digits, espeak, kaldi, parts, tsv, validate
    from lowrank_speech.lang import normalise
    from lowrank_speech.lowrank.constraint_settings import ConstraintSettings
    from lowrank_speech.lowrank.lora_settings import LoraSettings
    from lowrank_speech.scoring.options import ScoreOptions
    from lowrank_speech.stages import base, calibrate, decode, factorise, lang, report, train
    from lowrank_speech.training.config import (
        CtcConfig,
        FactorSgd,
        Noise,
        Reverberation,
        Runtime,
        SpecAugment,
        TrainConfig,
    )

    runtime = {field.name for field in dataclasses.fields(Runtime)}
    return {
        "digits": (digits.Config, set()),
        "digits.splits": (digits.SplitConfig, set()),
        "espeak": (espeak.Config, set()),
        "espeak.splits": (espeak.SplitConfig, set()),
        "espeak.languages": (espeak.LanguageConfig, set()),
        "kaldi": (kaldi.Config, set()),
        "tsv": (tsv.Config, set()),
        "tsv.columns": (tsv.Columns, set()),
        "part": (parts.SplitConfig, set()),
        "checks": (validate.Checks, set()),
        "char": (lang.Char, {"corpora", "splits"}),
        "pieces": (lang.Pieces, {"corpora", "splits"}),
        "own": (lang.Own, set()),
        "normalise": (normalise.NormaliseConfig, set()),
        "normalise.languages": (normalise.Rules, set()),
        "base": (base.Config, {"lang", "features", "features_dtype", "training", "-seed"}),
        "pretrain": (TrainConfig, {"corpus", "train", "dev", *runtime}),
        "training": (TrainConfig, runtime),
        "training.spec_augment": (SpecAugment, set()),
        "training.ctc": (CtcConfig, set()),
        "training.factor_sgd": (FactorSgd, set()),
        "training.noise": (Noise, set()),
        "training.reverberation": (Reverberation, set()),
        "task": (train.Task, {"corpus", "train", "dev", "test", "training"}),
        "segment": (train.Segment, set()),
        "lora": (LoraSettings, set()),
        "constraint": (ConstraintSettings, set()),
        "method": (train.Config, {"factorise", "-task"}),
        "factorise": (factorise.Factorise, set()),
        "calibrate": (calibrate.Config, {"corpus", "split", "-seed", "-layers"}),
        "decode": (decode.Decode, set()),
        "score": (ScoreOptions, set()),
        "report": (report.ReportConfig, set()),
    }


@pytest.mark.parametrize("name", [*sections()])
def test_schema_and_dataclass_know_the_same_keys(name):
    cls, own = sections()[name]
    node = SCHEMA["$defs"][name.partition(".")[0]]
    if "." in name:
        node = node["properties"][name.partition(".")[2]]
        node = node["additionalProperties"] if isinstance(node["additionalProperties"], dict) else node
    assert node["additionalProperties"] is False
    fields = {field.name.removesuffix("_") for field in dataclasses.fields(cls)}
    added, elsewhere = {k for k in own if k[0] != "-"}, {k[1:] for k in own if k[0] == "-"}
    assert set(node["properties"]) == (fields | added) - elsewhere


def test_no_section_of_the_schema_lets_typos_through():
    def open_objects(node: Any, path: str) -> list[str]:
        if isinstance(node, list):
            return [found for i, item in enumerate(node) for found in open_objects(item, f"{path}[{i}]")]
        if not isinstance(node, dict):
            return []
        found = [path] if "properties" in node and node.get("additionalProperties") is not False else []
        return found + [f for key, item in node.items() if key != "if" for f in open_objects(item, f"{path}.{key}")]

    # The two that branch by kind: each branch is closed.
    assert open_objects(SCHEMA, "") == [".$defs.corpus", ".$defs.lang"]


def test_kinds_of_corpora_are_those_of_the_registry():
    from lowrank_speech.corpora import registry

    assert SCHEMA["$defs"]["corpus"]["properties"]["kind"]["enum"] == sorted(registry.KINDS)


def test_conda_environments_pin_the_versions_of_the_lock():
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    lock = {line.lower() for line in lines if line and not line.startswith("#")}
    assert all("==" in line and "/" not in line and " " not in line for line in lock)
    for path in (REPOSITORY / "envs").glob("*.yaml"):
        environment = yaml.safe_load(path.read_text(encoding="utf-8"))
        # k2's wheel is no version: which one it is, the user says.
        assert set(environment["dependencies"][-1]["pip"]) <= lock | {"${K2_WHEEL}"}, path
        assert "python=3.11" in environment["dependencies"]
