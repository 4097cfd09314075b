"""One training to a scratch folder: two commands on one folder would write into each other's states."""

import contextlib
import errno
import fcntl
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from lowrank_speech.errors import UserError

log = logging.getLogger(__name__)

NAME = "lock"
# A training whose torchrun was killed still saves its state.
PATIENCE = 60.0


@contextlib.contextmanager
def locked(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold ``folder``, which is made, against other processes. UserError where one still holds it after ``patience``
    seconds.

    The kernel lets a killed process's lock go. It is a lock of fcntl and not of flock, which the training's forked
    workers would hold on.
    """
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _acquire(path, time.monotonic() + patience)
    except OSError as error:
        raise UserError(f"{folder} cannot be used as a scratch folder: {error.strerror or error}") from error
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _acquire(path: Path, deadline: float) -> TextIO:
    said = False
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning("%s: this file system has no locks (%s): start one training at a time here", path, error)
                return file
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            if time.monotonic() > deadline:
                raise UserError(
                    f"{path.parent} is in use by {holder}: wait for its end, or end it; a training needs a scratch "
                    f"folder of its own"
                ) from None
            if not said:
                log.info("%s is in use by %s: waiting for its end", path.parent, holder)
            said = True
            time.sleep(0.2)
            continue
        # The one that held it removes the file: what is locked now may be gone.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()
