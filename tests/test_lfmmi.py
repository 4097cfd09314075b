"""LF-MMI: the token n-gram, the denominator against the sum over all paths, gradients, and training with it."""

import ast
import itertools
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from lowrank_speech.errors import UserError
from lowrank_speech.lang.lm import arpa
from lowrank_speech.settings import read
from lowrank_speech.training.config import CtcConfig, LfmmiConfig, TrainConfig
from lowrank_speech.training.data.targets import targets_of, with_targets
from lowrank_speech.training.losses import denominator, denominator_k2
from lowrank_speech.training.losses.denominator import log_totals
from lowrank_speech.training.losses.ngram import END, NGram
from tiny_training import drawn, drawn_cuts, drawn_trainer, full, lang_of, make_cuts, objective_of, setup_of, trainer_of

FEW = [[1, 2], [2, 2, 1], [1], [], [2, 1, 1, 2], [1, 2, 1]]


def sequences(tokens, number=60, longest=9, seed=1):
    """Targets whose tokens depend on the one before."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(tokens + 1, tokens + 1, generator=generator) ** 4
    table[:, 0] += 0.2
    made = []
    for _ in range(number):
        target = [0]
        while len(target) <= longest:
            token = int(torch.multinomial(table[target[-1]], 1, generator=generator))
            if token == 0:
                break
            target.append(token)
        made.append(target[1:])
    return made


def by_brute_force(log_probs, ngram, scale=lambda target: 0.0):
    """The log of the sum over all label sequences (V to the power of F)."""
    frames, vocabulary = log_probs.shape
    paths = []
    for path in itertools.product(range(vocabulary), repeat=frames):
        target = [token for token, _ in itertools.groupby(path) if token]
        paths.append(log_probs[range(frames), path].sum() + ngram.log_probability(target))
    return torch.logsumexp(torch.stack(paths), 0)


# --- the n-gram


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("targets", "vocabulary"), [(FEW, 3), (FEW, 5), (sequences(4), 5), (sequences(6), 9)])
def test_the_probabilities_after_every_context_sum_to_one(targets, vocabulary, order):
    ngram = NGram.of(targets, vocabulary, order)
    for context in itertools.chain.from_iterable(itertools.product(range(1, vocabulary), repeat=n) for n in range(4)):
        for start in ((), (0,)):
            total = sum(ngram.probability((*start, *context), token) for token in (END, *range(1, vocabulary)))
            assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_graph_is_the_ngram(order):
    """Walks of the graph have the probability of their tokens, and lead to one context."""
    ngram = NGram.of(sequences(4), 6, order)
    graph = ngram.graph()
    moves = graph.probabilities()
    torch.testing.assert_close(moves.sum(1) + graph.final, torch.ones(len(graph.last), dtype=torch.float64))
    for target in itertools.chain.from_iterable(itertools.product(range(1, 6), repeat=n) for n in range(5)):
        mass = torch.zeros(len(graph.last), dtype=torch.float64)
        mass[graph.start] = 1.0
        for token in target:
            mass = (mass @ moves) * (graph.last == token)
        assert math.log(float(mass @ graph.final)) == pytest.approx(ngram.log_probability(list(target)), abs=1e-9)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_sparse_transitions_are_the_dense_ones(order):
    graph = NGram.of(sequences(7, 100), 11, order).graph()
    dense, sparse = denominator._Dense(graph), denominator._Sparse(graph)
    generator = torch.Generator().manual_seed(2)
    sums = torch.rand(2 * len(graph.last), 3, dtype=torch.float64, generator=generator)
    later = torch.rand(len(graph.last), 3, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(sparse.forward(sums), dense.forward(sums), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sparse.backward(later), dense.backward(later), rtol=1e-12, atol=1e-12)


# --- the denominator


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_denominator_is_the_sum_over_all_paths(order, sparse, monkeypatch):
    monkeypatch.setattr(denominator, "SMALL", -1 if sparse else 1000)
    monkeypatch.setattr(denominator, "DENSE", -1)
    ngram = NGram.of(FEW, 4, order)
    frames = torch.tensor([4, 6, 1, 3])
    log_probs = 2 * torch.randn(4, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(order))
    found = log_totals(log_probs, frames, ngram.graph())
    for row, n, total in zip(log_probs, frames.tolist(), found, strict=True):
        assert total.item() == pytest.approx(by_brute_force(row[:n], ngram).item(), abs=1e-6)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("pieces", [False, True])
def test_its_gradient_is_that_of_the_sum_over_all_paths(sparse, pieces, monkeypatch):
    monkeypatch.setattr(denominator, "SMALL", -1 if sparse else 1000)
    monkeypatch.setattr(denominator, "DENSE", -1)
    monkeypatch.setattr(denominator, "KEPT", 0 if pieces else 1 << 28)
    ngram = NGram.of(FEW, 4, 3)
    frames, weights = torch.tensor([4, 6, 5]), torch.tensor([1.0, 3.0, -2.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(4)
    log_probs = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator).requires_grad_()
    expected = log_probs.detach().clone().requires_grad_()
    (weights * log_totals(log_probs, frames, ngram.graph())).sum().backward()
    naive = torch.stack([by_brute_force(row[:n], ngram) for row, n in zip(expected, frames.tolist(), strict=True)])
    (weights * naive).sum().backward()
    torch.testing.assert_close(log_probs.grad, expected.grad, rtol=0, atol=1e-9)


def test_posteriors_sum_to_one_in_every_frame_and_padding_has_none():
    ngram = NGram.of(sequences(20, 200), 24, 2)
    log_probs = (10 * torch.randn(5, 80, 24, generator=torch.Generator().manual_seed(1))).log_softmax(-1)
    log_probs.requires_grad_()
    frames = torch.tensor([80, 3, 41, 80, 1])
    log_totals(log_probs, frames, ngram.graph()).sum().backward()
    sums = log_probs.grad.sum(-1)
    for row, n in zip(sums, frames.tolist(), strict=True):
        torch.testing.assert_close(row[:n], torch.ones(n))
        assert not row[n:].any()


def test_outputs_that_are_not_finite_show():
    graph = NGram.of(FEW, 3, 2).graph()
    log_probs = torch.zeros(3, 4, 3)
    log_probs[1, 2, 1] = math.nan
    log_probs[2, 3] = math.nan  # padding
    assert torch.isfinite(log_totals(log_probs, torch.tensor([4, 4, 3]), graph)).tolist() == [True, False, True]


# --- in a training


def recipe(**keys):
    given = {"epochs": 35, "batch_seconds": 1.5, "lr": 0.003, "head_lr": 0.02, "keep": "last", "loss": "lfmmi"}
    return TrainConfig(**(given | keys))


@pytest.mark.slow
def test_a_training_on_the_cpu_learns(tmp_path):
    """It learns the letters of tones."""
    cuts = make_cuts(tmp_path)
    trainer = trainer_of("ctc", tmp_path / "scratch", recipe(evaluate_every=5), full)
    trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    first, fifth, last = (trainer.state.history[i] for i in (0, 4, -1))
    assert last["loss"] < 0.2 * first["loss"] and last["dev_loss"] < 0.5 * fifth["dev_loss"]
    assert fifth["dev_metric"] > 0.5 and last["dev_metric"] < 0.3


def test_the_loss_is_the_log_share_of_the_transcript():
    """Minus the log of the probability of the tokens, among all sequences that fit into the frames."""
    model, lang = SimpleNamespace(head_logits=lambda states, frames: states), lang_of()
    objective = objective_of("ctc", recipe(lfmmi=LfmmiConfig(den_scale=0.7)), lang)
    objective.fit(drawn_cuts)
    objective.build(model)
    targets, frames = [[3, 4], [5]], torch.tensor([4, 3])
    logits = torch.randn(2, 4, lang.tokens.size, generator=torch.Generator().manual_seed(1))
    found, ngram = objective.task(model, logits, frames, objective.task.collate(targets)), objective.task.ngram
    expected = 0.0
    for row, n, target in zip(logits.double().log_softmax(-1), frames.tolist(), targets, strict=True):
        size = torch.tensor(len(target))
        ctc = torch.nn.functional.ctc_loss(row[:n], torch.tensor(target), torch.tensor(n), size, reduction="sum")
        expected += ctc - ngram.log_probability(target) + 0.7 * by_brute_force(row[:n], ngram)
    assert found.units == 3 and found.mean.item() * 3 == pytest.approx(expected.item(), abs=1e-5)


def test_a_scale_of_a_frames_outputs_changes_nothing_with_a_denominator_of_scale_one():
    _, lang, _ = setup_of("ctc")
    objective = objective_of("ctc", recipe(), lang)
    objective.fit(drawn_cuts)
    graph = objective.task.graph
    log_probs = torch.randn(2, 9, lang.tokens.size, generator=torch.Generator().manual_seed(1))
    shift = torch.randn(2, 9, 1, generator=torch.Generator().manual_seed(2))
    frames = torch.tensor([9, 7])
    moved = log_totals(log_probs + shift, frames, graph) - log_totals(log_probs, frames, graph)
    torch.testing.assert_close(moved, torch.stack([shift[0].sum(), shift[1, :7].sum()]), rtol=0, atol=1e-4)


def test_impossible_targets_are_left_out_and_counted(tmp_path):
    def longer(cut):
        return with_targets(cut, {**targets_of(cut), "lfmmi": [3] * 500})

    cuts = list(drawn_cuts())
    model, lang, _ = setup_of("ctc")
    objective, loader = objective_of("ctc", recipe(), lang), drawn("ctc")
    objective.fit(drawn_cuts)
    objective.build(model)
    model.eval()
    batch, rest = loader.collate([longer(cuts[0]), *cuts[1:4]]), loader.collate(cuts[1:4])
    found = objective(model, batch["features"], batch["lengths"], batch["cuts"])
    expected = objective(model, rest["features"], rest["lengths"], rest["cuts"])
    assert (found.impossible, expected.impossible, found.units) == (1, 0, expected.units)
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-4)
    found.total.backward()
    only = loader.collate([longer(cuts[0])])
    nothing = objective(model, only["features"], only["lengths"], only["cuts"])
    assert nothing.total == 0 and nothing.units == 0
    nothing.total.backward()


def test_a_label_outside_of_the_vocabulary_is_one_line(tmp_path):
    cuts = [with_targets(cut, {**targets_of(cut), "lfmmi": [99]}) for cut in list(drawn_cuts())[:1]]
    model, lang, _ = setup_of("ctc")
    objective = objective_of("ctc", recipe(), lang)
    objective.fit(drawn_cuts)
    objective.build(model)
    batch = drawn("ctc").collate(cuts)
    with pytest.raises(UserError, match="has the label 99; expected 1 to"):
        objective(model, batch["features"], batch["lengths"], batch["cuts"])


def test_the_ngram_is_a_part_of_the_state_and_is_written(tmp_path):
    """As an ARPA file whose words are ids, which has the probabilities of the training."""
    first, second = (drawn_trainer("ctc", tmp_path / name, recipe()).objective for name in "ab")
    second.task._use(NGram.of([[3]], second.task.ngram.vocabulary, 2))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for target in ([3, 4], [5], []):
        assert second.task.ngram.log_probability(target) == first.task.ngram.log_probability(target)
    (path,) = first.task.save(tmp_path)
    again = NGram(arpa.read(path), first.task.ngram.vocabulary)
    assert again.log_probability([3, 4, 4]) == pytest.approx(first.task.ngram.log_probability([3, 4, 4]), abs=1e-5)


def test_k2_is_taken_only_where_it_is_asked_for_and_gets_no_graph_that_is_too_large(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", SimpleNamespace(ctc_loss=None, with_cuda=True))
    monkeypatch.setattr("lowrank_speech.training.losses.backends.k2_version", lambda: "9.9")

    def built(backend):
        objective = objective_of("ctc", recipe(ctc=CtcConfig(backend=backend)), lang_of())
        objective.fit(drawn_cuts)
        return objective.build(None)

    assert [built(name).backend.backend for name in ("auto", "torch", "k2")] == ["torch", "torch", "k2"]
    monkeypatch.setattr("lowrank_speech.training.losses.lfmmi.MOST_ARCS", 10)
    with pytest.raises(UserError, match=r"^training\.ctc\.backend: .* k2 takes at most 10; set backend: torch"):
        built("k2")


def test_k2_asked_for_and_absent_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "k2", None)
    model, lang, _ = setup_of("ctc")
    objective = objective_of("ctc", recipe(ctc=CtcConfig(backend="k2")), lang)
    objective.fit(drawn_cuts)
    with pytest.raises(UserError, match=r"^training\.ctc\.backend: k2.* cannot be imported"):
        objective.build(model)


@pytest.mark.parametrize("module", [denominator, denominator_k2])
def test_the_modules_for_k2_run_under_python_39_on_torch_alone(module):
    with open(module.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read(), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"torch"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lfmmi": {"order": 7}}, r"lfmmi\.order is 7; it must be at most 6"),
        ({"lfmmi": {"order": 0}}, r"lfmmi\.order is 0; it must be at least 1"),
        ({"lfmmi": {"den_scale": 0}}, r"lfmmi\.den_scale is 0; it must be above 0"),
        ({"ctc": {"prior_scale": -0.1}}, r"ctc\.prior_scale is -0\.1; it must be at least 0"),
        ({"ctc": {"delay_penalty": 2}}, r"ctc\.delay_penalty is 2; it must be at most 1"),
        ({"loss": "lfmmi", "ctc": {"prior_scale": 0.3}}, r"ctc\.prior_scale changes CTC, but loss is lfmmi"),
    ],
)
def test_settings_out_of_range_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        read(TrainConfig, keys, "training")
