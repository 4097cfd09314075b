"""Trials of ranks, sequential calibration, two-sided moments and exact rows, on small models of both families."""

# ruff: noqa: F811  (fixtures of another test file)

import pytest
import torch
from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.factorising import calibration
from lowrank_speech.factorising.calibration import calibrate
from lowrank_speech.factorising.depth import warnings_of
from lowrank_speech.factorising.model import exact_rows, factorise_model
from lowrank_speech.factorising.sequential import blocks, sequential_statistics
from lowrank_speech.factorising.trial import Divergence, Reference, Trial
from lowrank_speech.factorising.utterances import examples, held_out, seen_again
from lowrank_speech.features.store import load_cuts
from lowrank_speech.lowrank.factorise import factorise
from lowrank_speech.lowrank.layer_factors import Statistics
from lowrank_speech.lowrank.moments import MomentsFile, utterances_of
from lowrank_speech.lowrank.recipe import Factorise
from lowrank_speech.lowrank.select import shapes_of
from lowrank_speech.lowrank.structure import full_rank
from lowrank_speech.models.folder import load_model, save_model
from lowrank_speech.models.layers import dense_layers
from test_factorise_stage import cuts, folder  # noqa: F401

GROUPS = {"wav2vec2": "all", "whisper": ("all", "embedding")}


@pytest.fixture
def model(folder):
    """A model whose outputs are not nearly uniform, as those of untrained weights are."""
    loaded = load_model(folder)
    with torch.no_grad():
        for parameter in loaded.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    save_model(loaded, folder.parent / "scaled", copy_from=folder)
    (folder / "model.safetensors").write_bytes((folder.parent / "scaled" / "model.safetensors").read_bytes())
    return load_model(folder)


@pytest.fixture
def speech(model, folder, cuts):
    return list(examples(model, folder, list(load_cuts(cuts)), transcribe=True))


def moments(model, folder, cuts, path, gradients=False):
    layers = GROUPS[model.family]
    calibrate(model, folder, load_cuts(cuts), cuts, path, layers, 4, seed=1, gradients=gradients)
    return MomentsFile(path)


def test_full_rank_diverges_by_nothing_and_leaves_the_model_as_it_was(model, folder, cuts, speech, tmp_path):
    seen = Statistics.of(moments(model, folder, cuts, tmp_path / "m.safetensors"))
    layers = dense_layers(model, GROUPS[model.family])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reference = Reference(model, speech)
    exact = model.special_tokens()
    trial = Trial(reference, layers, "activation", seen, exact)
    full = {name: full_rank(shape) for name, shape in shapes_of(layers, len(exact)).items()}
    loss, agreement = trial.divergence(full)
    assert loss < 1e-6 and agreement == 1
    losses = []
    for name in layers:  # one layer alone, as the factorised model has it
        found = trial.divergence({name: 3})
        low = load_model(folder)
        factorise(low.body, {name: 3}, "activation", seen, exact=exact)
        if isinstance(layers[name], nn.Embedding):
            low.meta.exact = len(exact)
        low.tie()
        expected = reference.divergence(low)
        assert found.loss == pytest.approx(expected.loss, rel=0.02, abs=5e-8)
        losses.append(found.loss)
        assert found.agreement == expected.agreement
    # Layers of a tiny model may matter so little that only rounding is left of them.
    assert max(losses) > 1e-6
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_divergence_is_the_mean_kullback_leibler_divergence(model, folder, speech):
    reference, other = Reference(model, speech), load_model(folder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    total = number = same = 0
    with torch.no_grad():
        for e in speech:
            p, q = (m.outputs(e.features, e.lengths, e.tokens).log_softmax(-1) for m in (model, other))
            total += float((p.exp() * (p - q)).sum())
            same += float((p.argmax(-1) == q.argmax(-1)).sum())
            number += len(p)
    assert reference.divergence(other) == pytest.approx((total / number, same / number), rel=1e-5)


def test_gradients_are_the_fisher_information_of_the_output(model, folder, cuts, tmp_path):
    file = moments(model, folder, cuts, tmp_path / "m.safetensors", gradients=True)
    assert set(file.outputs) == set(file)
    assert not any(p.grad is not None for p in model.parameters()) and any(p.requires_grad for p in model.parameters())
    if model.family == "whisper":  # the gradient of the cross-entropy is softmax - label, so it sums to 0
        assert file.outputs[model.EMBEDDING].shape == (40,) and file.read(f"{model.EMBEDDING}.tokens").sum() > 0
    again = moments(model, folder, cuts, tmp_path / "n.safetensors", gradients=True)
    for name in file:
        assert torch.equal(file.outputs[name], again.outputs[name])
        G = file.outputs[name]
        if G.dim() == 2:
            torch.testing.assert_close(G, G.T)
            assert torch.linalg.eigvalsh(G)[0] > -1e-9 * G.diagonal().sum()


def test_sequential_calibration_sees_the_factorised_blocks(model, folder, cuts, speech, tmp_path):
    layers = dense_layers(model, "ffn")
    plan = dict.fromkeys(layers, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = sequential_statistics(model, layers, plan, "activation", speech, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    calibrate(model, folder, load_cuts(cuts), cuts, tmp_path / "m.safetensors", "ffn", 4, seed=1)
    dense = MomentsFile(tmp_path / "m.safetensors")
    names, groups = list(layers), list(blocks(layers))
    assert [name for block in groups for name in block] == names and all(len(block) == 2 for block in groups)
    for name in groups[0]:
        torch.testing.assert_close(seen.moments[name], dense[name], rtol=1e-4, atol=1e-6)
    # What a layer of the last block saw is what it reads behind the factorised blocks.
    low = load_model(folder)
    first = {name: 4 for block in groups[:-1] for name in block}
    factorise(low.body, first, "activation", seen)
    last, total, count = groups[-1][0], 0, 0

    def hook(_module, arguments):
        nonlocal total, count
        x = arguments[0][0].double()  # the last block is in the decoder, or sees only valid frames
        total, count = total + x.T @ x, count + len(x)

    handle = low.body.get_submodule(last).register_forward_pre_hook(hook)
    with torch.no_grad():
        for example in speech:
            low.outputs(example.features, example.lengths, example.tokens)
    handle.remove()
    torch.testing.assert_close(seen.moments[last], total / count, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(seen.moments[last], dense[last], rtol=1e-3)


def test_allocation_is_not_worse_than_uniform_ranks(model, folder, cuts, speech, tmp_path):
    moments(model, folder, cuts, tmp_path / "m.safetensors")
    recipe = {"layers": GROUPS[model.family], "keep": 0.4, "init": "activation", "exact_rows": 3}
    run = {}
    for allocate in (False, True):
        out = tmp_path / str(allocate)
        wish = Factorise(**recipe, allocate=allocate)
        run[allocate] = factorise_model(model, wish, out, folder, tmp_path / "m.safetensors", 1, speech)
        low = load_model(out)
        assert low.parameters_total() == run[allocate]["parameters_after"]
        assert Reference(model, speech).divergence(low) == Divergence(**run[allocate]["divergence"])
    assert run[True]["parameters_after"] <= run[False]["parameters_after"]
    assert run[True]["divergence"]["loss"] <= run[False]["divergence"]["loss"] * (1 + 1e-3)
    report = run[True]["allocation"]
    assert report["uniform"]["loss"] == pytest.approx(run[False]["divergence"]["loss"], rel=1e-3)
    assert min(report["uniform"]["loss"], report["allocated"]["loss"]) == report[report["kept"]]["loss"]


def test_two_sided_factors_follow_the_gradients(model, folder, cuts, speech, tmp_path):
    moments(model, folder, cuts, tmp_path / "m.safetensors", gradients=True)
    found = {}
    for init in ("activation", "two-sided"):
        wish = Factorise(layers=GROUPS[model.family], keep=0.5, init=init, exact_rows=0)
        out = tmp_path / init
        found[init] = factorise_model(model, wish, out, folder, tmp_path / "m.safetensors", 1, speech)
        low = load_model(out)
        for name in low.plan:
            first = low.body.get_submodule(name).first.weight
            torch.testing.assert_close(first @ first.T, torch.eye(len(first)), atol=1e-4, rtol=0)
    assert found["two-sided"]["layers"] != found["activation"]["layers"]


def test_what_is_missing_is_said(model, folder, cuts, speech, tmp_path):
    file = tmp_path / "m.safetensors"
    calibrate(model, folder, load_cuts(cuts), cuts, file, "ffn", 2, seed=1)
    for wish, message in [
        ({"layers": "all", "init": "activation"}, "which calibration did not see; calibrate on the same layers"),
        ({"init": "two-sided"}, "calibrate with gradients"),
    ]:
        with pytest.raises(ValueError, match=message):
            factorise_model(model, Factorise(rank=3, **wish), tmp_path / "x", folder, file)
    with pytest.raises(UserError, match="allocate needs calibration speech"):
        factorise_model(model, Factorise(rank=3, allocate=True), tmp_path / "x", folder, file)
    with pytest.raises(UserError, match="embedding"):
        layers = dense_layers(model, "embedding")
        assert model.family == "whisper" and list(layers) == [model.EMBEDDING]
        model.config.tie_word_embeddings = False
        dense_layers(model, "embedding")
    assert not (tmp_path / "x").exists()


def test_a_layer_whose_gradients_are_not_finite_names_the_utterance(model, folder, cuts, tmp_path):
    last = next(reversed(dense_layers(model, "ffn").values()))
    last.register_forward_hook(lambda module, arguments, output: output * float("inf"))
    with pytest.raises(UserError, match=r"calibrate: \S+: .*not finite"):
        moments(model, folder, cuts, tmp_path / "m.safetensors", gradients=True)
    assert not (tmp_path / "m.safetensors").exists()


def test_exact_rows_are_special_then_frequent_then_first(model, folder, cuts, tmp_path):
    if model.family != "whisper":
        pytest.skip("only Whisper has an embedding")
    file = moments(model, folder, cuts, tmp_path / "m.safetensors")
    special, counts = model.special_tokens(), file.read(f"{model.EMBEDDING}.tokens").tolist()
    assert exact_rows(model, 0, file) == special
    assert exact_rows(model, 2, None) == [0, 1, *special]
    found = set(exact_rows(model, 3, file)) - set(special)
    others = sorted((i for i in range(40) if i not in special), key=lambda i: (-counts[i], i))
    assert found == set(others[:3])


def test_trial_utterances_are_not_those_of_the_calibration(model, folder, cuts, caplog, tmp_path):
    where = (model, folder, load_cuts(cuts), cuts)
    number = len(list(load_cuts(cuts)))
    ids = calibrate(*where, tmp_path / "m.safetensors", "ffn", number - 1, seed=1)["utterances"]
    assert utterances_of(tmp_path / "m.safetensors") == number - 1 and utterances_of(None) == 0
    assert [example.cut.id for example in seen_again(*where, number - 1, 1)] == ids
    caplog.set_level("WARNING", "lowrank_speech")
    found = [example.cut.id for example in held_out(*where, 1, number - 1, 1)]
    assert len(found) == 1 and not set(found) & set(ids) and "losses look too small" not in caplog.text
    more = held_out(*where, 2, number - 1, 1)
    assert [example.seen for example in more] == [False, True] == [example.cut.id in ids for example in more]
    assert "losses look too small" in caplog.text
    recipe = Factorise(layers="ffn", reduction=0.2)
    for trial, seen in ((more[:1], 0), (more, 1)):
        made = factorise_model(model, recipe, tmp_path / f"low{seen}", folder, trial=trial)
        assert made["divergence"].get("seen", 0) == seen
        said = any("1 of the 2 utterances that measured the loss had also been" in line for line in made["warnings"])
        assert said is bool(seen)


def test_calibration_takes_as_many_utterances_as_the_layers_need(model, folder, cuts, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(calibration, "LEAST", 1)
    out, where, used = tmp_path / "m.safetensors", (model, folder, load_cuts(cuts), cuts), {}
    for enough in (0, 1000):
        monkeypatch.setattr(calibration, "ENOUGH", enough)
        used[enough] = len(calibrate(*where, out, "ffn", None, seed=1)["utterances"])
    assert used == {0: 1, 1000: len(list(load_cuts(cuts)))}


def test_a_plan_that_keeps_little_is_said():
    row = {"name": "a", "d_out": 100, "d_in": 100, "rank": 50, "energy": 0.9, "output_error": 0.2}
    assert warnings_of([row], Divergence(0.01, 0.99)) == [] == warnings_of([row], None)
    bad = [row | {"energy": 0.4}, row | {"rank": 4, "name": "b"}, row | {"output_error": 1.2, "name": "c"}]
    lines = warnings_of(bad, Divergence(0.7, 0.5))
    assert len(lines) == 4 and all("needs fine-tuning" in line for line in lines)
    assert "expected loss 0.700 nats" in lines[-1] and "agrees in 50.0%" in lines[-1]
    assert "states differ from the dense model's by 20.0%" in warnings_of([row], Divergence(0.2, None))[0]
