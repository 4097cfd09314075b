"""Streamed moments equal direct ones, masks exclude padding, files are exact."""

import pytest
import torch
from torch import nn

from lowrank_speech.lowrank.moments import Moments, MomentsFile


class Net(nn.Module):
    """Two layers on one input, and one behind."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(torch.relu(self.q(x) + self.k(x)))


def layers(net):
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, n, 4, generator=generator) for n in (5, 2, 9)]


def test_streamed_equals_direct():
    net, moments = Net(), None
    moments = Moments(layers(net))
    with moments.hooked(), torch.no_grad():
        for x in batches():
            net(x)
    x = torch.cat([b.reshape(-1, 4) for b in batches()]).double()
    for name in ("q", "k"):
        torch.testing.assert_close(moments.second(name), x.T @ x / len(x))
        torch.testing.assert_close(moments.mean(name), x.mean(0))
        assert moments.count[name] == len(x) and moments.second(name).dtype == torch.float64
    h = torch.relu(net.q(x.float()) + net.k(x.float())).double().detach()
    torch.testing.assert_close(moments.second("out"), h.T @ h / len(h), atol=1e-6, rtol=1e-6)
    net(torch.ones(1, 1, 4))  # the hooks are gone
    assert moments.count["q"] == len(x)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_masked_frames_do_not_count(context):
    x = batches()[0]
    mask = torch.arange(5)[None, :] < torch.tensor([5, 2, 3])[:, None]
    poisoned = x.masked_fill(~mask[..., None], 1e6)
    whole, net = Moments(layers(Net())), Net()
    moments = Moments(layers(net))
    with moments.hooked(), moments.masked(mask), context():
        net(poisoned)
    kept = x[mask].double()
    torch.testing.assert_close(moments.second("q"), kept.T @ kept / 10)
    torch.testing.assert_close(moments.second("k"), kept.T @ kept / 10)
    assert moments.count == {"q": 10, "k": 10, "out": 10} and whole.count["q"] == 0


def test_masks_by_name():
    net, x = Net(), batches()[0]
    mask = torch.zeros(3, 5, dtype=torch.bool)
    mask[0] = True
    moments = Moments(layers(net))
    with moments.hooked(), moments.masked({"q": mask}), torch.no_grad():
        net(x)
    assert moments.count == {"q": 5, "k": 15, "out": 15}
    torch.testing.assert_close(moments.second("q"), (x[0].double().T @ x[0].double()) / 5)


def test_an_input_changed_in_place_is_another_input():
    class InPlace(Net):
        def forward(self, x):
            self.q(x)
            return self.k(x.mul_(2))

    net, x = InPlace(), torch.ones(2, 3, 4)
    moments = Moments({"q": net.q, "k": net.k})
    with moments.hooked(), torch.no_grad():
        net(x)
    torch.testing.assert_close(moments.second("k"), 4 * moments.second("q"))


def test_a_mask_that_does_not_fit_names_the_layer():
    net = Net()
    moments = Moments(layers(net))
    expected = pytest.raises(ValueError, match=r"mask has shape \(3, 4\), but the values at 'q' have \(3, 5, 4\)")
    with expected, moments.hooked(), moments.masked(torch.ones(3, 4, dtype=torch.bool)):
        net(batches()[0])


def test_files_are_exact_and_broken_ones_are_named(tmp_path):
    net = Net()
    moments = Moments(layers(net))
    with pytest.raises(ValueError, match="'q' saw no input frame"):
        moments.save(tmp_path / "m.safetensors")
    with moments.hooked(), torch.no_grad():
        net(batches()[0])
    moments.save(tmp_path / "m.safetensors")
    read = MomentsFile(tmp_path / "m.safetensors")
    assert sorted(read) == ["k", "out", "q"] and len(read) == 3
    for name in read:
        assert torch.equal(read[name], moments.second(name)) and torch.equal(read.mean(name), moments.mean(name))
        assert read.count(name) == 15
    assert "x" not in read and read.get("x") is None
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"bad\.safetensors is not a safetensors file"):
        MomentsFile(tmp_path / "bad.safetensors")
