"""Progressive truncation: the mathematics against NumPy, the optimiser's state, the schedule, resumption, refusals."""

import itertools
import json
import re

import numpy as np
import pytest
import torch

from lowrank_speech.errors import UserError
from lowrank_speech.fingerprints import closure
from lowrank_speech.lowrank.factors import activation_factors, bias_shift
from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.lowrank.moments import Moments
from lowrank_speech.lowrank.structure import densify, low_rank_layers
from lowrank_speech.lowrank.truncate import ranks_after, truncate, truncate_layer
from lowrank_speech.lowrank.truncate_settings import Progressive
from lowrank_speech.models.folder import load_model
from lowrank_speech.stages import calibrate, factorise, train
from lowrank_speech.training.config import FactorSgd, Runtime, SpecAugment, TrainConfig
from lowrank_speech.training.loop import Trainer
from lowrank_speech.training.truncation import Truncation
from lowrank_speech.workflow import closures
from lowrank_speech.workflow.config import factorise_key
from stage_world import done, refused, train_cfg, train_paths
from tiny_training import drawn, drawn_cuts, interrupt, low_rank, objective_of, setup_of, weights
from workflow_config import edited, sliced, wildcards
from workflow_config import refused as config_refused

CONFIG = {"epochs": 4, "batch_seconds": 1.0, "lr": 0.005}
PLAN = Progressive(share=0.5, stages=3)
RUNTIME = Runtime(save_minutes=1e-6, device="cpu")


def factors(r=8, d_in=20, d_out=12, seed=1, orthonormal=True):
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(r, d_in, generator=generator)
    if orthonormal:
        first = 1.7 * torch.linalg.qr(first.T).Q.T
    return first, torch.randn(d_out, r, generator=generator)


def moment_of(d_in=20, rank=None, seed=2):
    """The second moment and the mean of inputs with very different powers; ``rank``: of the moment."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(500, d_in, generator=generator, dtype=torch.float64) * torch.logspace(0, -2, d_in) + 0.3
    if rank is not None:
        x = x @ torch.randn(d_in, rank, generator=generator).double() @ torch.randn(rank, d_in).double()
    return x.T @ x / len(x), x.mean(0)


# --- one layer


@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("rank", [1, 5, 8])
def test_a_truncation_is_the_svd_of_the_product(rank, orthonormal):
    first, second = factors(orthonormal=orthonormal)
    found = truncate(first, second, rank)
    U, S, Vh = np.linalg.svd((second.double() @ first.double()).numpy())
    expected = U[:, :rank] * S[:rank] @ Vh[:rank]
    np.testing.assert_allclose((found.second @ found.first).numpy(), expected, atol=1e-9)
    scale = first.double().square().sum() / len(first)
    torch.testing.assert_close(found.first @ found.first.T, scale * torch.eye(rank, dtype=torch.float64))
    torch.testing.assert_close(found.rows @ first.double(), found.first)
    torch.testing.assert_close(second.double() @ found.columns, found.second)
    assert found.shift is None


@pytest.mark.parametrize("moment_rank", [None, 3])
def test_with_a_moment_a_truncation_has_the_least_output_error(moment_rank):
    """That of the activation-aware factors of the product, also for inputs in a subspace."""
    first, second = factors()
    moment, mean = moment_of(rank=moment_rank)
    product = second.double() @ first.double()
    for m in (None, mean):
        found = truncate(first, second, 2, moment, m)
        best = activation_factors(product, moment, 2, m)
        error, least = (product - f.second @ f.first for f in (found, best))
        C = moment if m is None else moment - torch.outer(m, m)
        ours, theirs = (float((e @ C * e).sum()) for e in (error, least))
        assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-9)
        if moment_rank is None:
            torch.testing.assert_close(found.second @ found.first, best.second @ best.first, rtol=1e-5, atol=1e-6)
            plain = product - (lambda f: f.second @ f.first)(truncate(first, second, 2))
            assert ours < 0.9 * float((plain @ C * plain).sum())
        torch.testing.assert_close(second.double() @ found.columns, found.second)
        assert torch.isfinite(found.rows).all() and torch.isfinite(found.columns).all()
        if m is not None:
            torch.testing.assert_close(found.shift, bias_shift(product, found, m))


@pytest.mark.parametrize("second_rank", [3, 0])
def test_factors_of_a_lower_rank_stay_finite(second_rank):
    first, second = factors()
    second[:, second_rank:] = 0
    found = truncate(first, second, 5)
    torch.testing.assert_close(found.second @ found.first, second.double() @ first.double())
    scale = first.double().square().sum() / len(first)
    torch.testing.assert_close(found.first @ found.first.T, scale * torch.eye(5, dtype=torch.float64))
    assert torch.isfinite(found.rows).all() and torch.isfinite(found.columns).all()


def test_momentum_is_that_of_the_new_factors():
    """The gradients that backpropagation gives for the new factors are those that the old ones project to."""
    first, second = (x.double() for x in factors())
    G = torch.randn(12, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = truncate(first, second, 5, moment_of()[0])
    new = [found.first.clone().requires_grad_(), found.second.clone().requires_grad_()]
    (G * (new[1] @ new[0])).sum().backward()
    projected = found.gradients(second.T @ G, G @ first.T)
    torch.testing.assert_close(projected, (new[0].grad, new[1].grad))
    squares = found.squares(torch.ones(8, 20), torch.ones(12, 8))
    assert all((x > 0).all() for x in squares)


def test_a_layer_is_truncated_in_place():
    first, second = factors()
    layer = LowRankLinear(torch.nn.Linear(20, 8, bias=False), torch.nn.Linear(8, 12))
    layer.load_state_dict({"first.weight": first, "second.weight": second, "second.bias": torch.zeros(12)})
    x = torch.randn(1000, 20) @ torch.randn(20, 20) + 2
    expected = layer(x)  # with a graph that stays alive
    moment, mean = x.T.double() @ x.double() / len(x), x.double().mean(0)
    truncate_layer(layer, 6, moment, mean)
    assert layer.rank == 6 and layer.first.weight.shape == (6, 20) and layer.second.weight.shape == (12, 6)
    torch.testing.assert_close(layer(x).mean(0), expected.mean(0), rtol=1e-3, atol=1e-3)
    layer(x).sum().backward()  # gradients have the new shapes
    assert layer.first.weight.grad.shape == (6, 20)


def test_wrong_ranks_and_moments_are_refused():
    first, second = factors()
    with pytest.raises(ValueError, match="rank 9 is out of range for factors of rank 8: expected 1 to 8"):
        truncate(first, second, 9)
    with pytest.raises(ValueError, match="a layer with 20 inputs needs"):
        truncate(first, second, 2, torch.eye(3))
    with pytest.raises(ValueError, match="not finite"):
        truncate(first, second, 2, torch.full((20, 20), torch.nan))


# --- the schedule


@pytest.mark.parametrize("schedule", ["cubic", "linear"])
def test_ranks_fall_from_the_first_to_the_final_ones(schedule):
    start, final = {"a": 100, "b": 10}, {"a": 20, "b": 10}
    ranks = [ranks_after(i, 4, start, final, schedule) for i in range(5)]
    assert ranks[0] == start and ranks[-1] == final and {r["b"] for r in ranks} == {10}
    falls = [a["a"] - b["a"] for a, b in itertools.pairwise(ranks)]
    assert falls == ([20] * 4 if schedule == "linear" else [46, 24, 9, 1])


@pytest.mark.parametrize("share", [0.01, 0.3, 0.999])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_all_truncations_precede_the_last_step(steps, share):
    truncation = Truncation(progressive_model("ctc")[0], Progressive(share=share, stages=4))
    due = [truncation.due(step, steps) for step in range(steps)]
    assert due == sorted(due) and due[-1] == 4
    assert due[min(round(share * steps), steps - 1)] == 4 and (steps < 1000 or due[0] == 0)


# --- a training


def progressive_model(task, rank=4, start=12):
    """A model at ``start`` with the target ``rank``, what trains and the constraint set; and its constraint."""
    model, lang, _ = setup_of(task)
    constraint = low_rank(model, start)
    model.meta.target = dict.fromkeys(model.plan, rank)
    return model, lang, constraint


def progressive_trainer(task, folder, config, moments=None, plan=PLAN, **keys):
    model, lang, constraint = progressive_model(task, **keys)
    torch.manual_seed(5)
    objective = objective_of(task, config, lang).build(model)
    truncation = Truncation(model, plan, moments)
    return Trainer(
        model, objective, config, 1, folder, "key", drawn(task), constraint, truncation=truncation, runtime=RUNTIME
    )


def moments_of(task, path):
    """Moments of the inputs of the low-rank model's layers, as if a calibration had seen ``drawn_cuts``."""
    model, _, _ = progressive_model(task)
    batch = drawn(task).collate(list(drawn_cuts()), (1, 0))
    names = list(model.plan)
    densify(model.body)
    moments = Moments({name: model.body.get_submodule(name) for name in names})
    with moments.hooked(), torch.no_grad():
        if task == "seq2seq":
            states, _ = model.eval().states(batch["features"], batch["lengths"])
            model.decoder_logits(states, torch.zeros(len(states), 4, dtype=torch.int64))
        else:
            model.eval().states(batch["features"], batch["lengths"])
    moments.save(path)
    return path


@pytest.mark.parametrize("optimiser", ["adamw", "factor_sgd"])
@pytest.mark.parametrize("task", ["ctc", "seq2seq"])
def test_a_training_ends_with_the_final_ranks(task, optimiser, tmp_path):
    config = TrainConfig(**CONFIG, factor_sgd=FactorSgd(lr=0.01) if optimiser == "factor_sgd" else None)
    trainer, cuts = progressive_trainer(task, tmp_path, config), drawn_cuts()
    before = trainer.model.parameters_total()
    outcome = trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    model = trainer.model
    assert {layer.rank for layer in low_rank_layers(model.body).values()} == {4}
    assert model.plan == trainer.truncation.final
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["truncations_left"] for row in rows][-1] == 0 and rows[0]["truncations_left"] > 0
    assert rows[-1]["parameters"] == model.parameters_total() < rows[0]["parameters"] < before
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert outcome.metrics["parameters_trained"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    # The best epoch is one of the final model.
    assert outcome.metrics["dev_metric"] == min(row["dev_metric"] for row in rows if not row["truncations_left"])
    for p in trainer.stepper.parameters:
        for value in trainer.stepper.optimiser.state.get(p, {}).values():
            assert value.dim() == 0 or value.shape == p.shape
    for layer in low_rank_layers(model.body).values():
        assert all(p in trainer.stepper.optimiser.state for p in (layer.first.weight, layer.second.weight))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("stop", [4, 6, 7])
def test_a_run_that_was_interrupted_around_a_truncation_ends_with_the_same_bytes(stop, weighted, tmp_path):
    recipe = TrainConfig(**CONFIG, spec_augment=SpecAugment(), dropout=0.2, average=2)
    cuts, ends = drawn_cuts(), []
    moments = moments_of("ctc", tmp_path / "moments.safetensors") if weighted else None
    for name, until in (("whole", None), ("parts", stop)):
        folder = tmp_path / name
        if until is not None:
            trainer = progressive_trainer("ctc", folder, recipe, moments)
            interrupt(trainer, until)
            with pytest.raises(KeyboardInterrupt):
                trainer.run(cuts, cuts, folder / "metrics.jsonl")
            assert trainer.state.truncations > 0
        trainer = progressive_trainer("ctc", folder, recipe, moments)
        trainer.run(cuts, cuts, folder / "metrics.jsonl")
        ends.append((weights(trainer), (folder / "metrics.jsonl").read_text()))
    (one, rows), (other, same_rows) = ends
    assert rows == same_rows and one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_with_fewer_steps_than_planned_also_ends_with_the_final_ranks(tmp_path):
    """The number of steps of a long training is an estimate."""
    trainer, cuts = progressive_trainer("ctc", tmp_path, TrainConfig(**CONFIG)), drawn_cuts()
    trainer.truncation.due = lambda step, steps: 0
    trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    assert {layer.rank for layer in low_rank_layers(trainer.model.body).values()} == {4}


def test_patience_counts_only_evaluations_of_the_final_ranks(tmp_path):
    config, cuts = TrainConfig(**CONFIG | {"epochs": 6, "lr": 1e-9, "head_lr": 1e-9}, patience=1), drawn_cuts()
    trainer = progressive_trainer("ctc", tmp_path, config, plan=Progressive(share=0.5, stages=2))
    trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["truncations_left"] for row in rows if not row["truncations_left"]] == [0, 0]
    assert len(rows) > 3


def test_the_first_truncations_of_full_rank_lose_little_and_weighing_them_loses_less(tmp_path):
    """The output error of a weighted truncation is at most that of a plain one, on the inputs behind the moments."""
    moments, found = moments_of("ctc", tmp_path / "moments.safetensors"), {}
    for path in (None, moments):
        trainer = progressive_trainer("ctc", tmp_path, TrainConfig(**CONFIG), path)
        model, batch = trainer.model.eval(), drawn("ctc").collate(list(drawn_cuts()), (1, 0))
        with torch.no_grad():
            before, _ = model.states(batch["features"], batch["lengths"])
            trainer._truncate(3)
            after, _ = model.states(batch["features"], batch["lengths"])
        found[path] = float((before - after).square().mean())
    assert 0 < found[moments] < found[None]


# --- refusals


def test_a_model_without_a_target_is_refused(tmp_path):
    model, _, _ = progressive_model("ctc")
    target, model.meta.target = model.meta.target, None
    with pytest.raises(UserError, match="no ranks to reach; factorise it with `start`"):
        Truncation(model, PLAN)
    model.meta.target = dict.fromkeys(target, 13)
    with pytest.raises(UserError, match="has the rank 12 and shall get 13"):
        Truncation(model, PLAN)
    model.meta.target = target
    broken = tmp_path / "moments.safetensors"
    broken.write_bytes(b"no")
    with pytest.raises(UserError, match=r"progressive: .* is not a safetensors file"):
        Truncation(model, PLAN, broken)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("methods.full.progressive", {}, "methods.full.progressive: it truncates factors while they train, but it has"),
        ("methods.lowrank_lora.progressive", {}, "methods.lowrank_lora.progressive: .* adapt: lora does not train"),
        ("methods.lowrank.progressive", {"share": 1}, "methods.lowrank.progressive.share is 1; it must be below 1"),
        ("methods.lowrank.progressive", {"start": 0}, "methods.lowrank.progressive.start is 0; it must be above 0"),
        ("methods.lowrank.progressive", {"schedule": "square"}, "methods.lowrank.progressive.schedule"),
    ],
)
def test_a_config_that_cannot_truncate_is_refused(path, value, message):
    assert re.match(message, config_refused(edited(path, value)))


def test_eight_bit_optimisers_cannot_be_truncated():
    config = edited("methods.lowrank.progressive", {})
    config["methods"]["lowrank"]["training"] = {"optimiser": "adamw8bit"}
    assert config_refused(config).startswith("training.optimiser: methods.lowrank.progressive cannot truncate the")


def test_only_a_method_that_truncates_depends_on_it():
    config = edited("methods.aware.progressive", {"start": 0.8})
    slices, known = sliced(config), {"base": "wav2vec2", "task": "asr"}
    for method in ("lowrank", "aware"):
        left_out = closures.unused("train", slices, wildcards(**known, method=method))
        found = closure("lowrank_speech.stages.train", without=[f"lowrank_speech.{name}" for name in left_out])
        modules = {f"lowrank_speech.{name}" for name in ("training.truncation", "lowrank.truncate", "lowrank.moments")}
        assert modules & found == (modules if method == "aware" else set())
        assert ("progressive" in slices.train(wildcards(**known, method=method)).cfg) == (method == "aware")
    section = slices.config["methods"]["aware"]["factorise"]
    keys = [factorise_key(section), factorise_key(section, 0.8)]
    assert keys[0] == factorise_key(sliced(edited("seed", 1)).config["methods"]["aware"]["factorise"]) != keys[1]
    assert slices.factorise(wildcards(base="wav2vec2", factorisation=keys[1])).cfg["start"] == 0.8


# --- the stages


@pytest.mark.parametrize("task", ["asr", "lid"])
@pytest.mark.parametrize("family", ["wav2vec2", "whisper"])
def test_the_stages_reach_the_plan(family, task, world, tmp_path):
    recipe = {"layers": "ffn", "fraction": 0.25, "init": "activation"}
    cfg = {"seed": 1, "layers": "ffn", "utterances": 4, "batch_seconds": 2.0}
    moments = {"moments": tmp_path / "moments.safetensors"}
    done(
        calibrate,
        {key: value for key, value in cfg.items() if key != "batch_seconds"},
        tmp_path / "calibrate.json",
        model=world.base[family],
        cuts=world.features[family] / "train.jsonl.gz",
        out=moments["moments"],
    )
    started = tmp_path / "factorised"
    cfg = {"seed": 1, "factorise": recipe, "start": 1.0}
    paths = {"model": world.base[family], "out": started, **moments}
    metrics = done(factorise, cfg, tmp_path / "factorise.json", **paths)["metrics"]
    plain = tmp_path / "plain"
    expected = done(factorise, {"seed": 1, "factorise": recipe}, tmp_path / "plain.json", **paths | {"out": plain})[
        "metrics"
    ]
    assert metrics["parameters_after"] == expected["parameters_after"]
    assert all(row["rank"] == min(row["d_in"], row["d_out"]) > row["final_rank"] for row in metrics["layers"])
    final = {row["name"]: row["rank"] for row in expected["layers"]}
    assert load_model(started).meta.target == final and load_model(plain).meta.target is None
    paths = train_paths(world, family, tmp_path / "out", task, model=started)
    cfg = train_cfg(task, progressive={"stages": 2}, constraint={"mode": "floating"})
    record = done(train, cfg, tmp_path / "train.json", **paths, **moments)
    model = load_model(tmp_path / "out/model")
    assert model.plan == {name: final[name] for name in model.plan} and model.meta.target is None
    assert {n: layer.rank for n, layer in low_rank_layers(model.body).items()} == model.plan
    assert record["metrics"]["parameters_total"] == model.parameters_total() < model.dense_parameters()


def test_the_stages_name_what_does_not_go_together(world, tmp_path, capsys):
    started, manifest = tmp_path / "factorised", tmp_path / "m.json"
    cfg = {"seed": 1, "factorise": {"layers": "ffn", "fraction": 0.5}}
    paths = {"model": world.base["wav2vec2"], "out": started}
    refused(capsys, "progressive.start: 0.4 of the full ranks is", factorise, cfg | {"start": 0.4}, manifest, **paths)
    done(factorise, cfg | {"start": 1.0}, tmp_path / "f.json", **paths)
    paths = train_paths(world, "wav2vec2", tmp_path / "out")
    message = "has no ranks to reach; factorise it with `start`"
    refused(capsys, message, train, train_cfg(progressive={}), manifest, **paths)
    paths["model"] = started
    refused(capsys, "has larger ranks than planned", train, train_cfg(), manifest, **paths)
    cfg = train_cfg(adapt="lora", lora={"rank": 2}, progressive={})
    refused(capsys, "adapt: lora does not train the factors", train, cfg, manifest, **paths)
    cfg = train_cfg(progressive={}, training={"optimiser": "adamw8bit"})
    refused(capsys, "the state of adamw8bit cannot be truncated", train, cfg, manifest, **paths)
