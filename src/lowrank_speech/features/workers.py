"""Start and end the worker processes that prefetch a loader's batches."""

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

# Schedulers and terminals send signals to all processes of a job, but the training decides when its workers end.
SECONDS_BETWEEN_LOOKS = 2.0
LEFT_TO_TRAINING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_workers: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


def start_worker(_: int, training: int) -> None:
    """Initialise a worker of the process ``training``."""
    close_cached_file_handles()  # a forked HDF5 handle would share its position with the parent process
    for number in LEFT_TO_TRAINING:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(training,), daemon=True).start()


def _end_with(training: int) -> None:
    """End this process when ``training`` has ended. (Torch watches the parent process, but a fork server would wait for
    its workers.)"""
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            os.kill(training, 0)
        except ProcessLookupError:
            os._exit(1)


def batches_of(loader: DataLoader) -> Iterator[Any]:
    """Yield the batches that the workers of ``loader`` make. Raises UserError if a worker was killed.

    Delays signals to a new worker until it has reached ``start_worker``.
    """
    others = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGCHLD)
    with _signals_later():
        iterator = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # If a worker dies, torch's handler would raise anywhere in the training; next() also notices within seconds.
        signal.signal(signal.SIGCHLD, handler)
    own = set(multiprocessing.active_children()) - others
    _workers.update(own)
    try:
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            # The exception and its text depend on what the worker was doing when it was killed.
            except (RuntimeError, OSError, EOFError):
                if not connection.wait([worker.sentinel for worker in own], timeout=1.0):
                    raise
                break
            yield batch
    finally:
        del iterator  # a traceback would keep it and its workers
    raise UserError(
        "a data-loading process (training.workers) was killed, perhaps because memory ran out; lower workers or "
        "batch_seconds, or load data in the main process (workers: 0)"
    )


@atexit.register
def _end_workers() -> None:
    """Kill the remaining workers: after an error that ends the program, the iterator still keeps them.

    multiprocessing's own clean-up comes later. It sends SIGTERM, which workers ignore, and waits forever.
    """
    for worker in _workers:
        worker.kill()


@contextlib.contextmanager
def _signals_later(numbers: Iterable[signal.Signals] = LEFT_TO_TRAINING) -> Iterator[None]:
    """Block these signals in processes that start inside; this process gets them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def context() -> BaseContext | None:
    """How to start workers: None for a fork, or a fork server if several processes share the training.

    Such processes communicate in threads. In Python 3.11, a fork hangs forever if a thread enters or leaves Python at
    that moment: the child waits for a lock, but the thread that holds it was not copied. The fork server has only one
    thread. Everything that a worker gets must be picklable.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["lowrank_speech.features.batches"])
    # The resource tracker ignores SIGINT and SIGTERM, but not SIGUSR1. Starting it unblocks signals in this process.
    with _signals_later([signal.SIGUSR1]):
        resource_tracker.ensure_running()
    with _signals_later():
        forkserver.ensure_running()
    return found
