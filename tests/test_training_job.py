"""The process of a training: the lock on its scratch folder, its parent process, and signals."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowrank_speech.errors import STOPPED, UserError
from lowrank_speech.process import ancestors, locked
from lowrank_speech.training.process.signals import ASKING, job

HOLD = """
import sys, time
from pathlib import Path
from lowrank_speech.process import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "scratch" / "lock"


@pytest.fixture
def holder(lock):
    """A process that holds ``lock``."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        pipe.close()


def test_a_scratch_folder_in_use_is_refused_by_name_of_its_user(holder, lock, caplog):
    caplog.set_level(logging.INFO)
    with (
        pytest.raises(UserError, match=f"scratch is in use by process {holder.pid} on .*; wait until it ends, or stop"),
        locked(lock, patience=0.5),
    ):
        pytest.fail("held twice")
    assert caplog.text.count("waiting until it ends") == 1


@pytest.mark.parametrize("end", ["killed", "over"])
def test_a_scratch_folder_is_free_when_its_user_has_ended(end, holder, lock):
    if end == "killed":
        holder.kill()
    else:
        holder.stdin.close()
    with locked(lock):
        assert str(os.getpid()) in lock.read_text()
    assert not list(lock.parent.iterdir())


def test_a_fork_does_not_hold_on(lock):
    script = HOLD.replace("print(", "import os\n    if os.fork() == 0: time.sleep(60)\n    print(")
    command = [sys.executable, "-c", script, str(lock)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
        with locked(lock, patience=1.0):
            os.killpg(process.pid, 0)  # the fork is still there
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.stdin.close()


# --- the process that started it


WATCHED = """
import os, sys, time
from lowrank_speech.process import end_with_parent
end_with_parent()
print(os.getpid(), flush=True)
time.sleep(60)
"""
# As Snakemake starts a job: a shell between the two, and here also a second one that does not `exec`.
STARTER = """
import subprocess, sys
command = "export LOWRANK_SPEECH_PARENT={parent}; bash -c '\\"$0\\" -c \\"$1\\"; true' \\"$0\\" \\"$1\\"; true"
subprocess.run(["bash", "-c", command, sys.executable, sys.argv[1]])
"""


def started(parent):
    """A process that starts a watching one by way of shells, and the number of that one."""
    command = [sys.executable, "-c", STARTER.replace("{parent}", parent), WATCHED]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with starter.stdout:
        return starter, int(starter.stdout.readline())


def ends(pid, within=10.0):
    """Whether the process ``pid`` is gone (or only to be reaped) after some seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stage_ends_with_the_snakemake_that_started_it_through_shells():
    starter, pid = started("$PPID")
    assert not ends(pid, within=0.3)
    starter.kill()
    starter.wait()
    assert ends(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stage_whose_snakemake_is_gone_already_ends_at_once():
    gone = subprocess.Popen(["true"])
    gone.wait()
    done = subprocess.run(
        [sys.executable, "-c", WATCHED], env=os.environ | {"LOWRANK_SPEECH_PARENT": str(gone.pid)}, check=False
    )
    assert done.returncode == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stage_that_is_started_by_hand_goes_on_without_its_shell():
    starter, pid = started("")
    starter.kill()
    starter.wait()
    try:
        assert not ends(pid, within=0.5)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_ancestors_are_found():
    assert os.getppid() in ancestors() and os.getpid() not in ancestors()


# --- signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_while_cuts_are_prepared_ends_with_the_code_of_a_stop(name, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before = signal.getsignal(signal.Signals[name])
    with pytest.raises(SystemExit) as stop, job(tmp_path):
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(60)
    assert stop.value.code == STOPPED
    assert f"stopped by {name}; the same command continues from the last state" in caplog.text
    assert signal.getsignal(signal.Signals[name]) is before and not list(tmp_path.iterdir())


FINISHED = """
import atexit, os, signal, sys
from pathlib import Path
from lowrank_speech.training.process.signals import job

class Last:
    def __del__(self):  # when the interpreter clears its modules
        for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
            os.kill(os.getpid(), getattr(signal, name))

def hit():
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):
        os.kill(os.getpid(), getattr(signal, name))

atexit.register(hit)
last = Last()
with job(Path(sys.argv[1])) as this:
    with this.finishing(lambda: print("cleared", flush=True)):
        if "while it is written" in sys.argv:
            hit()
    hit()
hit()
if "at once" in sys.argv:
    from lowrank_speech.process import leave
    leave(0)
sys.exit(0)
"""


@pytest.mark.parametrize("window", ["while it is written", "after it", "at once"])
def test_no_signal_fails_a_finished_run_in_any_of_the_windows_until_it_is_gone(window, tmp_path):
    """While the manifest is written, after the job, at exit, and while Python clears its modules."""
    done = subprocess.run(
        [sys.executable, "-c", FINISHED, str(tmp_path), window], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    # Snakemake got the signal too, and will make the outputs again: from the last state.
    assert (done.stdout == "cleared\n") == (window != "while it is written")


def test_handlers_are_those_of_before_where_the_run_has_not_finished(tmp_path):
    before = [signal.getsignal(number) for number in ASKING]
    with job(tmp_path):
        assert [signal.getsignal(number) for number in ASKING] != before
    assert [signal.getsignal(number) for number in ASKING] == before
