"""How the processes start that make a loader's batches ahead."""

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

import torch
from lhotse.features.io import close_cached_file_handles

# Schedulers and terminals signal all processes of a job; the training decides when its workers end.
LEFT_TO_TRAINING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def start_worker(_: int) -> None:
    """What a worker does first."""
    close_cached_file_handles()  # a forked HDF5 handle would share its position with the parent
    for number in LEFT_TO_TRAINING:
        signal.signal(number, signal.SIG_IGN)


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
    # The server and its workers inherit the mask; what comes here meanwhile is only late.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_TRAINING)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return found
