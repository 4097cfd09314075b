"""What is around a training: it alone uses its scratch folder, and a signal ends it with the code of a stop."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from lowrank_speech.training.process.signals import ending


@contextlib.contextmanager
def job(scratch: Path) -> Iterator[Callable[[], None]]:
    """Hold ``scratch`` (of several processes the first one does), and end on signals.

    Gives a function to call when outputs and manifest are complete, and not before: a run that is killed goes on from
    its last state. It empties ``scratch``; signals are too late then.
    """
    with ending() as deaf:
        # Torch takes seconds to import.
        from lowrank_speech.training.data.prepared import discard
        from lowrank_speech.training.process.checkpoint import Checkpoints
        from lowrank_speech.training.process.distributed import rank
        from lowrank_speech.training.process.lock import locked

        def over() -> None:
            deaf()
            Checkpoints(scratch).clear()
            discard(scratch)

        with locked(scratch) if rank() == 0 else contextlib.nullcontext():
            yield over
