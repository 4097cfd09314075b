"""The config slices of the stages, overrides, and names of shared artefacts."""

import copy

from lowrank_speech.workflow.config import (
    System,
    calibrate_key,
    deep_merge,
    factorise_key,
    splits_used,
    systems,
    training,
)
from workflow_config import checked, edited, refused, sliced, wildcards
from workflow_tree import tiny_config


def test_a_window_goes_to_the_stage_base_alone():
    hub = {"family": "whisper", "source": "openai/whisper-tiny", "lang": "own", "features": "logmel"}
    without = edited("bases.whisper", hub)
    without["langs"]["own"] = {"kind": "whisper"}
    config = copy.deepcopy(without)
    config["bases"]["whisper"]["window"] = 2.02
    checked(config)
    windowed, without = sliced(config), sliced(without)
    names = wildcards(base="whisper", task="lid", method="full", test="test", decoder="scores")
    assert windowed.base(names).cfg == without.base(names).cfg | {"window": 2.02}
    for stage in ("features", "train", "decode", "report"):
        assert getattr(windowed, stage)(names) == getattr(without, stage)(names)
    for seconds in (2.01, 1e7, 1e308):
        config["bases"]["whisper"]["window"] = seconds
        assert "not a multiple of 0.02 s" in refused(config)


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
    found = sliced(config)
    first, second = (found.train(System("whisper", "asr", name)).cfg for name in ("full", "again"))
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


def test_splits_used_are_those_of_the_grid():
    config = tiny_config()
    assert {split.corpus for split in splits_used(config)} == {"babel", "ocean"}
    config["systems"]["tasks"] = ["lid"]
    assert {split.corpus for split in splits_used(config)} == {"babel"}


def test_keys_of_shared_artefacts_depend_on_the_section_alone():
    section = {"layers": "ffn", "rank": 512, "init": "svd"}
    assert factorise_key(section) == factorise_key(dict(reversed(section.items())))
    assert factorise_key(section).startswith("rank512-")
    assert factorise_key(section) != factorise_key({**section, "rank": 256})
    assert calibrate_key({**section, "rank": 256}) == calibrate_key(section) != calibrate_key({"layers": ["*fc1"]})


def test_slices_have_the_keys_of_their_stage_alone():
    config = tiny_config()
    config["decode"] = {"batch_seconds": 30, "language": "given", "priors": False}
    config["score"] = {"bootstrap": 50, "p_target": [0.5], "worst": 3}
    config["training"]["ctc"] = {"backend": "torch"}  # only for recognition
    found = sliced(config)
    lid = wildcards(base="whisper", task="lid", method="lowrank_lora", decoder="scores", test="test")
    asr = wildcards(base="whisper", task="asr", method="lowrank_lora", decoder="greedy", test="test")
    cfg = found.train(lid).cfg
    assert cfg["adapt"] == "lora" and cfg["lora"]["rank"] == 2 and cfg["task"]["type"] == "lid" and cfg["seed"] == 1
    assert cfg["training"]["lr"] == 0.001 and "ctc" not in cfg["training"] and "device" not in cfg["training"]
    assert found.train(asr).cfg["training"]["ctc"]["backend"] == "torch"
    assert found.decode(lid).cfg["decoder"] == {"kind": "scores", "batch_seconds": 30, "priors": False}
    greedy = found.decode(asr).cfg["decoder"]
    assert greedy["language"] == "given" and greedy["batch_seconds"] == 30 and "priors" not in greedy
    for names, own, other in ((lid, "p_target", "worst"), (asr, "worst", "p_target")):
        score = found.score(names).cfg["score"]
        assert score["bootstrap"] == 50 and own in score and other not in score
    row = found.report().cfg["systems"][1]
    assert row == {
        "base": "wav2vec2",
        "task": "asr",
        "method": "lowrank",
        "type": "asr",
        "factorisation": row["factorisation"],
    }
    assert row["factorisation"] == factorise_key(checked(config)["methods"]["lowrank_lora"]["factorise"])
    assert found.base(wildcards(base="whisper")).cfg["pretrain"]["epochs"] == 2
    assert found.features(wildcards(base="whisper")).cfg == {"kind": "logmel", "dtype": "float32"}
    lang = found.lang(wildcards(lang="pieces")).cfg["lang"]
    assert lang["kind"] == "sentencepiece" and lang["vocab_size"] == 60 and "corpora" not in lang


def test_runtime_keys_stand_apart_and_are_overridden_where_they_are_used():
    config = tiny_config()
    config["runtime"] = {"workers": 2, "device": "cpu"}
    config["methods"]["full"]["training"] = {"device": "cuda"}
    config["bases"]["whisper"]["pretrain"]["save_minutes"] = 3
    found = sliced(config)
    full = wildcards(base="whisper", task="lid", method="full", decoder="scores", test="test")
    assert found.train(full).runtime == {
        "device": "cuda",
        "workers": 2,
        "save_minutes": 10,
        "tensorboard": False,
        "dry_run": None,
    }
    other = wildcards(base="whisper", task="lid", method="lowrank")
    assert found.train(other).runtime["device"] == "cpu" and found.decode(full).runtime == {"device": "cpu"}
    assert found.base(wildcards(base="whisper")).runtime["save_minutes"] == 3
    plain = tiny_config()
    plain["bases"]["whisper"]["pretrain"].pop("save_minutes", None)
    without = sliced(plain)
    for stage in ("train", "decode", "base"):
        assert getattr(found, stage)(full).cfg == getattr(without, stage)(full).cfg


def test_equal_settings_have_one_slice():
    config = tiny_config()
    spelt = copy.deepcopy(config)
    spelt["methods"]["lowrank"]["factorise"] |= {"layers": "ffn", "init": "svd"}
    spelt["training"] |= {"warmup": 0.1, "clip": 1.0}
    one, other = sliced(config), sliced(spelt)
    system = System("whisper", "asr", "lowrank")
    assert one.train(system) == other.train(system) and one.report() == other.report()


def test_keys_of_losses_that_a_recipe_does_not_use_are_not_in_its_slice():
    """So an experiment without them does not depend on their defaults."""
    config = tiny_config()
    names = wildcards(base="wav2vec2", task="asr", method="full")
    plain = sliced(config).train(names).cfg
    assert "lfmmi" not in plain["training"] and set(plain["training"]["ctc"]) == {"backend", "output_beam"}
    config["training"] |= {"lfmmi": {"order": 3}, "ctc": {"prior_scale": 0, "delay_penalty": 0.0}}
    config["bases"]["wav2vec2"]["pretrain"] |= {"lfmmi": {"order": 3}}
    assert sliced(config).train(names).cfg == plain
    assert sliced(config).base(names).cfg == sliced(tiny_config()).base(names).cfg
    config["training"]["ctc"] = {"prior_scale": 0.3}
    found = sliced(config).train(names).cfg["training"]
    assert found["ctc"]["prior_scale"] == 0.3 and "delay_penalty" not in found["ctc"]
    config["training"] |= {"loss": "lfmmi"}
    assert sliced(config).train(names).cfg["training"]["lfmmi"] == {"order": 3, "den_scale": 1.0}
