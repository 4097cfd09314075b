"""Start a stage in several processes by torchrun, and exit as the stage did.

python -m lowrank_speech.training.process.torchrun 2 lowrank_speech.stages.train --cfg ... (the stage's own arguments)

torchrun itself ends with 1 whatever its processes end with, and with 1 where a signal comes after they have finished.
Here the exit code is that of the stage: 0, 2 (a mistake that the user can mend), or 75 (stopped, continues).
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from lowrank_speech.errors import STOPPED
from lowrank_speech.process import end_with_parent, ignore_stops
from lowrank_speech.training.process.signals import FINISHED

FAILED = 1


def main(argv: Sequence[str]) -> int:
    """Run the module ``argv[1]`` with the arguments after it in ``argv[0]`` processes. The exit code."""
    with tempfile.TemporaryDirectory() as folder:
        finished = Path(folder) / "finished"
        os.environ[FINISHED] = str(finished)
        code = _run(argv)
        while True:  # torchrun's handlers raise, wherever the program is
            with contextlib.suppress(SignalException):
                ignore_stops()
                break
        return 0 if finished.exists() else code


def _run(argv: Sequence[str]) -> int:
    processes, module, *rest = argv
    handled = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    options = ["--standalone", f"--nproc-per-node={processes}", f"--signals-to-handle={handled}", "-m", module]
    end_with_parent()
    try:
        run(parse_args([*options, *rest]))
    except SignalException:
        return STOPPED
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        # Processes that waited for the one that failed are killed, and have negative codes.
        return next((code for code in (2, STOPPED) if code in codes), FAILED)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
