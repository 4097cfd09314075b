"""What is around a training: the lock on its scratch folder, and signals outside its loop."""

import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from lowrank_speech.errors import STOPPED, UserError
from lowrank_speech.training.process.job import job
from lowrank_speech.training.process.lock import NAME, locked

HOLD = """
import sys, time
from pathlib import Path
from lowrank_speech.training.process.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder ``scratch``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "scratch")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        pipe.close()


def test_a_scratch_folder_in_use_is_refused_by_name_of_its_user(holder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with (
        pytest.raises(UserError, match=f"scratch is in use by process {holder.pid} on .*: wait for its end, or end it"),
        locked(tmp_path / "scratch", patience=0.5),
    ):
        pytest.fail("held twice")
    assert caplog.text.count("waiting for its end") == 1


@pytest.mark.parametrize("end", ["killed", "over"])
def test_a_scratch_folder_is_free_when_its_user_has_ended(end, holder, tmp_path):
    if end == "killed":
        holder.kill()
    else:
        holder.stdin.close()
    with locked(tmp_path / "scratch"):
        assert str(os.getpid()) in (tmp_path / "scratch" / NAME).read_text()
    assert not list((tmp_path / "scratch").iterdir())


def test_a_fork_does_not_hold_on(tmp_path):
    script = HOLD.replace("print(", "import os\n    if os.fork() == 0: time.sleep(60)\n    print(")
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
        with locked(tmp_path, patience=1.0):
            os.killpg(process.pid, 0)  # the fork is still there
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.stdin.close()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_while_cuts_are_prepared_ends_with_the_code_of_a_stop(name, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before = signal.getsignal(signal.Signals[name])
    with pytest.raises(SystemExit) as stop, job(tmp_path):
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(60)
    assert stop.value.code == STOPPED
    assert f"stopped by {name}; the same command goes on from the last state" in caplog.text
    assert signal.getsignal(signal.Signals[name]) is before and not list(tmp_path.iterdir())


def test_a_signal_is_too_late_when_the_outputs_are_complete(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with job(tmp_path) as over:
        over()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    assert signal.getsignal(signal.SIGTERM) is before
