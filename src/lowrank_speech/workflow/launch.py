"""``make run`` and ``lowrank-speech run``: Snakemake on one experiment, then its table, or each error in one line.

    python -m lowrank_speech.workflow.launch config.yaml [arguments of snakemake ...]

Two runs in one folder would write the same files at the same time, so this program locks ``.snakemake/run.lock`` while
it runs; the lock ends with the process. Snakemake's own lock survives ``kill -9``; this program removes it if no other
process works in the folder. A dry run prints no table, and a partial run only a new one.
"""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from lowrank_speech import yaml_files
from lowrank_speech.workflow import results

STATE = Path(".snakemake")
# Options of Snakemake with which no job runs, alone, abbreviated, or among others as in -np.
DRY = re.compile(
    r"-[npqkFft]*[nhlvSD][npqkFft]*"
    r"|--(dry|lint|unlock|summary|detailed|dag|d3dag|rulegraph|filegraph|list|lt|lc|li|lp|lu|help|version|archive"
    r"|clean|cm|delete|print-comp|export|container-cleanup|containerize|conda-c|generate).*"
)
PART = re.compile(r"--until.*|-U.*|--omit.*|-O.*")
USAGE = 2
APART = 0.5
"""Seconds between a signal to the group and the same one forwarded."""


def main(argv: Sequence[str] | None = None) -> int:
    """``make run``; the exit code is Snakemake's, or 2."""
    config, *arguments = sys.argv[1:] if argv is None else argv
    try:
        if not Path(config).is_file():
            raise RuntimeError(f"the config file {config} does not exist; name one with CONFIG=")
        return launch(config, arguments, "make run")
    except (RuntimeError, ValueError) as error:
        sys.stderr.write(f"make run: {error}\n")
        return USAGE


def launch(config: str, arguments: Sequence[str], command: str) -> int:
    """Run Snakemake in the working directory and show its result; returns Snakemake's exit code.

    ``arguments``: those of Snakemake; ``command``: its name for messages. Raises ValueError if the config cannot be
    read, RuntimeError if another process works in the folder.
    """
    yaml_files.load(config)
    dry = any(DRY.fullmatch(word) for word in arguments)
    with alone(command, dry):
        started = time.time()
        code = _run([sys.executable, "-m", "snakemake", *arguments, "--configfile", config])
    if dry:
        return code
    try:
        layout = results.layout_of(config)
        part = any(PART.fullmatch(word) or word.startswith(f"{layout.root}/") for word in arguments)
        shown = (
            results.table(layout, started if part else 0.0)
            if code == 0
            else "".join(f"{line}\n" for line in results.errors(layout, started))
        )
    except (OSError, ValueError, KeyError, TypeError):
        return code  # the config cannot be read, as Snakemake has reported
    sys.stdout.flush()
    (sys.stdout if code == 0 else sys.stderr).write(shown)
    return code


@contextmanager
def alone(command: str, dry: bool = False) -> Iterator[None]:
    """Lock the working directory for ``command``, unless it is a dry run. RuntimeError: another process works in it."""
    if dry:
        yield
        return
    STATE.mkdir(exist_ok=True)
    with (STATE / "run.lock").open("a+") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise RuntimeError(f"{holder} is working in {Path.cwd()}; wait until it ends, or stop it") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        if any((STATE / "locks").glob("*")):
            _unlock(command)
        yield


def _unlock(command: str) -> None:
    """Remove the lock that a killed Snakemake left. RuntimeError: a Snakemake still runs in this folder."""
    running = list(_snakemakes(Path.cwd()))
    if running:
        raise RuntimeError(
            f"Snakemake (process {running[0]}) is working in {Path.cwd()}; wait until it ends, or stop it"
        )
    sys.stderr.write(f"{command}: the last run was killed; removing the lock that it left\n")
    for lock in (STATE / "locks").glob("*"):
        lock.unlink()


def _snakemakes(folder: Path) -> Iterator[int]:
    """Ids of other processes that run Snakemake with ``folder`` as their working directory (Linux)."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if int(process.name) != os.getpid() and _is_snakemake(command) and (process / "cwd").resolve() == folder:
                yield int(process.name)
        except OSError:  # it has ended, or belongs to another user
            continue


def _is_snakemake(command: list[str]) -> bool:
    """Whether ``command`` is ``snakemake``, ``python FOLDER/snakemake`` or ``python [options] -m snakemake``."""
    program, *rest = [Path(word).name for word in command[:5]] + [""]
    if not program.startswith("python"):
        return program == "snakemake"
    return rest[0] == "snakemake" or ("-m", "snakemake") in pairwise(rest)


def _run(command: list[str]) -> int:
    """Run ``command`` and forward signals to it, so that the command decides how to end."""
    process = subprocess.Popen(command, env={**os.environ, "LOWRANK_SPEECH_LAUNCHED": "1"})

    def forward(number: int, _: object) -> None:
        # Snakemake may have received it too (`timeout` signals the whole group). Its handler takes a lock, so a second
        # signal during the first would hang it.
        time.sleep(APART)
        process.send_signal(number)

    # Ctrl-C reaches both through the terminal.
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
        signal.SIGHUP: signal.signal(signal.SIGHUP, forward),
    }
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    raise SystemExit(main())
