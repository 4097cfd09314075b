"""Sweeps: names and settings of the expansions, what they run, what is refused, and the report over seeds."""

import copy
import itertools
import json
import random
import re
from types import SimpleNamespace

import pytest
import yaml

from lowrank_speech.experiment.schema import NAME
from lowrank_speech.reporting import seeds
from lowrank_speech.workflow.config import factorise_key, start_share, systems, teacher
from lowrank_speech.workflow.experiments import Experiment, checked, open_experiment, read_schema
from lowrank_speech.workflow.jobs import jobs
from lowrank_speech.workflow.sweeps import _number, expand
from workflow_tree import REPOSITORY, Tree, tiny_config

SCHEMA = read_schema()


def swept(method="full", sweep=None, **more):
    """tiny_config with a swept method."""
    config = tiny_config()
    config["methods"][method] |= {"sweep": sweep} | more
    return config


def opened(config):
    return Experiment(checked(config, SCHEMA), SCHEMA)


def refused(config):
    with pytest.raises(ValueError) as caught:
        checked(config, SCHEMA)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- expansion ---------------------------------------------------------------------------------------------------------


def test_every_combination_is_a_method():
    config = swept(sweep={"seed": [1, 2], "training.lr": [1e-4, 2e-4], "training.epochs": [3]})
    before = copy.deepcopy(config)
    made = expand(config)
    assert config == before
    names = [f"full-seed{s}-lr{lr}-epochs3" for s in (1, 2) for lr in ("1e-4", "2e-4")]
    assert list(made["methods"]) == [*names, "lowrank", "lowrank_lora", "aware"]
    assert made["systems"]["methods"] == list(made["methods"])
    assert made["methods"][names[1]] == {"adapt": "full", "seed": 1, "training": {"lr": 2e-4, "epochs": 3}}
    assert expand(made) is made and expand(tiny_config()) == tiny_config()


def test_an_expansion_is_the_method_written_out():
    config = swept("lowrank", {"training.lr": [0.002], "constraint.mode": ["none", "fixed"]})
    config["methods"]["lowrank"]["constraint"] = {"every": 2}
    plain = tiny_config()
    plain["methods"]["lowrank"] |= {"training": {"lr": 0.002}, "constraint": {"every": 2, "mode": "fixed"}}
    one, other = opened(config), opened(plain)
    system = next(s for s in systems(one.config) if s.method == "lowrank-lr2e-3-modefixed")
    assert one.slices.train(system) == other.slices.train(system._replace(method="lowrank"))


def test_single_expansions_can_be_chosen_and_compared_with():
    config = swept(sweep={"seed": [3, 4]})
    config["systems"]["methods"] = ["lowrank", "full-seed4"]
    assert {s.method for s in systems(opened(config).config)} == {"lowrank", "full-seed4"}
    config["systems"]["methods"] = ["full", "lowrank"]
    config["report"]["against"] = "full"
    assert opened(config).config["report"]["against"] == "full-seed3"


def test_a_fusion_of_a_swept_method_fuses_all_of_its_systems():
    config = swept(sweep={"seed": [3, 4]})
    config["backends"] = {"fused": {"kind": "fusion", "systems": ["whisper/lowrank", "wav2vec2/full"]}}
    config["tasks"]["lid"]["backends"] = ["fused"]
    names = ["whisper/lowrank", "wav2vec2/full-seed3", "wav2vec2/full-seed4"]
    assert opened(config).config["backends"]["fused"]["systems"] == names


def test_names_are_valid_short_and_different():
    rng = random.Random(1)
    values = {0, 1, -1, 12, 100_000, 2**32 - 1, 0.24, 0.05, 1e-3, 1e-5, 2.5e-4, 0.999, -0.5, 1e20, 123.456}
    values |= {rng.uniform(-2, 2) for _ in range(200)} | {10 ** rng.uniform(-9, 9) for _ in range(200)}
    names = {value: _number(value) for value in values}
    assert len(set(names.values())) == len(values)
    for value, name in names.items():
        assert re.fullmatch(NAME, f"x-{name}")
        assert float(name.replace("p", ".").replace("m", "-", 1)) == value
    assert [names[value] for value in (0.24, 2.5e-4, 1e-3, -0.5, 100_000)] == [
        "0p24",
        "2p5e-4",
        "1e-3",
        "m0p5",
        "100000",
    ]
    config = swept("lowrank_lora", {"lora.rank": [1], "factorise.layers": ["ffn", ["ffn", "attention"], "x.*"]})
    config["methods"]["lowrank_lora"] = {
        "adapt": "lora", "sweep": {"lora.rank": [1], "factorise.rank": [2], "seed": [None, 7],
                                   "lora.use_rslora": [True], "factorise.layers": ["ffn", ["ffn", "attention"], "x.*"]},
    }  # fmt: skip
    found = [name for name in expand(config)["methods"] if name.startswith("lowrank_lora-")]
    assert found[0] == "lowrank_lora-lora_rank1-factorise_rank2-seednone-use_rsloratrue-layersffn"
    assert {name.rpartition("-")[2] for name in found} == {"layersffn", "layersffn_attention", "layersx"}
    assert all(re.fullmatch(NAME, name) for name in found) and len(set(found)) == 6


# -- teachers ----------------------------------------------------------------------------------------------------------


def taught(student, sweep=None, **full):
    config = swept(sweep={"seed": [1, 2], **(sweep or {})}, **full)
    config["methods"]["student"] = {"adapt": "full", "distil": {"teacher": "full"}} | student
    config["systems"] |= {"methods": ["full", "student"], "tasks": ["asr"]}
    return config


def test_a_student_learns_from_the_teacher_with_its_values():
    def teachers(config):
        resolved = opened(config).config
        found = {s.method: teacher(resolved, s) for s in systems(resolved)}
        return {name: other.method for name, other in found.items() if other is not None}

    assert teachers(taught({"sweep": {"seed": [2, 1]}})) == {
        "student-seed2": "full-seed2",
        "student-seed1": "full-seed1",
    }
    assert teachers(taught({"seed": 2})) == {"student": "full-seed2"}
    assert teachers(taught({})) == {"student": "full-seed1"}  # the experiment's seed
    both = {"training.lr": [1e-4, 2e-4]}
    assert teachers(taught({"sweep": {"seed": [1], "training.lr": [2e-4]}}, both)) == {
        "student-seed1-lr2e-4": "full-seed1-lr2e-4"
    }
    assert (
        teachers(taught({"sweep": {"seed": [1, 2]}}, {"training.lr": [1e-4]}))["student-seed2"] == "full-seed2-lr1e-4"
    )
    assert "is swept over seed, training.lr, and not one of its systems has the values" in refused(taught({}, both))
    assert "and none of its systems" in refused(taught({"seed": 7}))
    named = taught({"sweep": {"seed": [1, 2]}})
    named["methods"]["student"]["distil"]["teacher"] = "full-seed1"
    assert set(teachers(named).values()) == {"full-seed1"}


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"seed": []}, "methods.full.sweep.seed: the list is empty"),
        ({"seed": [1, 2, 1]}, "methods.full.sweep.seed: 1 occurs twice in [1, 2, 1]; remove one"),
        ({"training.lr": [1e-4, 0.0001]}, "methods.full.sweep.training.lr: 0.0001 occurs twice"),
        ({"training.lr": [1, 1.0]}, "methods.full.sweep.training.lr: 1.0 occurs twice"),
        ({"seed": 3}, "methods.full.sweep.seed: expected a list of values, got 3; write [3] for one"),
        ({}, "methods.full.sweep: expected keys with lists of values, such as seed: [1, 2, 3], got {}"),
        ([1], "methods.full.sweep: expected keys with lists of values"),
        ({"sed": [1]}, "methods.full: unknown key 'sed' (did you mean 'seed'?)"),
        ({"training.lrr": [1]}, "methods.full.training: unknown key 'lrr' (did you mean 'lr'?)"),
        ({"training.": [1]}, "'training.' is not the name of a key"),
        ({"training.lr.x": [1], "training.lr": [1]}, "methods.full.sweep"),
        ({"adapt": ["none"]}, "methods.full.sweep.adapt: the method also sets adapt to 'full'; remove it there"),
        ({"adapt.x": ["none"]}, "'adapt.x' is no key, because adapt is 'full'"),
        ({"training": [{"lr": 1e-3}]}, "is a mapping; sweep a key below it"),
        ({"training.lr": ["1e-4"]}, "methods.full.training.lr: expected a number, got '1e-4' (YAML reads it as text"),
        ({"training.lr": [1e-4, -1]}, "methods.full-lrm1.training.lr is -1; it must be"),
        ({"training.spec_augment": [True]}, "methods.full.training.spec_augment: expected"),
        ({"lora.rank": [1, 2]}, "lora: it has no effect with adapt: full; remove it or set adapt: lora"),
        ({"constraint.mode": ["none", "fixed"]}, "constraint"),
        ({"progressive.start": [0.5, 1.0]}, "progressive: it truncates factors while they train, but it has no"),
    ],
)
def test_refusals(sweep, message):
    assert message in refused(swept(sweep=sweep))


def test_names_that_exist_are_refused():
    config = swept(sweep={"seed": [1, 2]})
    config["methods"]["full-seed2"] = {"adapt": "full"}
    assert "full-seed2, which exists already; rename one of them" in refused(config)
    config = swept("lowrank", {"factorise.layers": ["x.a", "x-a"]})
    del config["methods"]["lowrank"]["factorise"]["layers"]
    assert "two of its systems would have one name" in refused(config)


@pytest.mark.parametrize(("task", "fine"), [("asr", False), ("lid", True)])
@pytest.mark.parametrize("sweep", [{"seed": [1, 2]}, {"training.lr": [1e-3, 2e-3]}, {"seed": [1]}])
def test_keys_that_the_method_ignores(sweep, task, fine):
    """The base from scratch has the head for recognition; for languages, even adapt: none trains a head."""
    config = swept(sweep=sweep, adapt="none")
    config["systems"] |= {"methods": ["full"], "tasks": [task]}
    if fine:
        checked(config, SCHEMA)
    else:
        assert "adapt: none trains nothing, so it has no effect; remove the key" in refused(config)


def test_a_value_without_effect_is_refused():
    config = swept("lowrank", {"factorise.floor": [0.1, 0.2]})  # part of the folder's name, so another model
    checked(config, SCHEMA)
    config = swept(sweep={"training.device": ["cpu", "auto"]})
    assert "methods.full.sweep.training.device: it has no effect" in refused(config)


# -- what runs ---------------------------------------------------------------------------------------------------------


def test_another_value_adds_jobs_and_changes_none():
    def of(config):
        experiment = opened(config)
        return {
            job.manifest: (job.needs, getattr(experiment.slices, job.stage)(job.wildcards).cfg_json)
            for job in jobs(experiment.slices, experiment.layout)
            if job.stage != "report"
        }

    config = swept("aware", {"training.lr": [1e-4, 3e-4], "seed": [1]})
    before = of(config)
    for key, value in (("training.lr", 2e-4), ("seed", 0)):
        more = copy.deepcopy(config)
        more["methods"]["aware"]["sweep"][key].insert(0, value)
        after = of(more)
        assert before == {manifest: after[manifest] for manifest in before}
        new = {tuple(m.split("/")[2:-1]) for m in set(after) - set(before)}
        assert {place[0] for place in new} == {"train", "decode", "score"}
        assert all(re.search("lr2e-4|seed0", "/".join(place)) for place in new)


@pytest.mark.slow
def test_another_value_runs_only_the_new_systems(tmp_path):
    config = swept(sweep={"seed": [1, 2]})
    config["systems"] = {"bases": ["wav2vec2"], "tasks": ["asr"], "methods": ["full"]}
    tree = Tree(tmp_path, config)
    tree.run()
    assert len([path for path in tree.made() if path.startswith("exp/tiny/train")]) == 2
    config["methods"]["full"]["sweep"]["seed"] = [3, 1, 2]
    tree.write(config)
    assert tree.due() == {"train": 1, "decode": 1, "score": 1, "report": 1}


OLD = {
    "svd": {"init": "svd"},
    "svda": {"init": "svd", "allocate": True},
    "act": {"init": "activation"},
    "acta": {"init": "activation", "allocate": True},
    "random": {"init": "random"},
}


def test_holds_has_the_systems_that_it_had():
    """The 71 entries that the sweeps of holds.yaml replaced, written out by loops."""
    full, lora = {"adapt": "full"}, {"adapt": "lora", "lora": {"rank": 4, "alpha": 8}, "training": {"lr": 3e-3}}
    seeds_of = [{"seed": 1}, {"seed": 2}]
    old = [{"adapt": "none"}, {"adapt": "none", "factorise": {"layers": "ffn", "fraction": 0.1, "init": "svd"}}]
    old += [method | seed for method, seed in itertools.product((full, lora), seeds_of)]
    for cut in (0.24, 0.4, 0.6):
        recipes = {name: {"layers": "all", "reduction": cut, **keys} for name, keys in OLD.items()}
        act = {"factorise": recipes["act"]}
        old += [{"adapt": "none", "factorise": recipe} for recipe in recipes.values()]
        trained = [full | {"factorise": recipe} for recipe in recipes.values()]
        trained.append(full | act | {"constraint": {"mode": "none"}})
        trained.append(full | act | {"training": {"factor_sgd": {"lr": 0.05, "momentum": 0.9}}})
        trained.append(lora | act)
        old += [method | seed for method, seed in itertools.product(trained, seeds_of)]
    product = lora | {"lora": {"rank": 4, "alpha": 8, "where": "product"}}
    product["factorise"] = {"layers": "all", "reduction": 0.6, "init": "activation"}
    old += [product | seed for seed in seeds_of]
    config = yaml.safe_load((REPOSITORY / "workflow/experiments/holds.yaml").read_text())
    config["methods"] = {f"m{number}": method for number, method in enumerate(old)}
    config["systems"]["methods"] = list(config["methods"])

    def made(experiment):
        methods = experiment.config["methods"]
        return sorted(
            f"{(f := methods[s.method].get('factorise')) and factorise_key(f, start_share(methods[s.method]))} "
            f"{experiment.slices.train(s).cfg_json}"
            for s in systems(experiment.config)
        )

    found = made(open_experiment(REPOSITORY / "workflow/experiments/holds.yaml"))
    assert len(found) == len(set(found)) == 71
    assert found == made(opened(config))


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_report_groups_expansions_over_seeds():
    """Also students of teachers that differ only in the seed."""
    config = taught({"sweep": {"seed": [1, 2], "training.lr": [1e-3, 2e-3]}})
    config["systems"]["bases"] = ["wav2vec2"]
    experiment = opened(config)

    def system(found):
        cfg = json.loads(experiment.slices.train(found).cfg_json)
        name = SimpleNamespace(**found._asdict(), factorisation=None)
        return SimpleNamespace(name=name, manifests={"train": {"cfg": cfg, "seed": cfg["seed"]}})

    groups = seeds.twins([system(found) for found in systems(experiment.config)])
    assert [[s.name.method for s in group] for group in groups] == [
        ["full-seed1", "full-seed2"],
        ["student-seed1-lr1e-3", "student-seed2-lr1e-3"],
        ["student-seed1-lr2e-3", "student-seed2-lr2e-3"],
    ]
