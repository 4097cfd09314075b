"""The semi-orthogonal constraint: Kaldi's update converges, guards hold, draws resume, functions stay the same."""

import io

import pytest
import torch
from torch import nn

from lowrank_speech.lowrank import constraint as module
from lowrank_speech.lowrank.constraint import SemiOrthogonal, deviation, orthonormal_step
from lowrank_speech.lowrank.factorise import factorise


def matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def kaldi(M, scale):
    """ConstrainOrthonormalInternal of Kaldi, line by line, in NumPy."""
    M = M.double().numpy().copy()
    P = M @ M.T
    speed = 0.125
    if scale < 0:
        trace, trace_pp = P.trace(), (P * P).sum()
        if trace < 1e-15:
            return torch.from_numpy(M)
        scale = (trace_pp / trace) ** 0.5
        ratio = trace_pp * len(P) / trace**2
        if ratio > 1.02:
            speed *= 0.5
            if ratio > 1.1:
                speed *= 0.5
    P[range(len(P)), range(len(P))] -= scale**2
    return torch.from_numpy(M - 4 * (speed / scale**2) * P @ M)


@pytest.mark.parametrize("scale", [None, -1.0, 1.0, 2.5])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_the_step_is_kaldis(scale, noise):
    start = torch.linalg.qr(matrix(30, 8)).Q.T * (1.0 if scale is None or scale < 0 else scale)
    M = start + noise * matrix(8, 30, seed=1) * start.std()
    torch.testing.assert_close(
        orthonormal_step(M).double() if scale is None else orthonormal_step(M, scale).double(),
        kaldi(M, -1.0 if scale is None else scale),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("ratio", ["close", "middle", "far"])
def test_each_speed_is_kaldis(ratio):
    spread = {"close": 0.05, "middle": 0.2, "far": 0.9}[ratio]
    values = torch.linspace(1 - spread, 1 + spread, 12)
    M = (torch.linalg.qr(matrix(12, 12, seed=2)).Q * values) @ torch.linalg.qr(matrix(40, 12)).Q.T
    torch.testing.assert_close(orthonormal_step(M).double(), kaldi(M, -1.0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(50))
def test_it_contracts_from_random_starts_and_never_diverges(seed):
    generator = torch.Generator().manual_seed(seed)
    rows = int(torch.randint(1, 24, (), generator=generator))
    columns = int(torch.randint(rows, 64, (), generator=generator))
    spread = 10 ** float(torch.rand((), generator=generator) * 2 - 1)
    M = torch.randn(rows, columns, generator=generator) * spread
    if seed % 3 == 0:
        M = M * torch.logspace(0, -1, rows)[:, None]  # badly scaled rows
    first = deviation(M).item()
    for _ in range(400):
        M = orthonormal_step(M)
        assert torch.isfinite(M).all()
    assert deviation(M).item() < 1e-3 or deviation(M).item() < 0.05 * first


def test_quadratic_close_to_the_goal_and_still_at_it():
    Q = torch.linalg.qr(matrix(40, 10).double()).Q.T
    M = Q + 1e-3 * matrix(10, 40, seed=1)
    before = deviation(M).item()
    after = deviation(orthonormal_step(M)).item()
    assert after < before**2
    torch.testing.assert_close(orthonormal_step(3 * Q), 3 * Q)


def test_more_rows_than_columns_constrains_the_transpose():
    M = matrix(30, 7)
    assert torch.equal(orthonormal_step(M), orthonormal_step(M.T).T)
    assert deviation(M).item() == pytest.approx(deviation(M.T).item())


def test_fixed_scale_survives_where_kaldis_diverges():
    M = torch.linalg.qr(matrix(20, 6)).Q.T * torch.tensor([1.0, 1.0, 1.0, 2.0, 3.0, 8.0])[:, None]
    plain = M
    for _ in range(4):
        plain = kaldi(plain, 1.0)
    assert plain.abs().max() > 1e6
    rows = M / M.norm(dim=1, keepdim=True)
    for _ in range(60):
        M = orthonormal_step(M, 1.0)
        assert M.norm() < 12
    torch.testing.assert_close(M, rows, atol=1e-5, rtol=0)  # lengths are mended, no row has turned round


def test_nothing_happens_to_zero_and_bad_settings_are_refused():
    zero = torch.zeros(3, 5)
    for scale in (None, 1.0):
        assert torch.equal(orthonormal_step(zero, scale), zero)
    assert torch.equal(deviation(zero), torch.tensor(0.0))
    with pytest.raises(ValueError, match="scale"):
        orthonormal_step(zero, 0)
    net = model()
    for wrong in ({"mode": "soft"}, {"scale": -1.0}, {"probability": 0.0}, {"every": 0}):
        with pytest.raises(ValueError, match="constraint"):
            SemiOrthogonal(net, **wrong)
    with pytest.raises(ValueError, match="no factorised layer"):
        SemiOrthogonal(nn.Sequential(nn.Linear(2, 2)))


def test_batched_equals_one_by_one_and_bf16_is_computed_in_fp32():
    batch = torch.stack([matrix(5, 9, seed=s) * (1 + s) for s in range(4)])
    for scale in (None, 1.0):
        each = torch.stack([orthonormal_step(M, scale) for M in batch])
        torch.testing.assert_close(orthonormal_step(batch, scale), each)
    half = batch[0].bfloat16()
    found = orthonormal_step(half)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, orthonormal_step(half.float()).bfloat16())


@pytest.mark.parametrize("noise", [1e-5, 1e-4, 1e-3])
def test_the_bf16_product_near_the_goal_is_kaldis_to_the_same_digits(noise, monkeypatch):
    """Where a CPU lacks AMX the product is slow, not another one: the switch is forced either way."""
    M = torch.linalg.qr(matrix(300, 160)).Q.T + noise * matrix(160, 300, seed=1) / 17
    found = {}
    for amx in (False, True):
        monkeypatch.setattr(module, "AMX", amx)
        found[amx] = orthonormal_step(M).double()
        torch.testing.assert_close(found[amx], kaldi(M, -1.0), atol=1e-6, rtol=1e-5)
    assert not torch.equal(found[True], found[False])
    monkeypatch.setattr(module, "AMX", True)
    for _ in range(3):
        M = orthonormal_step(M)
    assert deviation(M.double()).item() < 2e-5


def test_bf16_products_are_for_small_changes_in_float32_only(monkeypatch):
    monkeypatch.setattr(module, "AMX", True)
    small, large = torch.full((2, 4, 4), 0.0009), torch.full((2, 4, 4), 0.0009)
    large[1] = 0.0011  # the norms are 0.0036 and 0.0044, over the root of 4 rows 0.0018 and 0.0022
    assert module._bf16_suffices(small) and not module._bf16_suffices(large)
    assert not module._bf16_suffices(small.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_layers_are_updated_in_place_as_the_step_says(dtype):
    net = disturb(model().to(dtype))
    expected = [orthonormal_step(layer.first.weight) for layer in net]
    kept = [layer.first.weight for layer in net]
    SemiOrthogonal(net, probability=1.0).step()
    for layer, weight, new in zip(net, kept, expected, strict=True):
        assert layer.first.weight is weight
        torch.testing.assert_close(weight.detach(), new)


def test_one_batch_as_on_a_gpu_gives_what_single_updates_give():
    net, same = (disturb(model()) for _ in range(2))
    weights = [layer.first.weight for layer in net[:8]]
    with torch.no_grad():
        SemiOrthogonal(net)._pull(weights)
        for layer in same[:8]:
            SemiOrthogonal(same)._pull([layer.first.weight])
    for layer, other in zip(net, same, strict=True):
        torch.testing.assert_close(layer.first.weight, other.first.weight)


def model(seed=0, layers=8):
    torch.manual_seed(seed)
    net = nn.Sequential(*[nn.Linear(10, 10) for _ in range(layers)], nn.Linear(10, 24), nn.Linear(24, 10))
    factorise(net, {str(i): 4 for i in range(layers + 2)})
    return net


def disturb(net, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in net:
            layer.first.weight += 0.1 * torch.randn(layer.first.weight.shape, generator=generator)
    return net


def test_all_start_at_zero_deviation_and_return_to_it():
    net = model()
    constraint = SemiOrthogonal(net, probability=1.0)
    assert max(constraint.deviation().values()) < 1e-5
    disturb(net)
    assert min(constraint.deviation().values()) > 0.1
    for _ in range(12):
        constraint.step()
    assert max(constraint.deviation().values()) < 1e-3
    assert list(constraint.deviation()) == [str(i) for i in range(10)]


def test_a_fourth_of_the_layers_is_drawn_and_the_draws_follow_the_seed():
    def touched(seed, steps=200):
        net = disturb(model())
        constraint = SemiOrthogonal(net, seed=seed)
        counts = torch.zeros(10)
        for _ in range(steps):
            before = [layer.first.weight.clone() for layer in disturb(net)]
            constraint.step()
            counts += torch.tensor([not torch.equal(b, m.first.weight) for b, m in zip(before, net, strict=True)])
        return counts

    counts = touched(1)
    assert torch.equal(counts, touched(1)) and not torch.equal(counts, touched(2))
    assert 0.18 < counts.mean().item() / 200 < 0.32


def test_every_k_steps_takes_all():
    net = disturb(model())
    constraint = SemiOrthogonal(net, every=3)
    start = [layer.first.weight.clone() for layer in net]
    for step in range(1, 4):
        constraint.step()
        same = [torch.equal(a, layer.first.weight) for a, layer in zip(start, net, strict=True)]
        assert all(same) if step < 3 else not any(same)


def test_resumed_draws_equal_uninterrupted_ones():
    whole, part = disturb(model()), disturb(model())
    a, b = SemiOrthogonal(whole, seed=5), SemiOrthogonal(part, seed=5)
    for _ in range(7):
        a.step()
    for _ in range(3):
        b.step()
    file = io.BytesIO()
    torch.save({"constraint": b.state_dict(), "model": part.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = model(seed=9)
    resumed.load_state_dict(saved["model"])
    c = SemiOrthogonal(resumed, seed=0)
    c.load_state_dict(saved["constraint"])
    for _ in range(4):
        c.step()
    for x, y in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_exact_restores_without_changing_the_function(scale):
    net = disturb(model().double())
    x = matrix(6, 10).double()
    expected = net(x)
    constraint = SemiOrthogonal(net, "exact", scale=scale, probability=1.0)
    constraint.step()
    torch.testing.assert_close(net(x), expected)
    assert max(constraint.deviation().values()) < 1e-10


def test_none_and_frozen_layers_are_left_alone():
    for mode in ("none", "floating", "exact"):
        net = disturb(model())
        if mode != "none":
            for layer in net:
                layer.first.weight.requires_grad_(False)
        before = [p.clone() for p in net.parameters()]
        SemiOrthogonal(net, mode, probability=1.0).step()
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_it_holds_the_deviation_down_during_training():
    def drift(mode):
        net = model(layers=2)
        constraint = SemiOrthogonal(net, mode, seed=1)
        optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
        x, y = matrix(64, 10), matrix(64, 10, seed=1)
        for _ in range(100):
            optimiser.zero_grad()
            (net(x) - y).square().mean().backward()
            optimiser.step()
            constraint.step()
        return max(constraint.deviation().values())

    free = drift("none")
    assert drift("floating") < 0.2 * free and drift("fixed") < 0.2 * free and drift("exact") < 0.2 * free
