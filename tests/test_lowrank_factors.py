"""Factors: errors equal the truncated part; the activation-aware start is optimal, first factors semi-orthogonal."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lowrank_speech.lowrank.factorise import factorise, spectra, write_factorised
from lowrank_speech.lowrank.factors import (
    activation_factors,
    bias_shift,
    random_factors,
    spectrum,
    svd_factors,
    weighted_norm,
)
from lowrank_speech.lowrank.layer_factors import Statistics
from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.lowrank.orthonormal import gram, orthonormal_first
from lowrank_speech.lowrank.structure import Plan, apply_plan, densify, low_rank_layers

SHAPES = [(12, 30), (30, 12), (16, 16), (1, 7), (7, 1)]


def matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment(d, seed=0, frames=None):
    """Second moment of correlated inputs; with fewer ``frames`` than d it lacks full rank."""
    x = matrix(frames or 3 * d, d, seed=seed + 100) * torch.logspace(0, -3, d, dtype=torch.float64)
    x = x @ torch.linalg.qr(matrix(d, d, seed=seed + 200)).Q
    return x.T @ x / len(x)


def assert_semi_orthogonal(first, atol=1e-12):
    torch.testing.assert_close(first @ first.T, torch.eye(len(first), dtype=first.dtype), atol=atol, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_error_is_the_discarded_spectrum(shape):
    W = matrix(*shape)
    expected = torch.linalg.svdvals(W)
    for rank in range(1, min(shape) + 1):
        first, second, values = svd_factors(W, rank)
        torch.testing.assert_close(values, expected, atol=1e-7, rtol=1e-9)
        torch.testing.assert_close(spectrum(W), expected, atol=1e-7, rtol=1e-9)
        error = weighted_norm(W - second @ first)
        assert error == pytest.approx(expected[rank:].square().sum().sqrt().item(), abs=1e-9)
        assert_semi_orthogonal(first)
        # second = U S: its columns are orthogonal, of falling lengths
        gram = second.T @ second
        torch.testing.assert_close(gram, expected[:rank].square().diag(), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-6])
def test_weights_without_full_rank_give_orthonormal_rows_all_the_same(shape, scale):
    W = matrix(shape[0], 3) @ matrix(3, shape[1], seed=1) + scale * matrix(*shape, seed=2)
    for rank in (2, 3, 5, 12):
        first, second, _ = svd_factors(W, rank)
        assert_semi_orthogonal(first)
        expected = torch.linalg.svdvals(W)[rank:].square().sum().sqrt().item()
        assert weighted_norm(W - second @ first) == pytest.approx(expected, abs=1e-8)
    first, second, _ = svd_factors(torch.zeros(shape), 4)
    assert_semi_orthogonal(first)
    assert not second.any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("frames", [None, 4])
def test_activation_aware_is_never_worse_than_svd_on_the_calibration(shape, frames):
    for seed in range(5):
        W, C = matrix(*shape, seed=seed), moment(shape[1], seed, frames)
        for rank in range(1, min(shape) + 1):
            plain, aware = svd_factors(W, rank), activation_factors(W, C, rank)
            assert_semi_orthogonal(aware.first)
            errors = [weighted_norm(W - f.second @ f.first, C) for f in (plain, aware)]
            assert errors[1] <= errors[0] * (1 + 1e-9) + 1e-5 * weighted_norm(W, C)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_activation_aware_error_is_the_discarded_spectrum_and_the_optimum(shape):
    W, C = matrix(*shape), moment(shape[1])
    root = torch.linalg.cholesky(C + 1e-11 * C.diagonal().mean() * torch.eye(shape[1], dtype=C.dtype))
    values = torch.linalg.svdvals(W @ root)  # Eckart-Young: nothing of this rank has less error
    for rank in range(1, 6):
        first, second, found = activation_factors(W, C, rank)
        torch.testing.assert_close(found, values, atol=1e-7, rtol=1e-7)
        torch.testing.assert_close(spectrum(W, C), values, atol=1e-7, rtol=1e-7)
        optimum = values[rank:].square().sum().sqrt().item()
        assert weighted_norm(W - second @ first, C) == pytest.approx(optimum, rel=1e-4)


def test_activation_error_is_the_mean_square_of_the_output_error():
    W, x = matrix(5, 8), matrix(40, 8, seed=1)
    first, second, _ = activation_factors(W, x.T @ x / 40, 3)
    direct = (x @ (W - second @ first).T).square().sum(1).mean().sqrt().item()
    assert weighted_norm(W - second @ first, x.T @ x / 40) == pytest.approx(direct, rel=1e-9)


def inputs(d, frames=60, seed=0, offset=2.0):
    """Correlated inputs (frames, d) whose mean is not zero."""
    return matrix(frames, d, seed=seed) @ matrix(d, d, seed=seed + 1) + offset * matrix(1, d, seed=seed + 2)


def lost(x, W, b, first, second, bias):
    """Mean over the frames of ||W x + b - (N M x + b')||²."""
    return (x @ (W - second @ first).T + b - bias).square().sum(1).mean().item()


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
@pytest.mark.parametrize("offset", [0.0, 2.0, 30.0])
def test_with_a_free_bias_the_covariance_gives_the_optimum(shape, offset):
    W, b, x = matrix(*shape, seed=7), matrix(shape[0], seed=8), inputs(shape[1], offset=offset)
    C, m = x.T @ x / len(x), x.mean(0)
    # Reduced-rank regression with an intercept: what is cut of the centred outputs is what must be lost.
    values = torch.linalg.svdvals((x - m) @ W.T).square() / len(x)
    for rank in (1, 2, 4):
        centred, plain = activation_factors(W, C, rank, m), activation_factors(W, C, rank)
        error = lost(x, W, b, centred.first, centred.second, b + bias_shift(W, centred, m))
        assert error == pytest.approx(values[rank:].sum().item(), rel=1e-5)
        assert weighted_norm(W - centred.second @ centred.first, C, m) ** 2 == pytest.approx(error, rel=1e-5)
        torch.testing.assert_close(centred.spectrum[:rank].square(), values[:rank], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(spectrum(W, C, m), centred.spectrum)
        shifted = lost(x, W, b, plain.first, plain.second, b + bias_shift(W, plain, m))
        assert error <= shifted * (1 + 1e-6) <= lost(x, W, b, plain.first, plain.second, b) * (1 + 2e-6)
        if offset == 2.0:  # the uncentred factors spend rank on the mean, which the bias has for nothing
            assert error < 0.99 * shifted


def test_constant_inputs_go_into_the_bias_and_the_factors_stay_finite():
    W, m = matrix(5, 7), matrix(7, seed=1)
    found = activation_factors(W, torch.outer(m, m), 2, m)
    assert_semi_orthogonal(found.first)
    torch.testing.assert_close(W @ m, found.second @ (found.first @ m) + bias_shift(W, found, m))
    with pytest.raises(ValueError, match=r"mean of the inputs has shape \(6,\); a layer with 7 inputs needs \(7,\)"):
        activation_factors(W, torch.outer(m, m), 2, m[:6])


@pytest.mark.parametrize("n", [1, 127, 128, 300])
def test_gram_is_the_product(n):
    X = matrix(2, n, 40)
    torch.testing.assert_close(gram(X), X @ X.mT)
    assert torch.equal(gram(X[0].T), gram(X[0].T).T)


@pytest.mark.parametrize("rank", [4, 8])
def test_identity_moment_gives_the_svd(rank):
    W = matrix(12, 8)
    a, b = svd_factors(W, rank), activation_factors(W, torch.eye(8), rank)
    torch.testing.assert_close(a.second @ a.first, b.second @ b.first, atol=1e-7, rtol=1e-7)


def test_random_factors_have_the_scale_of_the_weight_and_follow_the_seed():
    W = matrix(20, 30)
    draws = [random_factors(W, 5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert_semi_orthogonal(draws[0].first)
    assert weighted_norm(draws[0].second @ draws[0].first) == pytest.approx(weighted_norm(W))
    assert torch.equal(draws[0].second, draws[1].second) and not torch.equal(draws[0].second, draws[2].second)


def test_orthonormal_first_keeps_the_product_and_hardly_moves_what_is_nearly_orthonormal():
    first, second = matrix(5, 9), matrix(7, 5, seed=1)
    Q, N = orthonormal_first(first, second)
    assert_semi_orthogonal(Q)
    torch.testing.assert_close(N @ Q, second @ first)
    near = Q + 1e-4 * matrix(5, 9, seed=2)
    assert (orthonormal_first(near, second)[0] - near).norm() < 1e-2
    deficient = torch.cat([first[:4], first[:1]])
    Q, N = orthonormal_first(deficient, second)
    assert_semi_orthogonal(Q)
    torch.testing.assert_close(N @ Q, second @ deficient)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_are_refused_with_the_layers_name(bad):
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.data[0, 0] = bad
    with pytest.raises(ValueError, match=r"'0'.*not finite"):
        factorise(model, {"0": 2})
    with pytest.raises(ValueError, match="no usable input"):
        activation_factors(torch.ones(3, 4), torch.zeros(4, 4), 2)
    with pytest.raises(ValueError, match=r"\(3, 3\); a layer with 4 inputs"):
        activation_factors(torch.ones(3, 4), torch.eye(3), 2)


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 8, bias=False), nn.Linear(8, 3))


@pytest.mark.parametrize("init", ["svd", "activation"])
def test_full_rank_reproduces_the_outputs(init):
    net, x = model().double(), matrix(10, 8)
    expected = net(x)
    rows = factorise(net, {"0": 8, "2": 8, "3": 3}, init, Statistics({"0": moment(8), "2": moment(20), "3": moment(8)}))
    torch.testing.assert_close(net(x), expected)
    assert all(row["weight_error"] < 1e-9 and row["energy"] == pytest.approx(1) for row in rows)
    torch.testing.assert_close(densify(net)(x), expected)
    assert not low_rank_layers(net)


def test_report_rows_are_what_was_done():
    net = model()
    weight = net[0].weight.detach().double()
    size = sum(p.numel() for p in net.parameters())
    rows = factorise(net, Plan({"0": 3, "2": 2}), "svd", Statistics({"0": moment(8)}))
    assert [row["name"] for row in rows] == ["0", "2"] and [row["rank"] for row in rows] == [3, 2]
    assert rows[0]["before"] == 8 * 20 + 20 and rows[0]["after"] == 3 * (8 + 20) + 20
    assert rows[1]["before"] == 8 * 20 and rows[1]["after"] == 2 * (8 + 20)
    saved = sum(row["before"] - row["after"] for row in rows)
    assert sum(p.numel() for p in net.parameters()) == size - saved
    values = torch.linalg.svdvals(weight).square()
    assert rows[0]["energy"] == pytest.approx((values[:3].sum() / values.sum()).item())
    assert rows[0]["weight_error"] ** 2 == pytest.approx(1 - rows[0]["energy"])
    error = weight - net[0].second.weight.double() @ net[0].first.weight.double()
    expected = weighted_norm(error, moment(8)) / weighted_norm(weight, moment(8))
    assert rows[0]["output_error"] == pytest.approx(expected, rel=1e-4) and rows[1]["output_error"] is None


def calibrated(net, seed=0):
    """Second moments and means of the inputs of the net's layers, and the inputs of the first."""
    x = inputs(8, seed=seed).float()
    seen, moments, means = x, {}, {}
    for name, layer in net.named_children():
        if isinstance(layer, nn.Linear):
            h = seen.detach().double()
            moments[name], means[name] = h.T @ h / len(h), h.mean(0)
        seen = layer(seen)
    return moments, means, x


@pytest.mark.parametrize("seed", range(6))
def test_the_activation_aware_start_never_loses_more_than_the_svd(seed):
    plan, found = {"0": 2, "2": 3, "3": 2}, {}
    for init in ("svd", "activation"):
        net = model(seed)
        moments, means, x = calibrated(net, seed)
        dense = net[0].weight.detach().double(), net[0].bias.detach().double()
        rows = factorise(net, plan, init, Statistics(moments, means))
        low = net[0]
        direct = lost(
            x.double(), *dense, low.first.weight.double(), low.second.weight.double(), low.second.bias.double()
        )
        power = (x.double() @ dense[0].T).square().sum(1).mean().item()
        assert rows[0]["output_error"] ** 2 == pytest.approx(direct / power, rel=1e-4, abs=1e-10)
        found[init] = {row["name"]: row["output_error"] for row in rows}
    for name, error in found["svd"].items():
        assert found["activation"][name] <= error * (1 + 1e-6)


def test_only_layers_with_a_bias_are_centred():
    results = {}
    for with_means in (False, True):
        net = model()
        moments, means, _ = calibrated(net)
        bias = net[0].bias.clone()
        factorise(net, {"0": 2, "2": 3}, "activation", Statistics(moments, means if with_means else {}))
        results[with_means] = net
        assert torch.equal(net[0].second.bias, bias) is not with_means
    a, b = results.values()
    assert torch.equal(a[2].second.weight, b[2].second.weight) and a[2].second.bias is None
    assert not torch.equal(a[0].first.weight, b[0].first.weight)
    net = model()
    moments, means, _ = calibrated(net)
    layers = {name: net.get_submodule(name) for name in ("0", "2")}
    values = spectra(layers, "activation", Statistics(moments, means))
    torch.testing.assert_close(values["0"], spectrum(net[0].weight, moments["0"], means["0"]))
    torch.testing.assert_close(values["2"], spectrum(net[2].weight, moments["2"]))


@pytest.mark.parametrize("init", ["svd", "activation", "random"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_written_factors_are_those_made_in_memory_bit_for_bit(tmp_path, init, dtype):
    plan = {"2": 4, "0": 3}
    net, same = model().to(dtype), model().to(dtype)
    moments, means, _ = calibrated(model())
    options = {"init": init, "seen": Statistics(moments, means), "seed": 5}
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rows = write_factorised(
        tmp_path / "low.safetensors", net, plan, **options, prefix="a.", others={"b": torch.ones(2)}
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert rows == factorise(same, plan, **options)
    expected = {f"a.{name}": tensor for name, tensor in same.state_dict().items()} | {"b": torch.ones(2)}
    written = load_file(tmp_path / "low.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())


def test_the_reported_spectrum_is_thinned_evenly_and_ends_with_the_last_value():
    net = nn.Sequential(nn.Linear(150, 200), nn.Linear(200, 10))
    values = {name: torch.linalg.svdvals(net.get_submodule(name).weight.detach().double()) for name in "01"}
    rows = factorise(net, {"0": 20, "1": 3})
    assert [len(row["spectrum"]) for row in rows] == [64, 10]
    for row in rows:
        found = torch.tensor(row["spectrum"], dtype=torch.float64)
        exact = values[row["name"]] / values[row["name"]][0]
        at = torch.linspace(0, len(exact) - 1, len(found), dtype=torch.float64).round().long()
        torch.testing.assert_close(found, exact[at], rtol=1e-3, atol=1e-9)
    assert factorise(model(), {"0": 3}, "random")[0]["spectrum"] == []


def test_random_start_and_its_seed():
    rows = [factorise(model(), {"0": 3}, "random", seed=s)[0] for s in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]
    assert rows[0]["energy"] is None and rows[0]["weight_error"] > 1


def test_structure_alone_then_strict_load_is_exact_and_draws_nothing():
    net, target = model(1), model(2)
    factorise(net, {"0": 3, "2": 2})
    before = torch.get_rng_state()
    apply_plan(target, {"0": 3, "2": 2})
    assert torch.equal(before, torch.get_rng_state())
    target.load_state_dict(net.state_dict(), strict=True)
    x = torch.randn(5, 8)
    assert torch.equal(net(x), target(x))
    with torch.device("meta"):
        skeleton = model()
        apply_plan(skeleton, {"0": 3})
    assert skeleton[0].first.weight.is_meta and skeleton[0].first.weight.shape == (3, 8)


def test_low_rank_linear_looks_like_a_linear_and_keeps_dtype_grad_and_mode():
    dense = nn.Linear(8, 5).to(torch.bfloat16).requires_grad_(False).eval()
    low = LowRankLinear.empty(dense, 2)
    assert (low.in_features, low.out_features, low.rank) == (8, 5, 2) and "rank=2" in repr(low)
    assert low.weight.shape == (5, 8) and low.weight.dtype == torch.bfloat16 and low.bias is low.second.bias
    assert not low.training and not any(p.requires_grad for p in low.parameters())
    assert LowRankLinear.empty(nn.Linear(8, 5, bias=False), 2).bias is None
    with pytest.raises(ValueError, match="bias belongs to the second"):
        LowRankLinear(nn.Linear(8, 2), nn.Linear(2, 5))
    with pytest.raises(ValueError, match="has 2 outputs, the second has 3 inputs"):
        LowRankLinear(nn.Linear(8, 2, bias=False), nn.Linear(3, 5))


def test_plans_that_do_not_fit_are_refused_before_anything_changes():
    net = model()
    for plan, message in [
        ({"0": 2, "7": 2}, "'7', which the model does not have"),
        ({"0": 2, "1": 2}, "not a linear layer but a ReLU"),
        ({"0": 2, "2": 9}, "rank 9 is above the full rank 8 of the layer '2'"),
        ({"0": 2.5}, "rank 2.5"),
        ({"0": 0}, "rank 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            factorise(net, plan)
        assert not low_rank_layers(net)
    with pytest.raises(ValueError, match="needs the second moment of the inputs of '0'"):
        factorise(net, {"0": 2}, "activation")
    with pytest.raises(ValueError, match="expected one of: svd, activation, two-sided, random"):
        factorise(net, {"0": 2}, "lsq")
    factorise(net, {"0": 2})
    with pytest.raises(ValueError, match="already factorised"):
        factorise(net, {"0": 2})
    with pytest.raises(ValueError, match="the inputs of '0', which calibration did not see"):
        spectra({"0": nn.Linear(2, 2)}, "activation")
