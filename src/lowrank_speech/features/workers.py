"""The processes that make a loader's batches ahead: how they start, and how they end."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

import torch
from lhotse.features.io import close_cached_file_handles
from torch.utils.data import DataLoader

from lowrank_speech.errors import UserError

# Schedulers and terminals signal all processes of a job, but the training decides when its workers end.
SECONDS_BETWEEN_LOOKS = 2.0
LEFT_TO_TRAINING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_workers: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


def start_worker(_: int, training: int) -> None:
    """Run first in each worker of the process ``training``."""
    close_cached_file_handles()  # a forked HDF5 handle would share its position with the parent
    for number in LEFT_TO_TRAINING:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(training,), daemon=True).start()


def _end_with(training: int) -> None:
    """End this process when ``training`` is gone. (Torch watches the parent; where that is a fork server, it waits for
    its workers.)"""
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            os.kill(training, 0)
        except ProcessLookupError:
            os._exit(1)


def batches_of(loader: DataLoader) -> Iterator[Any]:
    """The batches that the workers of ``loader`` make. UserError where one of them was killed.

    Signals to the job wait until a worker has reached ``start_worker``.
    """
    others = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGCHLD)
    with _signals_later():
        iterator = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # Torch's handler would raise wherever the training is when a worker dies; next() notices within seconds too.
        signal.signal(signal.SIGCHLD, handler)
    own = set(multiprocessing.active_children()) - others
    _workers.update(own)
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            # Which of these it is, and its text, depends on what the worker was doing when it was killed.
            except (RuntimeError, OSError, EOFError):
                if not connection.wait([worker.sentinel for worker in own], timeout=1.0):
                    raise
                break
            yield batch
    finally:
        del iterator  # a traceback would keep it and its workers
    raise UserError(
        "a process that reads ahead (training.workers) was killed, perhaps because memory ran out; lower workers or "
        "batch_seconds, or read in the main process (workers: 0)"
    )


@atexit.register
def _end_workers() -> None:
    """Kill the workers that are left: an error that ends the program keeps the iterator, and so the workers.

    multiprocessing's own clean-up comes after this one. It sends them SIGTERM, which they ignore, and waits forever.
    """
    for worker in _workers:
        worker.kill()


@contextlib.contextmanager
def _signals_later(numbers: Iterable[signal.Signals] = LEFT_TO_TRAINING) -> Iterator[None]:
    """Processes that start inside are born with these signals blocked; to this process they come a little later."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def context() -> BaseContext | None:
    """How workers start: None for a fork; where several processes share a training, a fork server.

    Such processes talk by threads. In Python 3.11 a fork hangs forever while a thread enters or leaves Python: the
    child waits for a lock, and the thread that holds it was not copied. The server has only one thread. What a worker
    gets must pickle.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["lowrank_speech.features.batches"])
    # It ignores SIGINT and SIGTERM itself, but would die of SIGUSR1; and it unblocks signals in this process.
    with _signals_later([signal.SIGUSR1]):
        resource_tracker.ensure_running()
    with _signals_later():
        forkserver.ensure_running()
    return found
