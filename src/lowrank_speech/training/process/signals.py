"""Stopping a training from outside: SIGTERM, SIGUSR1 and Ctrl-C ask, and the loop answers where its state is whole."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from lowrank_speech.errors import STOPPED, Stopped

log = logging.getLogger(__name__)

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@contextlib.contextmanager
def ending() -> Iterator[Callable[[], None]]:
    """The signals of ``ASKING`` end the process with the code of a stop, at once: before and after the loop, which has
    handlers of its own, nothing is lost that a state does not have.

    Gives a function after which they are ignored: with the states, a stop would take a finished run's outputs away.
    """

    def end(number: int, frame: FrameType | None) -> None:
        log.info("stopped by %s; the same command goes on from the last state", signal.Signals(number).name)
        raise SystemExit(STOPPED)  # no Exception, which libraries catch

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, end) for number in ASKING}

    def over() -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)

    try:
        yield over
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Signals(contextlib.AbstractContextManager):
    """Notes the signals of ``ASKING`` while it is open: ``received`` is the name of the last one, or None.

    A second Ctrl-C interrupts at once, and without a state.

    The handler does no more than note: torch and the disk are no place to be interrupted. Forked workers inherit it,
    and so outlive a signal to the whole process group, as SLURM sends it, until the loop lets them go. Outside the main
    thread, where Python takes no handler, signals do what they did before.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in ASKING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == "SIGINT":
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def stop(self) -> Stopped:
        """What to raise where a signal has come, to this process or to another one of the training."""
        return Stopped(f"stopped by {self.received or 'a signal to another process'}")
