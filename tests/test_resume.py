"""Trainings that are killed (kill -9) or stopped by a signal resume with bit-identical results."""

import hashlib
import json
import logging
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lowrank_speech.artefact import atomic
from lowrank_speech.errors import STOPPED, Stopped
from lowrank_speech.features.batches import Loader
from lowrank_speech.stages.common import run_stage
from lowrank_speech.training import loop
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.process.checkpoint import TEMPORARY, Checkpoints, _Hashed
from lowrank_speech.training.process.rng import rng_state, set_rng_state
from lowrank_speech.training.process.signals import ASKING
from lowrank_speech.training.result import mean
from lowrank_speech.training.state import changing, copied, put
from tiny_training import interrupt, make_cuts, trainer_of
from training_driver import EVALUATION, FIRST, SECOND

TESTS = Path(__file__).parent
KILLED = [
    ("ctc", "in an epoch"),
    ("ctc", "in a save"),
    ("ctc", "in the first save"),
    ("ctc", "after an epoch's last step"),
    ("ctc", "in an evaluation"),
    ("ctc", "after an evaluation"),
    ("ctc", "in the evaluation of the mean"),
    ("ctc", "at the end"),
    ("seq2seq", "in an epoch"),
    ("seq2seq", "in an evaluation"),
]


@pytest.fixture(scope="module")
def drive():
    """A function that runs the driver: folder, task, point -> exit code and log."""
    # One thread: the driver forks.
    server = subprocess.Popen(
        [sys.executable, str(TESTS / "training_driver.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )

    def run(folder, *job):
        server.stdin.write(json.dumps([str(folder), *job]) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline()), (folder / "log").read_text()

    yield run
    server.stdin.close()
    server.wait()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, drive):
    """Folders of uninterrupted runs, by task."""
    found = {}
    for task in ("ctc", "seq2seq"):
        found[task] = tmp_path_factory.mktemp(task)
        assert drive(found[task], task)[0] == 0
    return found


def assert_as_uninterrupted(folder, whole):
    left, right = (torch.load(f / "weights.pt", weights_only=True) for f in (folder, whole))
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "point"), KILLED)
def test_killed_and_run_again_is_uninterrupted(task, point, whole, drive, tmp_path):
    code, _ = drive(tmp_path, task, point)
    assert code == -9 and not (tmp_path / "weights.pt").exists() and not (tmp_path / "metrics.jsonl").exists()
    scratch = tmp_path / "scratch"
    assert (scratch / TEMPORARY).exists() == ("save" in point)
    assert len(Checkpoints(scratch).files()) == (0 if point == "in the first save" else 2)
    code, log = drive(tmp_path, task)
    assert code == 0 and ("continuing from" in log) == (point != "in the first save")
    assert_as_uninterrupted(tmp_path, whole[task])
    assert not (scratch / TEMPORARY).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "step"),
    [("SIGUSR1 in a step", FIRST + 2), ("SIGINT in a step", FIRST + 2), ("SIGTERM in an evaluation", FIRST + SECOND)],
)
def test_a_signal_saves_and_ends_with_the_code_of_a_stop(point, step, whole, drive, tmp_path):
    code, log = drive(tmp_path, "ctc", point)
    last = log.strip().splitlines()[-1]
    assert code == STOPPED == 75
    assert (
        f" INFO stopped by {point.split()[0]}: the state is in {tmp_path}/scratch/state-{step}-" in last
        and f"step {step}" in last
    )
    assert Checkpoints(tmp_path / "scratch").files()[0].name.startswith(f"state-{step}-")
    assert "Traceback" not in log and not (tmp_path / "metrics.jsonl").exists()
    assert drive(tmp_path, "ctc")[0] == 0
    assert_as_uninterrupted(tmp_path, whole["ctc"])


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_leaves_the_state_before(whole, drive, tmp_path):
    code, log = drive(tmp_path, "ctc", "disk full")
    scratch, last = tmp_path / "scratch", log.strip().splitlines()[-1]
    kept = Checkpoints(scratch).files()
    assert code == 2 and "Traceback" not in log
    assert f"state of step {FIRST + 2} cannot be saved in {scratch}: File too large; free some space there" in last
    assert kept[0].name in last and kept[0].name.startswith(f"state-{FIRST + 1}-") and len(kept) == 2
    assert not (scratch / TEMPORARY).exists()
    assert drive(tmp_path, "ctc")[0] == 0
    assert_as_uninterrupted(tmp_path, whole["ctc"])


@pytest.mark.slow
def test_snakemake_tries_again_from_the_state(whole, tmp_path):
    program = f"{shlex.quote(sys.executable)} {shlex.quote(str(TESTS / 'training_driver.py'))}"
    (tmp_path / "Snakefile").write_text(
        'rule train:\n    output: "out/weights.pt"\n    log: "train.log"\n'
        f"    shell: \"exec {program} out ctc 'SIGUSR1 in a step' > {{log}} 2>&1\"\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--retries", "1", "--snakefile", "Snakefile"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("returned non-zero exit status 75") == 1
    assert f"continuing from out/scratch/state-{FIRST + 2}-" in (tmp_path / "train.log").read_text()
    assert_as_uninterrupted(tmp_path / "out", whole["ctc"])


# --- what is read and kept


def run_to(folder, cuts, steps=None, **changed):
    """A trainer of three epochs in ``folder`` that is stopped after ``steps`` steps, or runs to its end."""
    runtime = {"save_minutes": 1e-6} | changed
    trainer = trainer_of("ctc", folder / "scratch", TrainConfig(epochs=3, batch_seconds=0.7), **runtime)
    interrupt(trainer, steps)
    if steps is None:
        trainer.run(cuts, cuts, folder / "metrics.jsonl")
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.run(cuts, cuts, folder / "metrics.jsonl")
    return trainer


@pytest.fixture
def cuts(tmp_path):
    return make_cuts(tmp_path)


def test_nothing_is_read_of_the_batches_that_are_skipped(cuts, tmp_path, monkeypatch):
    read = []
    real = Loader.collate

    def collate(self, cuts, *draw):
        read.append([c.id for c in cuts])
        return real(self, cuts, *draw)

    monkeypatch.setattr(Loader, "collate", collate)
    run_to(tmp_path / "whole", cuts)
    everything, evaluation = list(read), read[FIRST : FIRST + EVALUATION]
    run_to(tmp_path / "killed", cuts, FIRST + 2)
    read.clear()
    run_to(tmp_path / "killed", cuts)
    # The rest of the second epoch and what comes after it, in the same order.
    assert read == everything[FIRST + EVALUATION + 2 :]
    assert evaluation == read[-EVALUATION:]


def test_the_last_two_states_are_kept(cuts, tmp_path):
    trainer = run_to(tmp_path, cuts, FIRST - 1)
    steps = [int(path.name.split("-")[1]) for path in trainer.checkpoints.files()]
    assert steps == [FIRST - 1, FIRST - 2]
    assert sorted(p.name for p in (tmp_path / "scratch").iterdir()) == sorted(
        p.name for p in trainer.checkpoints.files()
    )


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("how", ["one bit", "cut", "empty"])
def test_a_broken_state_is_named_and_the_one_before_it_taken(how, cuts, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    whole = run_to(tmp_path / "whole", cuts)
    newest, before = run_to(tmp_path / "killed", cuts, FIRST + 2).checkpoints.files()
    damage(newest, how)
    again = run_to(tmp_path / "killed", cuts)
    assert f"removing {newest}, which is broken: its checksum is" in caplog.text
    assert f"going back to the previous state, {before}" in caplog.text
    assert f"continuing from {before}: epoch 2, batch 1, step {FIRST + 1}" in caplog.text
    assert again.state.history == whole.state.history


def test_without_a_whole_state_the_training_starts_again_and_says_so(cuts, tmp_path, caplog):
    whole = run_to(tmp_path / "whole", cuts)
    for path in run_to(tmp_path / "killed", cuts, FIRST + 2).checkpoints.files():
        damage(path, "cut")
    again = run_to(tmp_path / "killed", cuts)
    assert caplog.text.count("which is broken: its checksum is") == 2
    assert f"{tmp_path / 'killed' / 'scratch'} has no complete state left: the training starts again" in caplog.text
    assert again.state.history == whole.state.history


def test_no_state_within_an_epoch_before_its_time(cuts, tmp_path):
    assert run_to(tmp_path / "long", cuts, FIRST - 1, save_minutes=10.0).checkpoints.files() == []
    files = run_to(tmp_path / "next", cuts, FIRST + 1, save_minutes=10.0).checkpoints.files()
    assert [path.name.split("-")[1] for path in files] == [str(FIRST)]


def test_a_signal_before_the_first_step_is_heard(cuts, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "rehearse", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    trainer = trainer_of("ctc", tmp_path / "scratch", TrainConfig(epochs=3, batch_seconds=0.7), dry_run=True)
    with pytest.raises(Stopped, match=r"stopped by SIGTERM: .* in .*state-1-\w+\.pt; .* continues from step 1"):
        trainer.run(cuts, cuts, tmp_path / "metrics.jsonl")


def test_handlers_are_those_of_before_when_the_run_is_over(cuts, tmp_path):
    before = [signal.getsignal(number) for number in ASKING]
    run_to(tmp_path, cuts, FIRST)
    assert [signal.getsignal(number) for number in ASKING] == before


def test_all_generators_go_on(tmp_path):
    def draw():
        return torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist(), np.random.randn(3).tolist()

    cpu = torch.device("cpu")
    np.random.randn()  # NumPy keeps the second one of a pair
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, rng_state(cpu))
    first = draw()
    assert draw() != first
    set_rng_state(checkpoints.newest()[1], cpu)
    assert draw() == first


def test_a_state_has_what_trains_and_running_statistics_once_each():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
    model[2].weight = model[0].weight  # tied
    model[0].bias.requires_grad_(False)
    model.register_buffer("constant", torch.ones(2), persistent=False)
    statistics = ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert list(changing(model)) == ["0.weight", "1.weight", "1.bias", "2.bias", *statistics]
    before = copied(changing(model))
    model(torch.randn(5, 3)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(changing(model)["1.running_mean"], before["1.running_mean"])
    after = copied(changing(model))
    put(before, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in changing(model).items())
    found = mean([before, after])
    assert torch.equal(found["1.running_mean"], after["1.running_mean"] / 2)
    assert found["1.num_batches_tracked"] == 1 and found["1.num_batches_tracked"].dtype == torch.int64


def test_a_write_of_a_part_is_finished(tmp_path):
    class Small:
        """A file without a buffer that takes seven bytes at a time."""

        def __init__(self):
            self.data = b""

        def write(self, data):
            self.data += bytes(data[:7])
            return len(data[:7])

    small = Small()
    hashed = _Hashed(small)
    assert hashed.write(b"a whole state") == 13 and small.data == b"a whole state"
    assert hashed.hash.hexdigest() == hashlib.sha256(b"a whole state").hexdigest()


def test_what_killed_runs_left_of_an_artefact_goes(tmp_path):
    (tmp_path / ".12345.tmp.model").mkdir()
    (tmp_path / ".12346.tmp.model").write_text("half")
    (tmp_path / ".12345.tmp.other").write_text("another's")
    with atomic(tmp_path / "model") as temporary:
        temporary.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".12345.tmp.other", "model"]


@pytest.mark.parametrize("library", ["python", "safetensors"])
def test_no_room_is_one_line(library, tmp_path, capsys):
    """A limit on the size of files, to the program a disk that is full."""

    def body():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            if library == "python":
                with (tmp_path / "file").open("wb", buffering=0) as file:
                    while True:
                        file.write(bytes(100_000))
            save_file({"weight": torch.zeros(100_000)}, tmp_path / "file.safetensors")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)

    assert run_stage(body, "INFO") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the disk is full: " in line and "free some space and run again" in line


def test_other_errors_keep_their_traceback():
    def body():
        raise FileNotFoundError("no such file")

    with pytest.raises(FileNotFoundError):
        run_stage(body, "INFO")
