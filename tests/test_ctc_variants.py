"""Label priors and the delay penalty of CTC: against the sum over all paths, and in a training.

tests/with_k2 compares them with k2's.
"""

import itertools

import pytest
import torch

from lowrank_speech.training.config import CtcConfig, TrainConfig
from lowrank_speech.training.losses.ctc import LOWEST, Ctc
from lowrank_speech.training.losses.ctc_losses import ctc_losses
from lowrank_speech.training.process.distributed import Ranks
from tiny_training import drawn_cuts, drawn_trainer, full, interrupt, make_cuts, trainer_of, weights

TARGETS = [[1, 2], [2, 2], [], [1], [1, 2, 1]]
FRAMES = torch.tensor([5, 4, 3, 1, 6])
LABELS, SIZES = torch.tensor([label for target in TARGETS for label in target]), torch.tensor([len(t) for t in TARGETS])
PRIORS = torch.tensor([-0.2, -1.5, -3.0])


def by_brute_force(logits, penalty=0.0, log_priors=None):
    """Minus the log of the sum over all paths of each target, in double precision."""
    found = []
    for row, n, target in zip(logits.double(), FRAMES.tolist(), TARGETS, strict=True):
        scores = row[:n].log_softmax(-1) - (0 if log_priors is None else log_priors)
        paths = []
        for path in itertools.product(range(3), repeat=n):
            if [label for label, _ in itertools.groupby(path) if label] != target:
                continue
            first = [t for t in range(n) if path[t] and (t == 0 or path[t] != path[t - 1])]
            paths.append(scores[range(n), path].sum() - penalty * sum(t - n // 2 for t in first))
        found.append(-torch.stack(paths).logsumexp(0))
    return torch.stack(found)


@pytest.mark.parametrize("penalty", [0.0, 0.05, 0.7])
@pytest.mark.parametrize("log_priors", [None, PRIORS], ids=["plain", "priors"])
def test_losses_and_gradients_are_those_of_the_sum_over_all_paths(penalty, log_priors):
    logits = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    exact = logits.detach().clone().requires_grad_()
    weights_of = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    found, possible = ctc_losses(logits, FRAMES, LABELS, SIZES, log_priors=log_priors, delay_penalty=penalty)
    expected = by_brute_force(exact, penalty, log_priors)
    assert possible.all() and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-6)
    (found * weights_of).sum().backward()
    (expected * weights_of).sum().backward()
    torch.testing.assert_close(logits.grad, exact.grad, rtol=0, atol=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_impossible_targets_and_bad_outputs_are_those_of_plain_ctc(penalty):
    keys = {"log_priors": PRIORS, "delay_penalty": penalty}
    logits = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(1))
    logits[0] = torch.nan
    logits[1, 1] = torch.nan
    logits.requires_grad_()
    labels = torch.tensor([1, 1, 1, 2, 1])
    losses, possible = ctc_losses(logits, torch.tensor([4, 4, 3]), labels, torch.tensor([3, 1, 1]), **keys)
    assert possible.tolist() == [False, True, True]
    assert losses[0] == 0 and torch.isfinite(losses).tolist() == [True, False, True]
    losses[2].backward()
    assert torch.isfinite(logits.grad[2, :3]).all() and not logits.grad[0].any() and not logits.grad[2, 3].any()


def recipe(**ctc):
    return TrainConfig(epochs=3, batch_seconds=0.7, lr=0.003, head_lr=0.01, ctc=CtcConfig(**ctc))


def test_the_priors_are_the_mean_posteriors_of_the_epoch_before(tmp_path, monkeypatch):
    """And its loss uses them: the first epoch none, the second those of the first, and dev those of its epoch."""
    trainer, cuts = drawn_trainer("ctc", tmp_path, recipe(prior_scale=0.3)), drawn_cuts()
    posteriors, used, real = [[]], [], Ctc.forward

    def spied(self, model, states, frames, target, errors=False):
        term = real(self, model, states, frames, target, errors)
        if model.training:
            probs = term.logits.detach().softmax(-1)
            posteriors[-1] += [row[:n] for row, n in zip(probs, frames.tolist(), strict=True)]
        used.append((len(posteriors), self.log_priors.clone()))
        return term

    ended = Ctc.end_epoch
    monkeypatch.setattr(Ctc, "forward", spied)
    monkeypatch.setattr(Ctc, "end_epoch", lambda self: (ended(self), posteriors.append([])))
    trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    means = [torch.cat(rows).double().mean(0).log().clamp(min=LOWEST) for rows in posteriors if rows]
    assert len(means) == 3
    for epoch, log_priors in used:
        expected = torch.zeros_like(log_priors) if epoch == 1 else means[epoch - 2].float()
        torch.testing.assert_close(log_priors, expected)
    torch.testing.assert_close(trainer.objective.task.log_priors, means[2].float())


@pytest.mark.parametrize("steps", [2, 7])
def test_a_training_that_was_killed_within_an_epoch_keeps_its_sums(steps, tmp_path):
    def run(folder, until=None):
        trainer = drawn_trainer("ctc", tmp_path / folder, recipe(prior_scale=0.4), save_minutes=1e-6)
        interrupt(trainer, until)
        trainer.run(drawn_cuts(), drawn_cuts(), tmp_path / folder / "metrics.jsonl")
        return trainer

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", steps)
    again = run("killed")
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(again)[name]), name
    assert torch.equal(whole.objective.task.log_priors, again.objective.task.log_priors)
    assert whole.objective.task.log_priors.any()


def test_the_sums_are_those_of_all_processes(tmp_path):
    """Each adds the sums of all to its own state, whichever has batches in an update."""

    class Two(Ranks):
        def sum(self, numbers):
            return [2 * number for number in numbers]

    trainer = drawn_trainer("ctc", tmp_path, recipe(prior_scale=0.3))
    loss = trainer.objective.task
    seen = torch.arange(loss.observes, dtype=torch.float64)
    trainer.objective.observe([(seen,), (None,), (seen,)], Two())
    assert torch.equal(loss.seen, 4 * seen)
    trainer.objective.observe([], Two())  # a process without a batch
    assert torch.equal(loss.seen, 4 * seen)


def test_a_plain_training_has_no_priors_in_its_state(tmp_path):
    trainer = drawn_trainer("ctc", tmp_path, recipe())
    assert not trainer.objective.state_dict()


def paths(trainer, cuts):
    """The greedy path of each utterance."""
    batch = trainer.loader.collate(list(cuts))
    with torch.no_grad():
        logits, frames = trainer.model.ctc_logits(batch["features"], batch["lengths"])
    return [row[:n].argmax(-1).tolist() for row, n in zip(logits, frames.tolist(), strict=True)]


@pytest.mark.slow
def test_priors_make_the_outputs_less_peaky_and_the_penalty_makes_labels_early(tmp_path):
    cuts, blank, start = make_cuts(tmp_path), {}, {}
    for name, keys in (("plain", {}), ("priors", {"prior_scale": 0.6}), ("delay", {"delay_penalty": 0.3})):
        config = TrainConfig(
            epochs=40, batch_seconds=1.5, lr=0.003, head_lr=0.02, keep="last", evaluate_every=40, ctc=CtcConfig(**keys)
        )
        trainer = trainer_of("ctc", tmp_path / name, config, full)
        trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
        assert trainer.state.history[-1]["dev_metric"] < 0.5
        found = paths(trainer, cuts)
        blank[name] = sum(path.count(0) for path in found) / sum(map(len, found))
        first = [t for path in found for t in range(len(path)) if path[t] and (t == 0 or path[t] != path[t - 1])]
        start[name] = sum(first) / len(first)
    assert blank["priors"] < blank["plain"] - 0.2 and start["delay"] < start["plain"] - 0.5, (blank, start)
