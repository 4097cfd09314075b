"""How the processes start that make a loader's batches ahead."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

import torch
from lhotse.features.io import close_cached_file_handles
from torch.utils.data import DataLoader

from lowrank_speech.errors import UserError

# Schedulers and terminals signal all processes of a job; the training decides when its workers end.
SECONDS_BETWEEN_LOOKS = 2.0
LEFT_TO_TRAINING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_workers: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


def start_worker(_: int, training: int) -> None:
    """What a worker of the process ``training`` does first."""
    close_cached_file_handles()  # a forked HDF5 handle would share its position with the parent
    for number in LEFT_TO_TRAINING:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(training,), daemon=True).start()


def _end_with(training: int) -> None:
    """End this process when ``training`` is gone: torch looks at the parent, which is the fork server where there is
    one, and that waits for its workers."""
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            os.kill(training, 0)
        except ProcessLookupError:
            os._exit(1)


def batches_of(loader: DataLoader) -> Iterator[Any]:
    """What the workers of ``loader`` make. UserError where one of them was killed.

    No signal to the job ends them before they have come to ``start_worker``.
    """
    others = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGCHLD)
    with _signals_later():
        iterator = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # torch's would raise wherever the training is when a worker dies; next() finds the dead one too, in seconds.
        signal.signal(signal.SIGCHLD, handler)
    own = set(multiprocessing.active_children()) - others
    _workers.update(own)
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            # Which of these it is, and with what text, depends on what the worker was at when it was killed.
            except (RuntimeError, OSError, EOFError):
                if not connection.wait([worker.sentinel for worker in own], timeout=1.0):
                    raise
                break
            yield batch
    finally:
        del iterator  # a traceback would keep it, and the workers with it
    raise UserError(
        "a process that reads ahead (training.workers) was killed, perhaps for want of memory: lower workers or "
        "batch_seconds, or read in the main process (workers: 0)"
    )


@atexit.register
def _end_workers() -> None:
    """Kill what is left: an error that ends the program keeps the iterator, and so the workers.

    multiprocessing's own end, which comes after this one, sends them SIGTERM, which they ignore, and waits for ever.
    """
    for worker in _workers:
        worker.kill()


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Processes that start within inherit that signals wait; to this process those that come are only late."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_TRAINING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def context() -> BaseContext | None:
    """What starts the workers: None, a fork; in one of several processes of a training a fork server.

    These talk by threads, and a fork while one of them enters or leaves Python hangs for ever in Python 3.11: the child
    waits for a lock whose holder it has not got. The server has one thread, and what a worker gets must pickle.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["lowrank_speech.features.batches"])
    resource_tracker.ensure_running()  # it would unblock signals
    with _signals_later():
        forkserver.ensure_running()
    return found
