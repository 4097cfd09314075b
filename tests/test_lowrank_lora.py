"""LoRA: targets are checked, merging keeps outputs, frozen weights stay bit-identical, parameter counts are correct."""

import hashlib
import json

import pytest
import torch
from peft import PeftModel
from torch import nn

from lowrank_speech.lowrank.counts import count_parameters
from lowrank_speech.lowrank.factorise import factorise
from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.lowrank.lora import add_lora, frozen_digest, merge, save_adapter, trainable
from lowrank_speech.lowrank.lora_settings import LoraSettings
from lowrank_speech.lowrank.structure import low_rank_layers


class Net(nn.Module):
    def __init__(self, low_rank=False):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"fc1": nn.Linear(12, 24), "fc2": nn.Linear(24, 12)}) for _ in range(3)
        )
        self.head = nn.Linear(12, 5)
        if low_rank:
            factorise(self, {f"blocks.{i}.fc{n}": 6 for i in range(3) for n in (1, 2)})

    def forward(self, x):
        for block in self.blocks:
            x = x + block["fc2"](torch.relu(block["fc1"](x)))
        return self.head(x)


X = torch.randn(20, 12, generator=torch.Generator().manual_seed(1))
Y = torch.randn(20, 5, generator=torch.Generator().manual_seed(2))


def train(model, steps=5):
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        (model(X) - Y).square().mean().backward()
        optimiser.step()
    return model.eval()


def settings(**changes):
    return LoraSettings(**{"rank": 2, "targets": ("blocks.*.fc1", "blocks.*.fc2"), **changes})


VARIANTS = [
    {},
    {"rslora": True, "alpha": 3.0},
    {"dora": True},
    {"dropout": 0.2},
    {"init": "gaussian"},
    {"init": "orthogonal"},
    {"init": "pissa"},
    {"init": "pissa_niter_4"},
    {"init": "olora"},
]


@pytest.mark.parametrize("low_rank", [False, True], ids=["dense", "factorised"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_start_merge_frozen_bits_and_saved_adapter(low_rank, changes, tmp_path):
    net = Net(low_rank)
    expected = net(X)
    structure = [name for name, _ in net.named_modules()]
    torch.manual_seed(3)
    model, _ = add_lora(net, settings(**changes))
    torch.testing.assert_close(model.eval()(X), expected, atol=1e-4, rtol=1e-4)  # an adapter starts at nothing

    before = frozen_digest(model)
    model.train()
    train(model)
    assert frozen_digest(model) == before
    outputs = model(X)
    assert not torch.allclose(outputs, expected, atol=1e-3)

    save_adapter(model, tmp_path / "a")
    save_adapter(model, tmp_path / "b")
    names = ("adapter_model.safetensors", "adapter_config.json")
    hashes = [[hashlib.sha256((tmp_path / f / n).read_bytes()).digest() for n in names] for f in "ab"]
    assert hashes[0] == hashes[1]
    # peft itself loads it onto the base as it came, whatever the init did to the base
    loaded = PeftModel.from_pretrained(Net(low_rank), tmp_path / "a").eval()
    torch.testing.assert_close(loaded(X), outputs, atol=1e-4, rtol=1e-4)

    merged = merge(model)
    assert merged is net and [name for name, _ in merged.named_modules()] == structure
    assert bool(low_rank_layers(merged)) == low_rank
    torch.testing.assert_close(merged(X), outputs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.2}, {"init": "gaussian", "rslora": True}], ids=str)
def test_on_the_product_merging_adds_the_ranks(changes):
    net = Net(low_rank=True)
    expected, weights = net(X), {name: p.clone() for name, p in net.named_parameters()}
    torch.manual_seed(3)
    model, report = add_lora(net, settings(where="product", **changes))
    assert report["layers"] == 6 and report["trainable"] == 2 * 6 * (12 + 24)  # as on dense layers
    torch.testing.assert_close(model.eval()(X), expected)
    before = frozen_digest(model)
    model.train()
    train(model)
    assert frozen_digest(model) == before
    outputs = model(X)
    assert not torch.allclose(outputs, expected, atol=1e-3)
    with model.disable_adapter():
        torch.testing.assert_close(model(X), expected)

    model.merge_adapter()
    torch.testing.assert_close(model(X), outputs, atol=1e-5, rtol=1e-5)
    assert {layer.rank for layer in low_rank_layers(net).values()} == {6 + 2}
    model.unmerge_adapter()
    torch.testing.assert_close(model(X), outputs)

    merged = merge(model)
    torch.testing.assert_close(merged(X), outputs, atol=1e-5, rtol=1e-5)
    assert {layer.rank for layer in low_rank_layers(merged).values()} == {6 + 2}
    for name, layer in low_rank_layers(merged).items():
        assert torch.equal(layer.first.weight[:6], weights[f"{name}.first.weight"])
        assert torch.equal(layer.second.weight[:, :6], weights[f"{name}.second.weight"])
    state = merged.state_dict()
    assert set(state) == set(weights)
    assert state["blocks.0.fc1.first.weight"].shape == (8, 12)


def test_a_product_adapter_that_is_not_finite_is_not_merged():
    model, _ = add_lora(Net(low_rank=True), settings(where="product"))
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        merge(model)


def test_counts_by_formula():
    rank, per_block = 2, 2 * (12 + 24)
    model, report = add_lora(Net(), settings())
    assert report["layers"] == 6 and report["trainable"] == rank * per_block * 3
    assert report["targets"] == {"blocks.*.fc1": 3, "blocks.*.fc2": 3}
    assert report["total"] == sum(p.numel() for p in Net().parameters()) + report["trainable"]
    assert report["share"] == report["trainable"] / report["total"]
    assert trainable(model)["trainable"] == report["trainable"]
    assert all("lora_" in name for name in trainable(model)["names"])

    # factorised: the adapters stand on the factors, of rank 6 here
    inner = 2 * ((12 + 6) + (6 + 24))
    assert add_lora(Net(True), settings())[1]["trainable"] == rank * inner * 3
    first = add_lora(Net(True), settings(where="first"))[1]
    assert first["layers"] == 6 and first["trainable"] == rank * ((12 + 6) + (24 + 6)) * 3
    assert add_lora(Net(), settings(dora=True))[1]["trainable"] == rank * per_block * 3 + 3 * (24 + 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"where": "product", "dora": True}, "plain LoRA .*, not dora"),
        ({"where": "product", "init": "pissa"}, "plain LoRA .*, not init: pissa"),
        ({"targets": ("blocks.*.fc1", "blocks.*.fc3")}, r"'blocks\.\*\.fc3' matches no linear layer"),
        ({"targets": ()}, "empty"),
        ({"rank": 13}, "LoRA rank 13 is above the full rank of 'blocks.0.fc1'"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        add_lora(Net(), settings(**changes))


def test_settings_are_checked():
    for wrong, message in [
        ({"rank": 0}, "rank\n.*greater than or equal to 1"),
        ({"alpha": 0.0}, "alpha\n.*greater than 0"),
        ({"dropout": 1.0}, "dropout\n.*less than 1"),
        ({"init": "magic"}, "init\n.*is 'magic'"),
        ({"where": "both"}, "where\n.*'factors', 'first', 'second' or 'product'"),
        ({"init": "orthogonal", "rank": 3}, "even rank"),
        ({"init": "pissa", "dora": True}, "dora cannot be combined"),
    ]:
        with pytest.raises(ValueError, match=message):
            settings(**wrong)


def test_an_adapter_can_be_saved_for_a_model_that_holds_the_adapted_one_and_another_trained_module(tmp_path):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.tail = Net(), nn.Linear(5, 3)

        def forward(self, x):
            return self.tail(self.body(x))

    whole = Whole()
    base = {name: p.clone() for name, p in whole.state_dict().items()}
    model, _ = add_lora(whole.body, settings(init="gaussian"))
    optimiser = torch.optim.SGD([p for p in whole.parameters() if p.requires_grad], lr=0.1)
    (whole(X) - 1).square().mean().backward()
    optimiser.step()
    save_adapter(model, tmp_path, prefix="body.", trained={"tail": whole.tail}, base_class=Whole)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["tail"] and config["auto_mapping"]["base_model_class"] == "Whole"
    assert config["target_modules"][0] == "body.blocks.0.fc1" and config["base_model_name_or_path"] is None
    fresh = Whole()
    fresh.load_state_dict(base)
    loaded = PeftModel.from_pretrained(fresh, tmp_path)
    torch.testing.assert_close(loaded(X), whole(X), atol=1e-6, rtol=1e-5)
    assert (fresh.tail.original_module.weight - whole.tail.weight).abs().max() > 0


def test_dropout_of_the_model_is_not_that_of_the_adapters():
    from lowrank_speech.models.dropout import set_dropout

    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
    model, _ = add_lora(net, LoraSettings(rank=1, dropout=0.3, targets=("0",)))
    set_dropout(model, 0.0)
    assert net[1].p == 0.0 and net[0].lora_dropout["default"].p == 0.3


def test_names_that_end_alike_are_not_adapted_too():
    net = nn.ModuleDict({"fc1": nn.Linear(4, 4), "deep": nn.ModuleDict({"fc1": nn.Linear(4, 4)})})
    with pytest.raises(ValueError, match=r"did not adapt exactly.*'deep.fc1'"):
        add_lora(net, LoraSettings(rank=1, targets=("fc1",)))
    net = nn.ModuleDict({"fc1": nn.Linear(4, 4), "deep": nn.ModuleDict({"fc1": nn.Linear(4, 4)})})
    assert add_lora(net, LoraSettings(rank=1, targets=("deep.fc1",)))[1]["layers"] == 1


def test_digest_sees_a_single_bit_and_only_what_is_frozen():
    net = Net().requires_grad_(False)
    before = frozen_digest(net)
    net.head.bias.data[0] = torch.nextafter(net.head.bias.data[0], torch.tensor(9.0))
    assert frozen_digest(net) != before
    net.head.bias.requires_grad_(True)
    trained = frozen_digest(net)
    net.head.bias.data += 1
    assert frozen_digest(net) == trained


def test_config_of_the_saved_adapter_is_plain_json_without_task_type(tmp_path):
    model, _ = add_lora(Net(True), settings())
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["task_type"] is None and config["target_modules"] == sorted(config["target_modules"])


def test_counting_takes_tied_parameters_once():
    net = nn.ModuleDict({"a": nn.Embedding(5, 3), "b": nn.Linear(3, 5, bias=False), "c": nn.Linear(3, 2)})
    net["b"].weight = net["a"].weight
    net["c"].bias.requires_grad_(False)
    counts = count_parameters(net)
    assert counts["total"] == 15 + 8 and counts["trainable"] == 15 + 6
    assert counts["groups"] == {"a": {"total": 15, "trainable": 15}, "c": {"total": 8, "trainable": 6}}
    assert list(count_parameters(Net(), depth=2)["groups"])[:2] == ["blocks.0", "blocks.1"]


def test_merge_refuses_what_is_not_finite():
    model, _ = add_lora(Net(), settings())
    next(p for n, p in model.named_parameters() if "lora_B" in n).data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        merge(model)


def test_merging_a_factorised_model_leaves_factors():
    net = Net(True)
    merged = merge(add_lora(net, settings())[0])
    assert isinstance(merged.blocks[0]["fc1"], LowRankLinear)
    assert type(merged.blocks[0]["fc1"].first) is nn.Linear
