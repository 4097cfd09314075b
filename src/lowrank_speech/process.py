"""Stages as processes: they end with the process that started them, they lock their outputs, and no signal stops them
once their outputs are complete.

The rules export ``LOWRANK_SPEECH_PARENT=$PPID``, which in the shell of a job is Snakemake's process. Without it (if a
stage was started by hand, perhaps with nohup) the stage does not watch any process.

Imports only the standard library.
"""

import contextlib
import errno
import fcntl
import logging
import os
import platform
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn, TextIO

from lowrank_speech.errors import UserError

log = logging.getLogger(__name__)

PARENT = "LOWRANK_SPEECH_PARENT"
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SECONDS_BETWEEN_LOOKS = 2.0  # if the kernel has no pidfd
# Long enough for a training whose torchrun was killed to save its state.
PATIENCE = 60.0


def end_with_parent(pid: int | None = None) -> None:
    """Send SIGTERM to this process when ``pid`` (default: $LOWRANK_SPEECH_PARENT), one of its ancestors, has ended.

    Otherwise a stage would keep running after its Snakemake was killed, and write to the same outputs as the next run.
    """
    pid = int(os.environ.get(PARENT) or 0) if pid is None else pid
    if pid <= 1:
        return
    try:
        watched = os.pidfd_open(pid)
    except (AttributeError, OSError):  # an old kernel, not Linux, or the process has already ended
        watched = None
    # The pid may belong to another process by now.
    if pid not in ancestors():
        os.kill(os.getpid(), signal.SIGTERM)
        return
    threading.Thread(target=_wait_for, args=(pid, watched), daemon=True).start()


def _wait_for(pid: int, watched: int | None) -> None:
    # The kernel notifies us through the pidfd. PR_SET_PDEATHSIG only watches the direct parent, which may be a shell,
    # and sends its signal as soon as the thread that started this process ends.
    if watched is not None:
        poll = select.poll()
        poll.register(watched, select.POLLIN)
        poll.poll()
    while watched is None and pid in ancestors():
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)


def ignore_stops() -> None:
    """Ignore stop signals from now on, also while Python shuts down, because the outputs are complete.

    If a signal ended the process now, Snakemake would treat the job as failed and remove the outputs.
    """
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)


def leave(code: int) -> NoReturn:
    """Exit with ``code``; after a success, skip Python's shutdown, which takes a second.

    A Ctrl-C in that second would reach Snakemake before it has recorded the success.
    """
    if code:
        raise SystemExit(code)  # exit handlers end the worker processes that remain after an error
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def ancestors() -> set[int]:
    """Process ids of the ancestors of this process; without /proc, only the parent's."""
    found, pid = set(), os.getppid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            # The process name, in parentheses, may itself contain spaces and parentheses.
            pid = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


@contextlib.contextmanager
def locked(path: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold a lock on the file ``path``, which is created here and removed at the end.

    Raises UserError if another process still holds the lock after ``patience`` seconds. The kernel releases the lock of
    a killed process. The lock uses fcntl, because forked workers would keep an flock.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _acquire(path, time.monotonic() + patience)
    except OSError as error:
        raise UserError(
            f"{path} cannot be used as a lock: {error.strerror or error}; give a writable folder"
        ) from error
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _acquire(path: Path, deadline: float) -> TextIO:
    said = False
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning("%s: the file system has no locks (%s); run only one stage at a time here", path, error)
                return file
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            if time.monotonic() > deadline:
                raise UserError(
                    f"{path.parent} is in use by {holder}, which has locked {path.name}; wait until it ends, or stop it"
                ) from None
            if not said:
                log.info("%s is in use by %s; waiting until it ends", path.parent, holder)
            said = True
            time.sleep(0.2)
            continue
        # The earlier holder removed the file, so we may have locked a deleted one.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()
