"""Stop a training from outside, with SIGTERM, SIGUSR1 or Ctrl-C.

before and after the loop       the process exits at once, with the exit code of a stop: the last state is on disk
in the loop                     the loop records the signal, finishes its step, saves and exits (``Signals``)
once outputs are complete       no signal stops the process before it exits by itself: a stop would turn a finished run
                                into a failed one, and Snakemake removes the outputs of failed jobs
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
# Names the file by which a stage tells the launcher of several processes (``torchrun``) that it has finished.
FINISHED = "LOWRANK_SPEECH_FINISHED"


class Job:
    """A training that has locked its scratch folder; see ``job``."""

    def __init__(self) -> None:
        self.finished = False

    @contextlib.contextmanager
    def finishing(self, clear: Callable[[], None]) -> Iterator[None]:
        """Write the manifest of complete outputs inside; then ``clear`` removes the state. No signal stops this.

        If a signal arrives before ``clear``, the state stays: Snakemake got the same Ctrl-C, does not record the
        success, and will run the job again.
        """
        self.finished, received = True, []
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                signal.signal(number, lambda number, _: received.append(signal.Signals(number).name))
        yield
        if FINISHED in os.environ:
            Path(os.environ[FINISHED]).touch()
        if received:
            log.info("got %s after the outputs were complete; keeping the state in case they are removed", received[0])
        else:
            clear()
        ignore_stops()


@contextlib.contextmanager
def job(scratch: Path) -> Iterator[Job]:
    """Lock ``scratch`` (only in the first of several processes), and exit on signals.

    Restores the earlier signal handlers, unless the job has finished: then the process is about to exit.
    """

    def end(number: int, frame: FrameType | None) -> None:
        log.info("stopped by %s; the same command continues from the last state", signal.Signals(number).name)
        raise SystemExit(STOPPED)  # libraries would catch an Exception

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
    """Records the signals of ``ASKING`` while it is open: ``received`` is the name of the last one, or None.

    A second Ctrl-C interrupts at once, without saving a state.

    The handler only records the signal, because torch and disk writes must not be interrupted. Forked workers inherit
    it, so they survive a signal to the whole process group, as SLURM sends it, until the loop ends them. Outside the
    main thread, where Python does not allow handlers, signals keep their earlier effect.
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
        """The exception to raise after a signal to this or another process of the training."""
        return Stopped(f"stopped by {self.received or 'a signal to another process'}")
