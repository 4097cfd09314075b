"""A small training that ends itself at a given point, for the tests of kill and resume.

python tests/training_driver.py FOLDER TASK [POINT]
    exits like a stage and writes weights.pt and metrics.jsonl to FOLDER
python tests/training_driver.py
    reads JSON lines [FOLDER, TASK] or [FOLDER, TASK, POINT] and forks a process for each, which saves the imports; its
    log goes to FOLDER/log, its exit code to stdout
"""

import json
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

import torch

from lowrank_speech.stages.common import run_stage
from lowrank_speech.training import loop
from lowrank_speech.training.config import SpecAugment, TrainConfig
from lowrank_speech.training.loop import Trainer
from lowrank_speech.training.losses.ctc import Ctc
from lowrank_speech.training.losses.seq2seq import Seq2seq
from lowrank_speech.training.process import checkpoint
from lowrank_speech.training.step import Stepper
from tiny_training import low_rank, make_cuts, trainer_of

# All that a state has to have: draws of dropout, masks and the constraint, and weights to average.
RECIPE = {
    "epochs": 3,
    "batch_seconds": 0.7,
    "lr": 0.005,
    "head_lr": 0.01,
    "dropout": 0.2,
    "spec_augment": SpecAugment(),
    "average": 2,
    "keep": "last",
}
RUNTIME = {"save_minutes": 1e-6, "device": "cpu"}  # a state after every step
FIRST, SECOND = 5, 5  # steps of the first and of the second epoch
EVALUATION = 3  # batches of dev


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name, condition, action):
    """Do ``action`` before the call of ``owner.name`` for which ``condition(self)`` first holds."""
    real, left = getattr(owner, name), [True]

    def replaced(self, *arguments, **keys):
        if left[0] and condition(self):
            left[0] = False
            action()
        return real(self, *arguments, **keys)

    setattr(owner, name, replaced)


def before_errors(condition, action):
    """``before`` the counts of the dev metric; of the two losses the training has one."""
    for loss in (Ctc, Seq2seq):
        before(loss, "errors", condition, action)


def in_evaluation(epoch):
    """Condition on a loss: the second batch of the evaluation number ``epoch``."""
    calls = []

    def holds(_):
        calls.append(None)
        return len(calls) == EVALUATION * (epoch - 1) + 2

    return holds


def bytes_written(save):
    """Condition on a file under way: in the middle of the save number ``save``."""
    files, calls = [], []

    def holds(file):
        if file not in files:
            files.append(file)
            calls.clear()
        calls.append(None)
        return len(files) == save and len(calls) == 5

    return holds


def only_saves_at(*steps):
    """As if the clock asked for no other saves."""
    real = Trainer._save
    Trainer._save = lambda self: real(self) if self.step in steps else None


def small_files():
    """From now on no file may become larger than 10 kB: to the program, a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))


def prepare(point):
    """Arrange for the end at ``point``."""
    if point == "in an epoch":  # two steps are lost
        only_saves_at(FIRST, FIRST + 1)
        before(Stepper, "step", lambda stepper: stepper.steps == FIRST + 3, kill)
    elif point == "in a save":
        before(checkpoint._Hashed, "write", bytes_written(FIRST + 3), kill)
    elif point == "in the first save":
        before(checkpoint._Hashed, "write", bytes_written(1), kill)
    elif point == "after an epoch's last step":
        before(Trainer, "_end_of_epoch", lambda trainer: trainer.state.epoch == 1, kill)
    elif point == "in an evaluation":
        before_errors(in_evaluation(2), kill)
    elif point == "after an evaluation":
        before(Trainer, "_save", lambda trainer: trainer.state.epoch == 2 and trainer.state.batch == 0, kill)
    elif point == "in the evaluation of the mean":
        before_errors(in_evaluation(4), kill)
    elif point == "at the end":
        loop.choose = lambda *_: kill()
    elif point == "SIGUSR1 in a step":
        only_saves_at(FIRST, FIRST + 2)
        before(Stepper, "step", lambda s: s.steps == FIRST + 1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    elif point == "SIGINT in a step":
        only_saves_at(FIRST, FIRST + 2)
        before(Stepper, "step", lambda s: s.steps == FIRST + 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    elif point == "SIGTERM in an evaluation":
        only_saves_at(FIRST, FIRST + SECOND)
        before_errors(in_evaluation(2), lambda: os.kill(os.getpid(), signal.SIGTERM))
    elif point == "disk full":
        before(Trainer, "_save", lambda trainer: trainer.step == FIRST + 2, small_files)
    else:
        raise ValueError(point)


def train_in(folder, task="seq2seq", **changed):
    """The training in ``folder``, from its start or its state. The trainer."""
    cuts = make_cuts(folder)
    torch.manual_seed(3)
    keys = {"ctc_weight": 0.5} if task == "seq2seq" else {}
    config = TrainConfig(**RECIPE | keys | changed)
    trainer = trainer_of(task, folder / "scratch", config, low_rank if task == "ctc" else None, **RUNTIME)
    trainer.run(cuts, cuts, folder / "metrics.jsonl")
    torch.save(trainer.model.state_dict(), folder / "weights.pt")
    return trainer


def main(folder, task, *point):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in point:
        prepare(name)
    return run_stage(lambda: train_in(Path(folder), task), "INFO")


def serve():
    """Fork for each line. The parent does what imports more, but no backward pass, whose threads no child has."""
    with tempfile.TemporaryDirectory() as folder:
        cuts = make_cuts(Path(folder))
        for task in ("ctc", "seq2seq"):
            trainer = trainer_of(task, Path(folder), TrainConfig(), device="cpu")
            list(trainer.loader.train(cuts, 60, 1, 0))
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            log = os.open(f"{job[0]}/log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 2)
            code = main(*job)
            sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]) if sys.argv[1:] else serve())
