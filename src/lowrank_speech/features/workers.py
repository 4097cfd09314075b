"""How the processes start that make a loader's batches ahead."""

import atexit
import contextlib
import multiprocessing
import signal
import weakref
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

import torch
from lhotse.features.io import close_cached_file_handles
from torch.utils.data import DataLoader

# Schedulers and terminals signal all processes of a job; the training decides when its workers end.
LEFT_TO_TRAINING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_workers: weakref.WeakSet[multiprocessing.process.BaseProcess] = weakref.WeakSet()


def start_worker(_: int) -> None:
    """What a worker does first."""
    close_cached_file_handles()  # a forked HDF5 handle would share its position with the parent
    for number in LEFT_TO_TRAINING:
        signal.signal(number, signal.SIG_IGN)


def started(loader: DataLoader) -> Iterator[Any]:
    """The iterator of ``loader``, whose workers no signal ends before they have come to ``start_worker``."""
    others = set(multiprocessing.active_children())
    with _signals_later():
        iterator = iter(loader)
    _workers.update(set(multiprocessing.active_children()) - others)
    return iterator


@atexit.register
def _end_workers() -> None:
    """Kill what is left: an error that ends the program keeps the iterator, and so the workers.

    multiprocessing's own end, which comes after this one, sends them SIGTERM, which they ignore, and waits for ever.
    """
    left = [worker for worker in _workers if worker.is_alive()]
    if left:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would call it an error
    for worker in left:
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
