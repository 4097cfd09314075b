"""What is around a training: it alone uses its scratch folder, and a signal ends it with the code of a stop."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lowrank_speech.training.signals import ending


@contextlib.contextmanager
def job(scratch: Path) -> Iterator[Callable[[], None]]:
    """Hold ``scratch`` (of several processes the first one does), and end on signals.

    Gives a function to call when the outputs are complete: signals are too late then.
    """
    with ending() as over:
        # Torch takes seconds to import.
        from lowrank_speech.training.distributed import rank
        from lowrank_speech.training.lock import locked

        with locked(scratch) if rank() == 0 else contextlib.nullcontext():
            yield over
