"""Start a stage in several processes with torchrun, and exit with the stage's exit code.

python -m lowrank_speech.training.process.torchrun 2 lowrank_speech.stages.train --cfg ... (the stage's own arguments)

torchrun itself exits with 1 whenever a process fails, and also if a signal arrives after all of them have finished.
This launcher exits with the stage's code: 0, 2 (a mistake that the user can fix), or 75 (stopped, can be continued).
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
    """Run the module ``argv[1]`` with the arguments after it in ``argv[0]`` processes; returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        finished = Path(folder) / "finished"
        os.environ[FINISHED] = str(finished)
        code = _run(argv)
        while True:  # torchrun's signal handlers may raise at any point
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
        # torchrun kills the processes that waited for the failed one; their codes are negative.
        return next((code for code in (2, STOPPED) if code in codes), FAILED)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
