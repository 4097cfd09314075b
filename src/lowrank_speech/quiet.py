"""Readable logs: no progress bars without a terminal, and each warning of a library only once.

Call ``quiet()`` before the libraries are imported. Imports only the standard library.
"""

import logging
import os
import sys
import warnings
from typing import ClassVar

OURS = "lowrank_speech"


def quiet() -> None:
    """Switch off progress bars unless stderr is a terminal, and drop repeated warnings of other packages."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # tqdm's default, for every library that uses it
    logging.setLoggerClass(_Once)
    warnings.showwarning = _show


class _Once(logging.Logger):
    """A logger that emits each warning of other packages only once.

    A filter on the root logger is not enough, because transformers has its own handler.
    """

    seen: ClassVar[set[tuple[str, str]]] = set()

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        if record.levelno >= logging.WARNING and record.name.partition(".")[0] != OURS:
            text = record.name, record.getMessage()
            if text in self.seen:
                return False
            self.seen.add(text)
        return super().filter(record)


def _show(message, category, filename, lineno, file=None, line=None) -> None:
    """Log a warning in one line; Python itself shows it once per place in the code."""
    logging.getLogger("warnings").warning("%s: %s", category.__name__, " ".join(str(message).split()))
