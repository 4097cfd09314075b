"""Stopping a training from outside: SIGTERM, SIGUSR1 and Ctrl-C.

before the loop, and after it   the process ends at once, with the exit code of a stop: the last state is on disk
in the loop                     the loop notes the signal, finishes its step, saves and ends (``Signals``)
from the last output on         no signal ends the process, until it is gone by itself: a stop would turn a finished
                                run into a failed one, whose outputs Snakemake removes
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from lowrank_speech.errors import STOPPED, Stopped
from lowrank_speech.process import STOPS, ignore_stops, locked

log = logging.getLogger(__name__)

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Where the launcher of several processes looks for a sign that the run has finished (``torchrun``).
FINISHED = "LOWRANK_SPEECH_FINISHED"


class Job:
    """A training that holds its scratch folder; see ``job``."""

    def __init__(self) -> None:
        self.finished = False

    @contextlib.contextmanager
    def finishing(self, clear: Callable[[], None]) -> Iterator[None]:
        """Inside, the manifest of complete outputs is written; then ``clear`` removes the state of the run.

        From here on no signal ends the process. One that comes before ``clear`` keeps the state: Snakemake has got the
        same Ctrl-C, will not note the success, and will run the job again.
        """
        self.finished, received = True, []
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                signal.signal(number, lambda number, _: received.append(signal.Signals(number).name))
        yield
        if FINISHED in os.environ:
            Path(os.environ[FINISHED]).touch()
        if received:
            log.info("%s came when the outputs were complete: the state stays, in case they are removed", received[0])
        else:
            clear()
        ignore_stops()


@contextlib.contextmanager
def job(scratch: Path) -> Iterator[Job]:
    """Hold ``scratch`` (of several processes only the first one does), and end on signals.

    The handlers of before come back unless the job is finished: then the process is about to end.
    """

    def end(number: int, frame: FrameType | None) -> None:
        log.info("stopped by %s; the same command continues from the last state", signal.Signals(number).name)
        raise SystemExit(STOPPED)  # not an Exception: libraries catch those

    before, made = {}, Job()
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, end) for number in ASKING}
    try:
        with locked(scratch / "lock") if os.environ.get("RANK", "0") == "0" else contextlib.nullcontext():
            yield made
    finally:
        for number, handler in before.items():
            if not made.finished:
                signal.signal(number, handler)


class Signals(contextlib.AbstractContextManager):
    """Notes the signals of ``ASKING`` while it is open: ``received`` is the name of the last one, or None.

    A second Ctrl-C interrupts at once, without saving a state.

    The handler only takes a note, because torch and the disk must not be interrupted. Forked workers inherit it and so
    survive a signal to the whole process group, as SLURM sends it, until the loop ends them. Outside the main thread,
    where Python takes no handler, signals do what they did before.
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
