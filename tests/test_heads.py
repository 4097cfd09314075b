"""Classification heads: formulae against brute force, padding, single frames, factors, constraint, margin loss."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.constraint import SemiOrthogonal, deviation
from lowrank_speech.lowrank.linear import OrthonormalLinear
from lowrank_speech.lowrank.structure import low_rank_layers
from lowrank_speech.models.build import quiet_config
from lowrank_speech.models.heads.attentive import AttentiveHead, AttentiveSettings
from lowrank_speech.models.heads.classifier import CosineLinear
from lowrank_speech.models.heads.ecapa import EcapaHead, EcapaSettings
from lowrank_speech.models.heads.frames import KaldiFactors, Norm, Tdnn
from lowrank_speech.models.heads.pooled import PooledHead, PooledSettings
from lowrank_speech.models.heads.registry import KINDS, head_class
from lowrank_speech.models.heads.statistics import StatisticsHead, StatisticsSettings
from lowrank_speech.models.heads.tdnn import TdnnHead, TdnnSettings
from lowrank_speech.models.mixing import LayerSum
from lowrank_speech.models.tasks import to_task
from lowrank_speech.training.head_ranks import head_plan
from lowrank_speech.training.losses.aam import with_margin
from tiny_models import MEMBERS, member, plain, speech

WIDTH, CLASSES = 6, 3
SMALL_ECAPA = {"channels": 16, "pooled": 24, "embedding": 8, "scales": 4, "bottleneck": 6}
SMALL_TDNN = {"channels": 16, "pooled": 20, "embedding": 8}
HEADS = {
    "pooled": (PooledHead, PooledSettings(size=5)),
    "statistics": (StatisticsHead, StatisticsSettings()),
    "statistics-embedding": (StatisticsHead, StatisticsSettings(embedding=4)),
    "orthonormal-linear": (StatisticsHead, StatisticsSettings(deviation=False, classifier="orthonormal")),
    "attentive": (AttentiveHead, AttentiveSettings(attention=5)),
    "attentive-cosine": (AttentiveHead, AttentiveSettings(attention=5, classifier="cosine", subcentres=2)),
    "tdnn": (TdnnHead, TdnnSettings(**SMALL_TDNN)),
    "tdnn-f": (TdnnHead, TdnnSettings(**SMALL_TDNN, rank=3)),
    "tdnn-cosine": (TdnnHead, TdnnSettings(**SMALL_TDNN, classifier="cosine")),
    "ecapa": (EcapaHead, EcapaSettings(**SMALL_ECAPA, classifier="cosine")),
    "ecapa-f": (EcapaHead, EcapaSettings(**SMALL_ECAPA, reduction=0.4)),
}
BODY = SimpleNamespace(width=WIDTH)


def made(name):
    """The head ``name`` of HEADS, with its factors and weights from the seed; its norms have seen some frames."""
    cls, settings = HEADS[name]
    head = cls(settings, WIDTH, CLASSES)
    torch.manual_seed(1)
    head.factorised(head_plan(BODY, settings, CLASSES)).initialise(0.3)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return head


def states(*lengths, more=0, filler=0.0):
    """States of utterances, padded by ``more`` frames beyond the longest with ``filler``, and their lengths."""
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randn(n, WIDTH, generator=generator) for n in lengths]
    padded = torch.full((len(rows), max(lengths) + more, WIDTH), filler)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded, torch.tensor(lengths)


def test_every_kind_is_tried_here():
    kinds = {cls.KIND for cls, _ in HEADS.values()}
    assert kinds == {kind for kind in KINDS if head_class(kind).TASK == "classify"} - {"language-tokens"}


# --- padding, batches, short utterances


@pytest.mark.parametrize("name", HEADS)
def test_padding_and_the_other_utterances_change_no_logits(name):
    head = made(name).eval()
    batch, lengths = states(23, 9, 1)
    expected = head(batch, lengths)
    for filler in (100.0, float("nan")) if name != "pooled" else (100.0,):
        torch.testing.assert_close(head(*states(23, 9, 1, more=7, filler=filler)), expected)
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(head(batch[i : i + 1, :n], lengths[i : i + 1]), expected[i : i + 1])


@pytest.mark.parametrize("name", HEADS)
def test_padding_changes_neither_gradients_nor_statistics_in_training(name):
    found = []
    for more, filler in ((0, 0.0), (5, 50.0)):
        head = made(name).train()
        head(*states(12, 5, more=more, filler=filler)).square().sum().backward()
        found.append({n: p.grad for n, p in head.named_parameters()} | dict(head.named_buffers()))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", HEADS)
def test_one_frame_of_one_utterance_trains(name):
    head = made(name).train()
    loss = F.cross_entropy(head(*states(1)), torch.tensor([1]))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


def test_a_norm_keeps_its_statistics_when_there_is_one_row():
    norm = Norm(4).train()
    norm(torch.randn(1, 4))
    assert norm.running_mean.abs().max() == 0 and norm.num_batches_tracked == 0
    norm(torch.randn(1, 3, 4), torch.tensor([[True, True, False]]))
    assert norm.num_batches_tracked == 1


# --- formulae


def test_statistics_are_those_of_numpy():
    head = made("statistics").eval()
    batch, lengths = states(11, 4)
    found = head.embed(batch, lengths)
    for row, n, values in zip(found, lengths.tolist(), batch, strict=True):
        part = values[:n].numpy()
        np.testing.assert_allclose(row, np.concatenate([part.mean(0), part.std(0)]), rtol=1e-5, atol=1e-6)


def test_attention_weighs_frames_as_in_the_paper():
    head = made("attentive").eval()
    batch, lengths = states(7, 3)
    found = head.embed(batch, lengths)
    for row, n, values in zip(found, lengths.tolist(), batch, strict=True):
        h = values[:n]
        e = torch.tanh(h @ head.hidden.weight.T + head.hidden.bias) @ head.weight.weight[0] + head.weight.bias
        alpha = e.exp() / e.exp().sum()
        mean = alpha @ h
        deviation = (alpha @ (h * h) - mean**2).sqrt()
        torch.testing.assert_close(row, torch.cat([mean, deviation]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (3, 2), (5, 1), (3, 4)])
def test_a_time_delay_layer_is_a_convolution(kernel, dilation):
    layer = Tdnn(4, 7, kernel, dilation)
    x, mask = torch.randn(2, 9, 4), torch.ones(2, 9, dtype=torch.bool)
    weight = layer.linear.weight.view(7, kernel, 4).permute(0, 2, 1)
    expected = F.conv1d(x.mT, weight, layer.linear.bias, padding="same", dilation=dilation).mT
    torch.testing.assert_close(layer(x, mask), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 3, 20])
def test_kaldis_factors_are_a_layer_with_three_taps(length):
    layer = Tdnn(4, 5, 3, 2)
    low = KaldiFactors(layer.linear, 3)
    for part in (low.first, low.second):
        part.reset_parameters()
    x, mask = torch.randn(2, length, 4), torch.ones(2, length, dtype=torch.bool)
    layer.linear = low
    found = layer(x, mask)
    layer.linear = low.dense()
    torch.testing.assert_close(found, layer(x, mask), rtol=1e-4, atol=1e-5)
    assert low.first.weight.shape == (3, 8) and low.second.weight.shape == (5, 6) and low.rank == 3


def test_the_number_of_parameters_of_ecapa_is_the_papers():
    """6.2 and 14.7 million for 512 and 1,024 channels on 80 features, without the classes (table 1 of the paper)."""
    for channels, millions in ((512, 6.2), (1024, 14.7)):
        with torch.device("meta"):
            head = EcapaHead(EcapaSettings(channels=channels), 80, 5)
        own = sum(p.numel() for name, p in head.named_parameters() if not name.startswith("classifier"))
        assert round(own / 1e6, 1) == millions


def test_cosines_to_the_nearest_subcentre():
    layer = CosineLinear(4, 3, 2, 10.0)
    layer.reset_parameters()
    x = torch.randn(5, 4)
    found = layer(x)
    assert found.shape == (5, 3) and found.abs().max() <= 10
    weight = layer.weight.detach()
    for i in range(5):
        for j in range(3):
            best = max(float(F.cosine_similarity(x[i], w, dim=0)) for w in weight[2 * j : 2 * j + 2])
            assert found[i, j].item() == pytest.approx(10 * best, abs=1e-4)
    torch.testing.assert_close(layer(7 * x), found)


def test_the_margin_is_added_to_the_angle_of_the_true_class():
    angles = torch.tensor([0.0, 0.3, 1.5, 2.9, math.pi - 0.15], dtype=torch.float64)
    target = torch.tensor([0, 1, 0, 2, 1])
    cosines = torch.full((5, 3), 0.25, dtype=torch.float64)
    cosines[torch.arange(5), target] = angles.cos()
    found = with_margin(cosines, target, 0.2)
    expected = cosines.clone()
    for i, angle in enumerate(angles.tolist()):
        moved = math.cos(angle + 0.2) if angle < math.pi - 0.2 else math.cos(angle) - 0.2 * math.sin(0.2)
        expected[i, target[i]] = moved
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(with_margin(cosines, target, 0.0), cosines)
    # The loss falls as the angle falls, everywhere.
    grid = torch.linspace(0, math.pi, 400, dtype=torch.float64)
    along = with_margin(grid.cos()[:, None], torch.zeros(400, dtype=torch.long), 0.2)[:, 0]
    assert (along.diff() < 1e-12).all()


def test_the_margins_gradient_is_finite_on_the_class_vector_and_opposite_to_it():
    cosines = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    with_margin(cosines, torch.tensor([0, 0]), 0.3).sum().backward()
    assert torch.isfinite(cosines.grad).all()


# --- the weighted sum of layers


@pytest.mark.parametrize("name", [n for n in MEMBERS if "adapter" not in n])
def test_the_weighted_sum_is_over_transformers_hidden_states(name):
    hf = plain(name, "body")
    model, _ = to_task(member(name, "body"), "classify", 2, ["a", "b"], head=StatisticsSettings(layers="weighted"))
    batch, lengths = speech(model, 0.31)
    with torch.no_grad():
        model.head.mix.weights.copy_(torch.linspace(-1, 2, len(model.head.mix.weights)))
        mask = torch.ones(1, batch.shape[1], dtype=torch.long)
        out = hf(batch, attention_mask=mask, output_hidden_states=True)
        found, frames = model.states(batch, lengths)
    all_states = [*out.hidden_states[:-1], out.last_hidden_state]
    assert len(all_states) == 3 == len(model.head.mix.weights)
    shares = model.head.mix.weights.softmax(0)
    expected = sum(share * state for share, state in zip(shares, all_states, strict=True))
    torch.testing.assert_close(found[:, : int(frames)], expected[:, : int(frames)], atol=1e-5, rtol=1e-4)


def test_the_sum_starts_as_the_mean_and_its_weights_train():
    mix = LayerSum(3)
    mix.reset_parameters()
    parts = [torch.full((1, 2, 2), float(i)) for i in range(3)]
    assert torch.equal(mix(parts), torch.ones(1, 2, 2))
    mix(parts).sum().backward()
    assert mix.weights.grad[0] < 0 < mix.weights.grad[2]


# --- factors


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize(("cls", "settings"), [(EcapaHead, EcapaSettings), (TdnnHead, TdnnSettings)])
def test_a_reduction_is_the_share_of_the_heads_parameters(cls, settings, share):
    wanted = settings(reduction=share)
    plan = head_plan(SimpleNamespace(width=768), wanted, 5)
    with torch.device("meta"):
        dense = sum(p.numel() for p in cls(settings(), 768, 5).parameters())
        low = cls(wanted, 768, 5).factorised(plan)
    after = sum(p.numel() for p in low.parameters())
    assert share <= 1 - after / dense < share + 0.005
    assert low_rank_layers(low).keys() == plan.keys() and low.OUTPUT not in plan


def test_ranks_by_rank_and_by_fraction():
    body = SimpleNamespace(width=64)
    plan = head_plan(body, TdnnSettings(**SMALL_TDNN | {"channels": 64}, rank=16), 5)
    assert set(plan.values()) == {16} and "layers.1.tdnn.linear" in plan and "hidden" not in plan
    plan = head_plan(body, EcapaSettings(**SMALL_ECAPA | {"channels": 64}, fraction=0.25), 5)
    assert plan["first.tdnn.linear"] == 16 and plan["blocks.0.before.tdnn.linear"] == 16
    assert head_plan(body, EcapaSettings(), 5) == {} == head_plan(body, StatisticsSettings(), 5)
    with pytest.raises(UserError, match="head: rank is 5000, but no layer would become smaller"):
        head_plan(body, EcapaSettings(rank=5000), 5)
    with pytest.raises(UserError, match=r"head: with fraction: 1\.0 no layer of the ecapa becomes smaller"):
        head_plan(body, EcapaSettings(fraction=1.0), 5)
    with pytest.raises(UserError, match=r"head: a reduction of 0.99 is out of reach .* of the whole head"):
        head_plan(body, EcapaSettings(**SMALL_ECAPA, reduction=0.99), 5)


@pytest.mark.parametrize("name", ["tdnn-f", "ecapa-f"])
def test_factors_start_semi_orthogonal_and_keep_the_size_of_the_outputs(name):
    head = made(name)
    assert low_rank_layers(head)
    for layer in low_rank_layers(head).values():
        assert deviation(layer.first.weight) < 1e-4
    kind = name.removesuffix("-f")
    x = states(400)
    ratio = made(name).eval()(*x).std() / made(kind if kind in HEADS else name).eval()(*x).std()
    assert 0.2 < ratio < 5 or kind == "ecapa"  # the classifiers of the two ecapas differ


@pytest.mark.parametrize("mode", ["floating", "fixed", "exact"])
@pytest.mark.parametrize("name", ["tdnn-f", "ecapa-f", "orthonormal-linear"])
def test_the_constraint_pulls_a_heads_matrices(name, mode):
    head = made(name)
    constraint = SemiOrthogonal(nn.ModuleDict({"head": head}), mode, every=1)
    firsts = [m.first.weight for m in head.modules() if hasattr(m, "first") and hasattr(m, "second")]
    assert len(firsts) == len(constraint.layers) > 0
    torch.manual_seed(4)
    with torch.no_grad():
        for weight in firsts:
            weight += 0.1 * torch.randn_like(weight) / weight.shape[1] ** 0.5
    before = constraint.deviation()
    for _ in range(8):
        constraint.step("head.")
    after = constraint.deviation()
    assert all(name.startswith("head.") for name in after)
    assert max(before.values()) > 0.05 and max(after.values()) < 1e-3


def test_the_exact_constraint_keeps_the_function_of_kaldis_factors():
    head = made("tdnn-f").eval()
    with torch.no_grad():
        for layer in low_rank_layers(head).values():
            layer.first.weight += 0.1 * torch.randn_like(layer.first.weight)
    expected = head(*states(20, 6))
    constraint = SemiOrthogonal(head, "exact", every=1)
    constraint.step()
    assert max(constraint.deviation().values()) < 1e-4
    torch.testing.assert_close(head(*states(20, 6)), expected, rtol=1e-3, atol=1e-4)


def test_a_step_for_the_head_alone_leaves_the_body_and_the_draws():
    def layers():
        torch.manual_seed(0)
        return nn.ModuleDict({"body": OrthonormalLinear(6, 4), "head": OrthonormalLinear(6, 4)})

    parts = layers()
    with torch.no_grad():
        for layer in parts.values():
            layer.weight += 0.2
    body = parts["body"].weight.detach().clone()
    SemiOrthogonal(parts, every=1).step("head")
    assert torch.equal(parts["body"].weight, body) and deviation(parts["head"].weight) < deviation(body)
    only = SemiOrthogonal(nn.ModuleDict({"body": OrthonormalLinear(6, 4)}), seed=3)
    state = only.state_dict()
    only.step("head")
    assert only.steps == 0 and torch.equal(only.state_dict()["generator"], state["generator"])


# --- settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: EcapaSettings(rank=4, reduction=0.3),
            "give at most one of rank, fraction, reduction; given: rank, red",
        ),
        (lambda: EcapaSettings(channels=100), r"channels is 100; it must be a multiple of scales \(8\)"),
        (lambda: AttentiveSettings(subcentres=2), "subcentres is 2, but classifier is linear; set classifier: cosine"),
        (lambda: EcapaSettings(subcentres=2), "subcentres is 2"),
    ],
)
def test_settings_that_do_not_go_together(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_transformers_class_has_only_the_default_head():
    base = member("wav2vec2", "body")
    for settings, known in ((None, True), (PooledSettings(layers="weighted"), False), (StatisticsSettings(), False)):
        model, new = to_task(base, "classify", 2, ["a", "b"], head=settings)
        assert new and model.known_head == known
        assert model.architecture == ("Wav2Vec2ForSequenceClassification" if known else "Wav2Vec2Model")


def test_depth_of_whisper_is_its_encoders():
    from lowrank_speech.models.registry import family_class

    config = quiet_config(transformers.WhisperConfig(encoder_layers=3, decoder_layers=5))
    assert family_class("whisper").depth_of(config) == 3
