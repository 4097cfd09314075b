"""Read the logs of stages: the last attempt, its error, and how far a training is.

A log of a training holds several attempts. Each begins with a line ``==== stage train, code ...`` (``stages.common``).
Trainings write a line at each epoch, and on long ones every minute (``training.progress``).
"""

import os
import re
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

TAIL = 1 << 20
"""Bytes at the end of a log that are read."""
_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d+) (\w+) (.*)")
_ERROR = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ ERROR (.*)")
_ATTEMPT = re.compile(r" INFO ==== ")
_PLAN = re.compile(r"\d+ utterances, \d+ s of speech, (\d+) steps in (\d+) epochs")
_STEP = re.compile(r"step (\d+) of (\d+), epoch (\d+), loss (\S+), .* per second, ([\d:?]+) left")
_EPOCH = re.compile(r"epoch (\d+): loss (\S+), dev loss (\S+), dev error (\S+)")


@dataclass(frozen=True)
class Attempt:
    """The lines of a log's last attempt that are not empty; ``written``: when the last one was written (Unix time)."""

    lines: tuple[str, ...]
    written: float

    @property
    def error(self) -> str | None:
        """The error that ended it: the stage's own, or the last line of a traceback; else None."""
        for line in reversed(self.lines):
            if match := _ERROR.fullmatch(line):
                return match[1]
        return self.lines[-1] if any(line.startswith("Traceback (most recent") for line in self.lines) else None

    @property
    def last(self) -> str | None:
        """The last line, without its time and level."""
        if not self.lines:
            return None
        match = _LINE.fullmatch(self.lines[-1])
        return match[4] if match else self.lines[-1]


@dataclass(frozen=True)
class Progress:
    """How far a training is. ``seconds_left``: an estimate; None: not known yet. ``dev_error``: of the last epoch."""

    epoch: int
    epochs: int | None
    step: int | None
    steps: int | None
    loss: float | None
    dev_error: float | None
    seconds_left: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def last_attempt(path: str | Path) -> Attempt | None:
    """The last attempt in a log; None: there is no log."""
    try:
        with Path(path).open("rb") as file:
            state = os.fstat(file.fileno())
            file.seek(max(0, state.st_size - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    headers = [number for number, line in enumerate(lines) if _ATTEMPT.search(line)]
    found = tuple(line for line in lines[headers[-1] if headers else 0 :] if line.strip())
    return Attempt(found, state.st_mtime)


def progress(attempt: Attempt, now: float | None = None) -> Progress | None:
    """How far the training that writes this log is; None: it has not started, or the stage does not train."""
    now = time.time() if now is None else now
    epoch, steps, epochs, step, loss, dev_error, left, began, planned = (
        1,
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        False,
    )
    first = 0  # epochs that an earlier attempt did
    for line in attempt.lines:
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        at, said = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").timestamp() + int(found[2]) / 1000, found[4]
        if match := _PLAN.match(said):
            steps, epochs, began, planned = int(match[1]), int(match[2]), at, True
        elif match := _STEP.match(said):
            step, steps, epoch, loss = int(match[1]), int(match[2]), int(match[3]), _number(match[4])
            began, planned = at if began is None else began, True
            left = None if (seconds := _seconds(match[5])) is None else seconds + at
        elif match := _EPOCH.match(said):
            done, loss, dev_error, planned = int(match[1]), _number(match[2]), _number(match[4]), True
            if began is None:  # a run that continues says nothing before its first epoch ends
                first, began = done, at
            elif epochs is not None and done > first:
                left = at + (at - began) / (done - first) * (epochs - done)
            epoch = done + 1 if epochs is None else min(done + 1, epochs)
            step = steps if epochs is not None and done == epochs else step
    if not planned:
        return None
    return Progress(
        epoch, epochs, step, steps, loss, dev_error, None if left is None else max(0.0, round(left - now, 1))
    )


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if found == found and abs(found) != float("inf") else None


def _seconds(text: str) -> float | None:
    """Seconds of ``1:02:03`` or ``02:03``; None for ``?``."""
    try:
        total = 0
        for part in text.split(":"):
            total = 60 * total + int(part)
    except ValueError:
        return None
    return float(total)
