"""The first steps of a training, in which only the head trains (``freeze_encoder_steps``)."""

import pytest
import torch

from lowrank_speech.lowrank.constraint import SemiOrthogonal
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.memory.bytes import SavedTensors
from tiny_training import drawn_cuts, drawn_trainer, lora, low_rank, make_cuts, trained, trainer_of, weights


@pytest.fixture
def cuts(tmp_path):
    return make_cuts(tmp_path)


def state_of(trainer):
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


@pytest.mark.parametrize(("task", "moves"), [("ctc", ("head.",)), ("seq2seq", ("hf.model.decoder.", "hf.proj_out."))])
def test_the_body_rests_for_its_first_steps(task, moves, cuts, tmp_path):
    """The head trains, and of a model that has none the decoder."""
    config = TrainConfig(epochs=1, batch_seconds=60, freeze_encoder_steps=100, keep="last")
    trainer = trainer_of(task, tmp_path, config)
    before = state_of(trainer)
    trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")
    changed = {n for n, p in state_of(trainer).items() if not torch.equal(before[n], p)}
    assert changed and all(name.startswith(moves) for name in changed)


def test_while_the_body_rests_nothing_of_it_is_kept_for_gradients(cuts, tmp_path):
    def saved(steps):
        trainer = trainer_of("ctc", tmp_path / str(steps), TrainConfig(freeze_encoder_steps=steps, dropout=0.0))
        trainer.model.train()
        kept = SavedTensors(trainer.model.parameters())
        with kept:
            trainer.stepper.step([trainer.loader.collate(list(cuts))], 10)
        assert all(p.requires_grad for p in trained(trainer).values())
        return kept.bytes, len(trained(trainer))

    (resting, one), (training, other) = saved(1), saved(0)
    assert resting < 0.2 * training and one == other


@pytest.mark.parametrize("mode", ["floating", "fixed", "exact"])
def test_the_constraint_leaves_factors_alone_that_rest(mode, tmp_path):
    def prepare(model):
        low_rank(model)
        for name, p in model.named_parameters():
            if name.endswith("first.weight"):  # far from what the constraint wants
                p.data += 0.1 * torch.randn_like(p)
        return SemiOrthogonal(model.body, mode, 0.5, 1.0, None, 1)

    trainer = drawn_trainer("ctc", tmp_path, TrainConfig(freeze_encoder_steps=2, clip=100.0), prepare)
    batch = [trainer.loader.collate(list(drawn_cuts()))]

    def moved():
        before = weights(trainer)
        assert trainer.stepper.step(batch, 10) is not None
        return {n for n, p in weights(trainer).items() if not torch.equal(before[n], p)}

    assert moved() == moved() == {"head.linear.weight", "head.linear.bias"}
    assert any(name.endswith("first.weight") for name in moved())


@pytest.mark.parametrize("scaled", [False, True])
def test_steps_in_which_all_that_trains_rests_change_nothing(scaled, tmp_path):
    """Adapters on Whisper's encoder alone; ``scaled``: with fp16's scaler."""
    config = TrainConfig(freeze_encoder_steps=2)
    trainer = drawn_trainer("seq2seq", tmp_path, config, lambda model: lora(model, targets=("*encoder.layers.*.fc1",)))
    if scaled:
        trainer.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before, batch = weights(trainer), [trainer.loader.collate(list(drawn_cuts()))]
    for _ in range(2):
        assert trainer.stepper.step(batch, 10) is not None and trainer.stepper.norm == 0.0
    assert all(torch.equal(before[n], p) for n, p in weights(trainer).items())
    assert trainer.stepper.step(batch, 10) is not None and trainer.stepper.norm > 0
    assert not all(torch.equal(before[n], p) for n, p in weights(trainer).items())
