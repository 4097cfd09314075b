"""The embedding as factors: exact rows, the tie to the output projection, counts, save and load, generation."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from lowrank_speech.lowrank.embedding import LowRankEmbedding, TiedProjection, place_of
from lowrank_speech.lowrank.factorise import factorise
from lowrank_speech.lowrank.layer_factors import Statistics
from lowrank_speech.lowrank.plan import largest_rank, plan_ranks
from lowrank_speech.lowrank.structure import densify, factored_size, low_rank_layers, shape_of
from lowrank_speech.models.folder import load_model, save_model
from test_factorise_stage import whisper

TOKENS, D, EXACT = 40, 12, [0, 7, 8, 39]


def table(seed=0):
    weight = torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.ModuleDict({"words": nn.Embedding.from_pretrained(weight, freeze=False)})


@pytest.mark.parametrize("exact", [[], EXACT])
@pytest.mark.parametrize("rank", [3, D])
def test_rows_and_logits_are_those_of_the_table(rank, exact):
    net = table()
    dense = net["words"].weight.detach().clone()
    row = factorise(net, {"words": rank}, exact=exact)[0]
    low = net["words"]
    assert isinstance(low, LowRankEmbedding) and low.rank == rank and low.out_features == TOKENS
    weight = low.weight
    assert torch.equal(weight[exact], dense[exact])
    rest = [i for i in range(TOKENS) if i not in exact]
    U, S, Vh = torch.linalg.svd(dense[rest], full_matrices=False)
    torch.testing.assert_close(weight[rest], (U[:, :rank] * S[:rank]) @ Vh[:rank])
    ids, states = torch.tensor([[0, 1, 39], [8, 20, 7]]), torch.randn(2, 5, D, dtype=torch.float64)
    torch.testing.assert_close(low(ids), weight[ids])
    torch.testing.assert_close(low.project(states), states @ weight.T)
    size = sum(p.numel() for p in low.parameters())
    assert row["after"] == size == factored_size((TOKENS, D, len(exact)), rank) and row["exact"] == len(exact)
    torch.testing.assert_close(low.first.weight @ low.first.weight.T, torch.eye(rank, dtype=torch.float64))
    assert torch.equal(densify(net)["words"].weight, weight.detach())


def test_gradients_of_both_uses_reach_the_factors():
    net, ids = table(), torch.tensor([0, 3, 9])
    factorise(net, {"words": 4}, exact=EXACT)
    low, projection = net["words"], TiedProjection(net["words"])
    assert not list(projection.parameters())
    loss = projection(low(ids).tanh()).square().sum()
    found = torch.autograd.grad(loss, [low.first.weight, low.second.weight, low.exact])
    weight = low.weight.detach().requires_grad_()
    (expected,) = torch.autograd.grad((weight[ids].tanh() @ weight.T).square().sum(), [weight])
    rest = [i for i in range(TOKENS) if i not in EXACT]
    torch.testing.assert_close(found[2], expected[EXACT])
    torch.testing.assert_close(found[1], expected[rest] @ low.first.weight.T)
    torch.testing.assert_close(found[0], low.second.weight.T @ expected[rest])


def test_the_moment_of_the_states_decides_what_is_kept():
    x = torch.randn(500, D, dtype=torch.float64) * torch.logspace(0, -3, D, dtype=torch.float64)
    seen, errors = Statistics({"words": x.T @ x / len(x)}), {}
    for init in ("svd", "activation"):
        net = table()
        dense = net["words"].weight.detach().clone()
        factorise(net, {"words": 4}, init, seen, exact=EXACT)
        errors[init] = (net["words"].project(x) - x @ dense.T).square().mean()
    assert errors["activation"] < 0.2 * errors["svd"]


def test_plans_count_the_exact_rows():
    shape = shape_of(nn.Embedding(TOKENS, D), 4)
    assert shape == (TOKENS, D, 4) and largest_rank(shape) == (36 * D - 1) // (36 + D)
    plan = plan_ranks({"words": shape}, 1000, reduction=0.1)
    assert 100 <= plan.saving({"words": shape}) <= 100 + 48
    assert plan_ranks({"words": (TOKENS, D, 36)}, 1000, rank=4).left_dense


@pytest.mark.parametrize("ids", [[1, 1], [TOKENS], [-1]])
def test_exact_rows_that_are_not_tokens(ids):
    with pytest.raises(ValueError, match="expected different ids from 0 to 39"):
        place_of(TOKENS, ids)


def test_shapes_that_do_not_match():
    first, second = nn.Linear(D, 3, bias=False), nn.Linear(3, TOKENS - 1, bias=False)
    with pytest.raises(ValueError, match="40 tokens cannot have 2 exact rows and 39 rows"):
        LowRankEmbedding(first, second, nn.Parameter(torch.zeros(2, D)), torch.arange(TOKENS))
    with pytest.raises(ValueError, match="factors do not match"):
        LowRankEmbedding(first, second, nn.Parameter(torch.zeros(1, D + 1)), torch.arange(TOKENS))


def logits(model):
    states = torch.randn(1, 25, model.config.d_model, generator=torch.Generator().manual_seed(3))
    return model.decoder_logits(states, torch.tensor([[31, 32, 34, 35, 1, 2, 3]]))


def test_whisper_keeps_the_tie_through_saving_copies_and_densifying(tmp_path):
    model = whisper()
    name, exact = model.EMBEDDING, model.special_tokens()
    assert exact == list(range(30, 40))
    before = logits(model)
    factorise(model.body, {name: 30}, exact=exact)
    model.meta = dataclasses.replace(model.meta, plan={name: 30}, exact=len(exact))
    model.tie()
    assert set(low_rank_layers(model.body)) == {name} and model.projection() is None and not model.tied()
    torch.testing.assert_close(logits(model), before, atol=1e-5, rtol=1e-4)  # full rank: 30 rows are not exact
    save_model(model, tmp_path / "low")
    again = load_model(tmp_path / "low")
    assert again.plan == {name: 30} and again.meta.exact == len(exact)
    assert torch.equal(logits(again), logits(model))
    assert (
        again.parameters_total()
        == model.parameters_total()
        == 10 * 32 + 30 * (30 + 32) + sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n)
    )
    twin = copy.deepcopy(again).densified()
    assert twin.plan is None and twin.hf.proj_out.weight is twin.body.decoder.embed_tokens.weight
    torch.testing.assert_close(logits(twin), logits(again), atol=1e-5, rtol=1e-4)
    assert isinstance(again.hf.proj_out, TiedProjection)  # the copy is another model
    mel = torch.randn(1, 100, model.config.num_mel_bins)
    options = {"max_new_tokens": 6, "language": "<|en|>", "task": "transcribe"}
    found = [m.hf.generate(input_features=m.pad_mel(mel, torch.tensor([100])), **options) for m in (again, twin)]
    assert torch.equal(*found)
