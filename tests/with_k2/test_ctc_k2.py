"""k2's CTC compared with torch's in double precision, with brute force, and with this package's torch back end.

Runs where k2 is installed: in the main environment, and under Python 3.9 with `make test-k2`. It therefore imports only
torch, k2 and pytest, and loads the module under test by its path. (The folder is not called k2, because Python would
import it instead of the library.)
"""

import importlib.util
import itertools
import pathlib

import pytest
import torch
from torch.nn import functional as F

k2 = pytest.importorskip("k2", reason="k2 is not installed here; `make test-k2` runs these tests", exc_type=ImportError)

PATH = pathlib.Path(__file__).resolve().parents[2] / "src" / "lowrank_speech" / "training" / "losses" / "ctc_losses.py"
SPEC = importlib.util.spec_from_file_location("ctc_losses", PATH)
ctc = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(ctc)

# Largest error of a gradient (of losses weighted 1 to 8) against double precision. torch's forward and backward sums
# are float32 and lose more than k2's, whose total scores are double.
GRADIENT = {True: 2e-5, False: 1e-3}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() and k2.with_cuda else [])]


def batch(seed, utterances=8, most=24, vocabulary=7, scale=2.0):
    """(logits, frames, labels, sizes): one target empty, one of one label repeated, one impossible by its repeats."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(8, most + 1, (utterances,), generator=generator)
    frames[int(torch.randint(utterances, (1,), generator=generator))] = most
    targets = [torch.randint(1, vocabulary, (int(n) // 3,), generator=generator) for n in frames]
    empty, repeated, impossible = torch.randperm(utterances, generator=generator)[:3].tolist()
    targets[empty] = targets[empty][:0]
    targets[repeated] = torch.full((int(frames[repeated] + 1) // 2,), 3)  # just fits
    targets[impossible] = torch.full(((int(frames[impossible]) + 1) // 2 + 1,), 2)  # a frame too few, or two
    logits = scale * torch.randn(utterances, most, vocabulary, generator=generator)
    return logits, frames, torch.cat(targets), torch.tensor([len(t) for t in targets]), impossible


def weighted(losses):
    """A sum with another weight for each utterance: gradients that change places do not go unseen."""
    return (losses * torch.arange(1, len(losses) + 1).to(losses)).sum()


def run(data, device="cpu", with_k2=True, **keys):
    """Losses, possible, gradient of the weighted sum with respect to the logits."""
    logits = data[0].clone().to(device).requires_grad_()
    losses, possible = ctc.ctc_losses(logits, *data[1:4], k2=k2 if with_k2 else None, **keys)
    weighted(losses).backward()
    return losses.detach().cpu(), possible, logits.grad.cpu()


def reference(data):
    """The same from torch's own function in double precision, over the possible targets one by one."""
    logits = data[0].double().requires_grad_()
    losses = []
    for i, (frames, target) in enumerate(zip(data[1].tolist(), data[2].split(data[3].tolist()))):
        if i == data[4]:
            losses.append(torch.zeros((), dtype=torch.double))
            continue
        log_probs = logits[i, :frames].log_softmax(-1)
        size = torch.tensor(len(target))
        losses.append(F.ctc_loss(log_probs, target, torch.tensor(frames), size, reduction="sum"))
    losses = torch.stack(losses)
    weighted(losses).backward()
    return losses.detach(), logits.grad


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_k2", [True, False], ids=["k2", "torch"])
@pytest.mark.parametrize("seed", range(10))
def test_loss_and_gradient_are_those_of_double_precision(seed, with_k2, device):
    data = batch(seed)
    losses, possible, gradient = run(data, device, with_k2)
    expected, expected_gradient = reference(data)
    assert losses.dtype == torch.float32
    assert [i for i, fits in enumerate(possible.tolist()) if not fits] == [data[4]]
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=GRADIENT[with_k2])
    assert losses[data[4]] == 0 and torch.equal(gradient[data[4]], torch.zeros_like(gradient[data[4]]))
    for row, frames in zip(gradient, data[1].tolist()):
        assert torch.equal(row[frames:], torch.zeros_like(row[frames:]))  # padding learns nothing


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 10.0])
def test_back_ends_agree_on_flat_and_on_sharp_posteriors(scale):
    data = batch(100, utterances=6, most=60, vocabulary=30, scale=scale)
    losses, possible, gradient = run(data)
    others = run(data, with_k2=False)
    torch.testing.assert_close(losses, others[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradient, others[2], rtol=0, atol=GRADIENT[False])
    assert torch.equal(possible, others[1])


@pytest.mark.parametrize("target", [[], [1], [1, 2], [2, 2], [1, 2, 1]])
def test_the_loss_is_minus_the_log_of_the_sum_over_all_paths(target):
    logits = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(4))
    probs, total = logits[0].double().softmax(-1), 0.0
    for path in itertools.product(range(3), repeat=5):
        if [label for label, _ in itertools.groupby(path) if label] == target:
            total += float(probs[range(5), path].prod())
    found, _ = ctc.ctc_losses(logits, torch.tensor([5]), torch.tensor(target), torch.tensor([len(target)]), k2)
    assert float(found) == pytest.approx(-float(torch.tensor(total).log()), abs=1e-5)


def test_results_come_in_the_callers_order():
    data = batch(7)
    losses, _, gradient = run(data)
    weights = torch.arange(1, len(losses) + 1)
    targets = data[2].split(data[3].tolist())
    for i, target in enumerate(targets):
        one = (data[0][i : i + 1], data[1][i : i + 1], target, data[3][i : i + 1])
        alone, _, its = run(one)
        torch.testing.assert_close(losses[i], alone[0])
        torch.testing.assert_close(gradient[i], weights[i] * its[0])


def test_a_batch_of_impossible_targets_has_no_loss_and_no_gradient():
    data = (torch.randn(2, 4, 3), torch.tensor([4, 0]), torch.tensor([1, 1, 1, 2]), torch.tensor([3, 1]))
    for with_k2 in (True, False):
        losses, possible, gradient = run(data, with_k2=with_k2)
        assert losses.tolist() == [0, 0] and possible.tolist() == [False, False] and not gradient.any()


def test_logits_that_are_not_finite_show_in_the_loss():
    """k2 gives them an infinite loss: were it masked like that of an impossible target, NaN gradients would follow."""
    data = batch(3)
    data[0][(data[4] + 1) % 8, 0, :] = float("nan")
    for with_k2 in (True, False):
        losses, _, _ = run(data, with_k2=with_k2)
        assert not torch.isfinite(losses[(data[4] + 1) % 8]) and torch.isfinite(losses).sum() == 7


def test_losses_are_float32_under_autocast():
    data = batch(5)
    half = (data[0].bfloat16(), *data[1:])
    exact = run((half[0].float(), *data[1:]))[0]
    with torch.autocast("cpu", torch.bfloat16):
        losses, _ = ctc.ctc_losses(half[0], *half[1:4], k2=k2)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact)


def test_a_narrow_beam_shows_and_that_of_the_config_does_not():
    data = batch(100, utterances=6, most=60, vocabulary=30, scale=3.0)
    expected, expected_gradient = reference(data)

    def errors(beam):
        losses, _, gradient = run(data, output_beam=beam)
        return float((losses - expected).abs().max()), float((gradient - expected_gradient).abs().max())

    (loss, gradient), (wide_loss, wide_gradient) = errors(10.0), errors(20.0)  # k2's default, ours
    assert loss > 1e-3 and gradient > 1e-3
    assert wide_loss < 3e-5 and wide_gradient < GRADIENT[True]


def test_what_k2_would_not_notice_is_refused():
    logits, two, one = torch.randn(1, 6, 5), torch.tensor([2]), torch.tensor([6])
    for label in (0, 5, -1):
        with pytest.raises(ValueError, match=f"has the label {label}; expected 1 to 4"):
            ctc.ctc_losses(logits, one, torch.tensor([1, label]), two, k2)
    with pytest.raises(ValueError, match="expected one each for 1 utterances"):
        ctc.ctc_losses(logits, one, torch.tensor([1, 2]), torch.tensor([1, 1]), k2)


def test_k2_is_found_and_says_which_it_is():
    assert ctc.import_k2() is k2
    assert ctc.k2_version().startswith(k2.__dev_version__.split("+")[0])
