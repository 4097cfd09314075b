"""The trial step with the largest batch, out-of-memory errors, and memory estimates of a training."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import REPOSITORY
from lowrank_speech.errors import UserError
from lowrank_speech.features.augment import Augmentation
from lowrank_speech.features.batches import Loader, batch_indices
from lowrank_speech.features.inputs import Inputs
from lowrank_speech.features.kept import ListedCuts, numbered
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training import loop, step
from lowrank_speech.training.config import FactorSgd, SpecAugment, TrainConfig
from lowrank_speech.training.data.plan import batching, survey
from lowrank_speech.training.memory import precision as precisions
from lowrank_speech.training.memory.bytes import SavedTensors, byte_counts
from lowrank_speech.training.memory.dry_run import rehearse, room_for_state
from lowrank_speech.training.memory.running_out import explained
from tiny_training import (
    drawn_cuts,
    drawn_trainer,
    full,
    lora,
    low_rank,
    low_rank_lora,
    make_cuts,
    measured,
    trained,
    weights,
)


def of(*seconds):
    return [SimpleNamespace(id=f"c{i}", duration=s) for i, s in enumerate(seconds)]


def test_the_largest_batch_has_most_seconds_with_padding_and_of_equal_ones_the_longest_cut():
    assert survey([[0, 1, 2], [3, 4], [5, 6]], np.array([1, 1, 1, 4, 1, 2, 2])) == (3, [3, 4])
    assert survey([[0, 1], [2], [3, 4, 5, 6]], np.array([2, 2, 4, 1, 1, 1, 1])) == (3, [2])
    # A model with a window pads each utterance to it.
    assert survey([[0, 1, 2], [3, 4]], np.array([1, 1, 1, 4, 1, 2, 2]), window=5.0) == (2, [0, 1, 2])
    cuts = numbered(drawn_cuts())
    batches = [[cuts[i] for i in batch] for batch in batch_indices(cuts, 1.0, 1, 0)]
    found = [cuts[i] for i in survey(batch_indices(cuts, 1.0, 1, 0), cuts.durations)[1]]
    sizes = [max(c.duration for c in batch) * len(batch) for batch in batches]
    assert len(sizes) > 2 and max(c.duration for c in found) * len(found) == max(sizes)


@pytest.mark.parametrize(
    ("task", "keys"),
    [
        ("ctc", {"accumulate": 2, "gradient_checkpointing": True}),
        ("seq2seq", {"spec_augment": SpecAugment(), "ctc_weight": 1.0}),
        ("classify", {"precision": "bf16"}),
    ],
)
def test_a_rehearsal_changes_no_result(task, keys, tmp_path):
    def run(dry_run):
        config = TrainConfig(epochs=2, batch_seconds=1.0, dropout=0.2, **keys)
        trainer = drawn_trainer(task, tmp_path / str(dry_run), config, low_rank, dry_run=dry_run)
        torch.manual_seed(3)
        np.random.seed(3)
        cuts = drawn_cuts()
        return trainer, measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl"), np.random.rand()

    one, with_it, draw = run(True)
    other, without, same = run(False)
    assert one.state.history == other.state.history and draw == same
    assert all(torch.equal(p, weights(other)[name]) for name, p in weights(one).items())
    assert with_it["bytes"]["activations"] > 0 and without["bytes"]["activations"] is None
    assert run(None)[1]["bytes"]["activations"] is None or torch.cuda.is_available()


def test_a_rehearsal_leaves_no_gradient_no_state_and_no_count(tmp_path):
    trainer = drawn_trainer("ctc", tmp_path, TrainConfig(), full)
    trainer.model.eval()
    found = rehearse(trainer.stepper, trainer.loader.collate(list(drawn_cuts())))
    assert found > 0 and trainer.step == 0 and not trainer.stepper.optimiser.state and not trainer.model.training
    assert all(p.grad is None for p in trainer.stepper.parameters)


def test_a_rehearsal_is_at_the_lowest_speed(tmp_path, monkeypatch):
    trainer = drawn_trainer("ctc", tmp_path, TrainConfig(speed=(0.5, 1.0, 2.0)), full)
    cuts = make_cuts(tmp_path)
    trainer.loader = Loader(Inputs("waveform"), augmentation=Augmentation((0.5, 1.0, 2.0)))
    met = []
    monkeypatch.setattr(loop, "rehearse", lambda _, batch: met.extend(batch["lengths"].tolist()))
    for seed in range(5):
        trainer.seed = seed
        trainer._rehearse([cuts["u0"]])
    assert met == [2 * cuts["u0"].num_samples] * 5
    assert trainer.loader.augmentation.speed == (0.5, 1.0, 2.0)


@pytest.mark.parametrize("quadratic", [None, 20.0])
def test_batches_fit_at_the_lowest_speed_too(quadratic):
    config = TrainConfig(batch_seconds=60.0, quadratic_seconds=quadratic, speed=(0.8, 1.0))
    durations = np.random.default_rng(1).uniform(2, 12, 400)
    cuts = ListedCuts(SimpleNamespace(id=f"u{i}", duration=d) for i, d in enumerate(durations))
    sizes = durations / 0.8 + (0 if quadratic is None else (durations / 0.8) ** 2 / quadratic)
    fullest = max(len(b) * sizes[b].max() for b in batch_indices(cuts, *batching(config, 1, 0)))
    assert 50 < fullest <= 60.0 + 1e-9


# --- running out


CPU_LINE = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError(CPU_LINE), MemoryError()]
)
def test_out_of_memory_names_the_batch_and_what_to_lower(error, tmp_path, monkeypatch):
    trainer = drawn_trainer("ctc", tmp_path, TrainConfig(batch_seconds=30))

    def forward(*_):
        raise error

    monkeypatch.setattr(trainer.objective, "forward", forward)
    batch = trainer.loader.collate(list(drawn_cuts())[:4])
    line = (
        r"^out of memory on a batch of 4 utterances, 2\.4 s with padding \(longest: u1, 0\.6 s\): lower "
        r"training\.batch_seconds \(now 30; `accumulate` makes up for it\), or set gradient_checkpointing: true, or "
        r"set precision: bf16 \(with adapt: lora, frozen_dtype: bf16 too\)$"
    )
    for attempt in (lambda: trainer.stepper.step([batch], 10), lambda: rehearse(trainer.stepper, batch)):
        with pytest.raises(UserError, match=line):
            attempt()


def test_memory_that_the_machine_has_not_got_is_reported_so():
    batch = {"cuts": of(1.0)}
    with (
        pytest.raises(UserError, match=r"out of memory on a batch of 1 utterance, 1\.0 s"),
        explained(batch, TrainConfig()),
    ):
        torch.empty(2**60, dtype=torch.uint8)


def test_advice_leaves_out_what_is_done_already_and_other_errors_pass():
    config = TrainConfig(precision="bf16", gradient_checkpointing=True)
    with pytest.raises(UserError) as found, explained({"cuts": of(1.0)}, config):
        raise MemoryError
    assert "checkpointing" not in str(found.value) and str(found.value).endswith(
        "or set frozen_dtype: bf16 (with adapt: lora)"
    )
    assert "batch_seconds" not in str(found.value)  # it is one utterance
    with pytest.raises(RuntimeError, match="shapes"), explained({"cuts": of(1.0)}, config):
        raise RuntimeError("shapes do not fit")


# --- bytes


@pytest.mark.parametrize(("prepare", "dtype"), [(full, "fp32"), (low_rank_lora, "fp32"), (lora, "bf16")])
def test_bytes_of_a_training_are_those_of_its_tensors(prepare, dtype, tmp_path):
    config = TrainConfig(epochs=1, batch_seconds=60, precision=dtype, frozen_dtype=dtype)
    trainer = drawn_trainer("ctc", tmp_path, config, prepare)
    held = {id(p): p.numel() * p.element_size() for p in trainer.model.parameters()}
    buffers = sum(b.numel() * b.element_size() for b in trainer.model.buffers())
    trained = {n: p.numel() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trained.pop("hf.masked_spec_embed", None)  # of transformers' SpecAugment, which is off: no gradient
    cuts = drawn_cuts()
    found = measured(trainer, cuts, cuts, tmp_path / "metrics.jsonl")["bytes"]
    assert found["weights"] == sum(held.values()) + buffers
    assert found["gradients"] == 4 * sum(trained.values())
    assert found["optimiser"] == 8 * sum(trained.values()) + 4 * len(trained)  # two moments; a step count each


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_gradients_are_counted_whether_or_not_their_optimiser_keeps_a_state(momentum, tmp_path):
    config = TrainConfig(factor_sgd=FactorSgd(lr=0.01, momentum=momentum))
    trainer = drawn_trainer("ctc", tmp_path, config, low_rank)
    trainer.stepper.step([trainer.loader.collate(list(drawn_cuts()))], 10)
    trained = [p for n, p in trainer.model.named_parameters() if p.requires_grad and "masked_spec" not in n]
    found = byte_counts((trainer.model, trainer.objective), trainer.stepper.optimiser)
    assert found["gradients"] == sum(p.nbytes for p in trained)


def test_saved_tensors_count_a_storage_once_and_no_weight():
    layer = torch.nn.Linear(8, 4, bias=False)
    x = torch.randn(16, 8)
    with SavedTensors(layer.parameters()) as kept:
        (layer(x) + layer(x)).square().sum()
    assert kept.bytes == 4 * (16 * 8 + 16 * 4)  # the layer's input once, the square's


@pytest.mark.parametrize("checkpointing", [True, False])
def test_under_checkpointing_a_layers_rounded_weights_go_with_the_layer(checkpointing, tmp_path, monkeypatch):
    """Autocast would hold them to the end of the pass; without checkpointing the backward pass needs them."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    from bench_memory import Alive

    def alive_before_the_head(folder):
        config = TrainConfig(dropout=0.0, precision="bf16", gradient_checkpointing=checkpointing)
        trainer = drawn_trainer("ctc", tmp_path / folder, config, full)
        trainer.model.train()
        batch = trainer.loader.collate(list(drawn_cuts())[:1])
        sizes = [p.numel() for name, p in trained(trainer).items() if ".layers." in name and p.dim() > 1]
        found = []
        with Alive() as alive:
            trainer.model.head.linear.register_forward_pre_hook(
                lambda *_: found.append(sum(size for _, size in alive.events))
            )
            trainer.stepper.losses(batch).total.backward()
        return found[0], 2 * sum(sizes)

    ours, weights_in_bf16 = alive_before_the_head("ours")
    monkeypatch.setattr(step, "autocast", lambda precision, device, keep: precisions.autocast(precision, device))
    held, _ = alive_before_the_head("held")
    assert held - ours >= weights_in_bf16 if checkpointing else held == ours


def test_room_for_the_optimisers_state_is_of_its_size():
    parameters = [torch.zeros(64, 64), torch.zeros(10)]

    def size(**keys):
        return sum(t.nbytes for t in room_for_state(parameters, TrainConfig(**keys)))

    assert size() == 2 * 4 * (4096 + 10) and size(optimiser="adamw8bit") == 2 * (4096 + 40)


def test_a_model_that_does_not_fit_is_an_error_of_the_user(tmp_path, monkeypatch):
    def to(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(SpeechModel, "to", to)
    with pytest.raises(UserError, match="the model itself does not fit; use a smaller base, or adapt: lora"):
        drawn_trainer("ctc", tmp_path, TrainConfig(), full)
