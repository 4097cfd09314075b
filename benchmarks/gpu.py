"""Run the measurements on a GPU piece by piece, and make tables of them. gpu.sh prepares Python and calls this.

python benchmarks/gpu.py run OUT               # go on with the missing pieces, for at most nine minutes
python benchmarks/gpu.py run --rehearse OUT    # every piece at small size on the CPU
python benchmarks/gpu.py tables OUT            # write benchmarks/RESULTS-gpu.md; --to FILE writes another file
python benchmarks/gpu.py missing               # requirements of pyproject.toml that are not installed, one a line

OUT/<piece>.json is a finished piece: its rows or its error, seconds, device, versions. OUT/<piece>.log has what it
printed. A piece runs if its estimate fits the time left, else it waits for the next call. One that fails is recorded
and not repeated (--retry repeats it); one that lacks a package, data or a model says so and is tried in each call. A
call that is killed loses only the piece it was in. Imports only the standard library, so it runs before anything is
installed.
"""

import argparse
import datetime
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from gpu_pieces import CONTINUES, pieces
from gpu_tables import tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "RESULTS-gpu.md"
MINUTES, SPARE, GRACE = 9.0, 30.0, 20.0  # SPARE: seconds to end in; GRACE: between SIGTERM and SIGKILL
FINISHED = ("done", "failed")
EXTRA = ("pytest", "pytest-xdist")  # for the tests, beside pyproject's dependencies
VERSIONS = ("torch", "transformers", "peft")


class ProblemError(Exception):
    """What a person can fix; printed in one line."""


def read(out, piece):
    """The record of a piece, or None if it has none."""
    path = out / f"{piece.name}.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ProblemError(f"{path}: not JSON ({error}); remove it, and the piece runs again") from None


def write(path, record):
    """Write ``record`` atomically: a killed call leaves no half record."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def opened(out, mode):
    """Lock ``out`` for this call and check that it has results of the same ``mode``; returns the lock."""
    out.mkdir(parents=True, exist_ok=True)
    lock = (out / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ProblemError(f"{out}: another call works there; wait until it ends, or give another folder") from None
    marker = out / "mode"
    if marker.is_file() and (before := marker.read_text().strip()) != mode:
        raise ProblemError(f"{out} has results of a {before}, this is a {mode}; give another folder")
    marker.write_text(mode + "\n")
    return lock


def run(arguments, chosen, clock=time.time):
    """Run the pieces that are missing and fit; returns the number of those that are left."""
    out, end = arguments.out, arguments.started + 60 * arguments.minutes - SPARE
    lock = opened(out, "rehearsal" if arguments.rehearse else "measurement")
    left = 0
    for piece in chosen:
        before = read(out, piece) or {}
        status = before.get("status")
        if status in FINISHED and not (status == "failed" and arguments.retry):
            continue
        lacks = piece.lacks()
        seconds = end - clock()
        if lacks:
            write(out / f"{piece.name}.json", {"status": "needs", "error": f"needs {', '.join(lacks)}"})
            say(f"{piece.name}: needs {', '.join(lacks)}")
            left += 1
        elif seconds < min(piece.seconds, 60 * arguments.minutes - 2 * SPARE):
            needed = f"{piece.seconds:.0f} s estimated, {max(0, seconds):.0f} s left"
            say(f"{piece.name}: waits for the next call ({needed})")
            left += 1
        else:
            say(f"{piece.name}: about {piece.seconds:.0f} s")
            record = measured(piece, out, seconds, before)
            write(out / f"{piece.name}.json", record)
            say(f"{piece.name}: {record['status']} in {record['seconds']:.0f} s {record.get('error', '')}".rstrip())
            left += record["status"] not in FINISHED
    lock.close()
    return left


def measured(piece, out, limit, before):
    """Run one piece for at most ``limit`` seconds; returns its record.

    Status: ``done``; ``failed``; ``begun`` if time ran out, and the next call goes on or starts again with all its time
    (a piece that does not go on where it stopped fails the second time).
    """
    rows, log = (out / f"{piece.name}.rows").resolve(), out / f"{piece.name}.log"
    rows.unlink(missing_ok=True)
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        code = finished(piece.command(rows), file, limit)
    record = {"title": piece.title, "seconds": time.monotonic() - start, **where()}
    spent = before.get("spent", 0.0) + record["seconds"]
    text = log.read_text(encoding="utf-8", errors="replace")
    if code is None and (piece.kind in CONTINUES or before.get("status") != "begun"):
        return record | {"status": "begun", "spent": spent, "error": "the time ran out; the next call goes on"}
    if code is None:
        return record | {"status": "failed", "error": f"took longer than {limit:.0f} s twice"}
    try:
        found = piece.rows(rows, text)
    except (OSError, ValueError, KeyError) as error:
        found, code = [], code or f"no rows: {error}"
    if code == 0:
        return record | {"status": "done", "spent": spent, "rows": found}
    return record | {"status": "failed", "error": f"exit code {code}: {reason(text)}", "rows": found}


def finished(command, log, limit):
    """The exit code of ``command``, or None if it ran longer than ``limit`` s. No process of it stays."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def stop(number, _):
        ended(process)
        raise SystemExit(128 + number)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        return process.wait(timeout=max(1.0, limit))
    except subprocess.TimeoutExpired:
        ended(process)
        return None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def ended(process):
    """Ask the processes of ``process``'s session to end, and kill them if they do not within ``GRACE`` s."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=GRACE)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def reason(text):
    """The line of a log that says best why it ended: the last one that reports an error, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|exception|failed|killed", line, re.IGNORECASE)]
    return (errors or lines or ["it printed nothing"])[-1][:300]


def where():
    """When, on which device, with which commit and versions."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    found = {"when": now, "python": sys.version.split()[0]}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["gpu"] = output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    found["commit"] = output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    return found


def output(*command):
    """The first line that ``command`` prints, or None if it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip().splitlines() or [None])[0] if done.returncode == 0 else None


def missing():
    """The requirements of pyproject.toml, and pytest, that are not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for requirement in [*project["dependencies"], *EXTRA]:
        name = re.match(r"[\w.-]+", requirement)[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found.append(requirement)
    return found


def installed():
    """The installed versions of torch and what belongs to it, as pip constraints."""
    names = {d.name.lower(): d.version for d in importlib.metadata.distributions()}
    keep = re.compile(r"(torch|torchaudio|torchvision|triton|nvidia-.*|numpy)$")
    return [f"{name}=={version}" for name, version in sorted(names.items()) if keep.match(name)]


def say(line):
    print(line, flush=True)


def positive(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not valid; expected a number above 0")
    return value


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="run the missing pieces")
    two = commands.add_parser("tables", help="write the tables")
    for command in (one, two):
        default = Path(os.environ.get("OUT") or "gpu-results")
        command.add_argument("out", nargs="?", type=Path, default=default, metavar="OUT", help=f"default: {default}")
    one.add_argument("--rehearse", action="store_true", help="small sizes on the CPU; not results")
    one.add_argument("--minutes", type=positive, default=MINUTES, help=f"of this call; default: {MINUTES:g}")
    one.add_argument("--started", type=positive, default=time.time(), help="Unix time of the call; default: now")
    one.add_argument("--only", nargs="+", metavar="KIND", help="only pieces whose names begin with one of these")
    one.add_argument("--retry", action="store_true", help="repeat failed pieces")
    two.add_argument("--to", type=Path, help=f"default: {RESULTS.relative_to(ROOT)}")
    commands.add_parser("missing", help="print requirements that are not installed")
    commands.add_parser("installed", help="print the versions that an installation must keep")
    return parser.parse_args(argv)


def main(argv=None):
    """Returns the exit code: 0, 2 for a problem; pieces that wait or fail are no problem of the call."""
    arguments = parsed(argv)
    try:
        if arguments.command in ("missing", "installed"):
            for line in missing() if arguments.command == "missing" else installed():
                say(line)
            return 0
        if arguments.command == "tables":
            return make_tables(arguments)
        chosen = pieces(arguments.rehearse, arguments.out.resolve())
        if arguments.only:
            chosen = [piece for piece in chosen if piece.name.startswith(tuple(arguments.only))]
            if not chosen:
                names = ", ".join(piece.name for piece in pieces(arguments.rehearse, arguments.out))
                raise ProblemError(f"--only {' '.join(arguments.only)}: no such piece; expected one of: {names}")
        left = run(arguments, chosen)
        say(f"{len(chosen) - left} of {len(chosen)} pieces finished; {f'call again for {left}' if left else 'all'}")
        return 0
    except ProblemError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2


def make_tables(arguments):
    marker = arguments.out / "mode"
    rehearsal = marker.is_file() and marker.read_text().strip() == "rehearsal"
    if rehearsal and arguments.to is None:
        raise ProblemError(f"{arguments.out} has a rehearsal, which is not a result; give --to FILE to see its tables")
    chosen = pieces(rehearsal, arguments.out)
    records = {piece.name: read(arguments.out, piece) for piece in chosen}
    path = arguments.to or RESULTS
    path.write_text(tables(chosen, records, rehearsal), encoding="utf-8")
    say(str(path))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
