"""The fast path of a LoRA layer matches peft, creates no wide float32 tensors, and falls back to peft if needed."""

import peft.tuners.lora.layer as peft_layer
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lowrank_speech.lowrank import adapter
from lowrank_speech.lowrank.lora import add_lora
from lowrank_speech.lowrank.lora_settings import LoraSettings
from test_lowrank_lora import Net, X

TARGETS = ("blocks.*.fc?",)


def net(**settings):
    torch.manual_seed(5)
    model, _ = add_lora(Net(), LoraSettings(rank=2, alpha=3.0, targets=TARGETS, **settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def outputs(model, x=X):
    """The output, and the gradients of adapters and input."""
    x = x.clone().requires_grad_()
    torch.manual_seed(6)
    y = model(x)
    y.float().square().sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return y.detach(), gradients | {"x": x.grad}


def by_peft(monkeypatch, model, **options):
    with monkeypatch.context() as patch:
        patch.setattr(adapter.LinearLora, "forward", peft_layer.Linear.forward)
        return outputs(model, **options)


@pytest.mark.parametrize("settings", [{}, {"rslora": True}, {"dropout": 0.4}, {"init": "pissa"}])
@pytest.mark.parametrize("shape", [(20, 12), (4, 5, 12)])
def test_output_and_gradients_are_pefts(settings, shape, monkeypatch):
    model = net(**settings).double()
    (y, found), (expected, gradients) = (
        outputs(model, X.double().view(shape)),
        by_peft(monkeypatch, model, x=X.double().view(shape)),
    )
    torch.testing.assert_close(y, expected)
    assert set(found) == set(gradients) and len(found) == 13
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient)


class Made(TorchDispatchMode):
    """Shape and dtype of all that is made."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view:
            self.found.append((tuple(out.shape), out.dtype))
        return out


@pytest.mark.parametrize("short", [True, False])
def test_under_autocast_results_agree_and_no_input_is_widened(short, monkeypatch):
    model = net()
    with torch.autocast("cpu", torch.bfloat16):
        y, found = outputs(model)
        expected, gradients = by_peft(monkeypatch, model)
        layer = model.base_model.model.blocks[0]["fc1"]
        if not short:
            monkeypatch.setattr(adapter.LinearLora, "forward", peft_layer.Linear.forward)
        with Made() as made:
            layer(X.bfloat16())
    torch.testing.assert_close(y, expected, atol=0.05, rtol=0.05)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=0.1 * gradient.abs().max().item(), rtol=0)
    wide = [dtype for shape, dtype in made.found if shape == (20, 24)]
    # The layer's own product and the sum, which short are two; peft's product and scaling come between.
    assert len(wide) == (2 if short else 4)
    assert ((X.shape, torch.float32) in made.found) is not short


def test_what_is_not_plain_goes_pefts_way(monkeypatch):
    model = net(dora=True)
    (y, found), (expected, gradients) = outputs(model), by_peft(monkeypatch, model)
    assert torch.equal(y, expected) and all(torch.equal(found[n], g) for n, g in gradients.items())
    model, plain = net(), Net()
    assert not torch.allclose(model(X), plain(X))
    with model.disable_adapter():
        torch.testing.assert_close(model(X), plain(X))
    adapted = model(X)
    model.merge_adapter()
    torch.testing.assert_close(model(X), adapted)
    model.unmerge_adapter()
    torch.testing.assert_close(model(X), adapted)
    layer = model.base_model.model.blocks[0]["fc1"]
    torch.testing.assert_close(layer(X[0]), layer(X)[0])
    model.add_adapter("other", model.peft_config["default"])
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(model(X), adapted)  # the other one is new: B = 0


def test_weights_in_bf16_without_autocast_go_pefts_way():
    model = net()
    layer = model.base_model.model.blocks[0]["fc1"]
    layer.base_layer.bfloat16()
    assert layer(X.bfloat16()).dtype == torch.bfloat16
