"""What is done, running, failed and waiting in an experiment, from its files alone.

Starts nothing and takes no lock, so it also works while a run is going on. An artefact is done if its manifest has the
settings that the config gives now, its files are there, and nothing that it was made from has changed or is still to be
made. Code and external files are not compared, because hashing them takes seconds; ``lowrank-speech plan`` does that.

    for one in status(open_experiment("config.yaml")):
        print(one.state, one.job.what, one.line)

Standard library only.
"""

import hashlib
import json
import os
import platform
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_speech.workflow import records
from lowrank_speech.workflow.experiments import Experiment
from lowrank_speech.workflow.jobs import Job, jobs
from lowrank_speech.workflow.logs import Attempt, Progress, last_attempt, progress

STATES = ("done", "running", "failed", "waiting")
METADATA = Path(".snakemake", "metadata")


@dataclass(frozen=True)
class Status:
    """``reason``: why a job waits. ``line``: the last line of the log of a running or failed job; its error, if any.

    ``progress``: of a running training.
    """

    job: Job
    state: str
    reason: str | None = None
    line: str | None = None
    progress: Progress | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "stage": self.job.stage,
            "names": dict(self.job.names),
            "state": self.state,
            "reason": self.reason,
            "manifest": self.job.manifest,
            "log": self.job.log,
            "line": self.line,
            "progress": self.progress and self.progress.as_dict(),
        }


def status(experiment: Experiment) -> list[Status]:
    """The state of every job that the report needs, each after those that it waits for."""
    found: dict[str, Status] = {}
    for job in jobs(experiment.slices, experiment.layout):
        found[job.manifest] = _status(job, experiment, found)
    return list(found.values())


def counts(found: list[Status]) -> dict[str, int]:
    """Number of jobs in each state."""
    return {state: sum(one.state == state for one in found) for state in STATES}


def _status(job: Job, experiment: Experiment, before: Mapping[str, Status]) -> Status:
    attempt = None
    if (holder := _holder(job.manifest)) is not None:
        attempt = last_attempt(job.log) or Attempt((), 0.0)
        return Status(job, "running", holder, attempt.last, progress(attempt))
    made = _time(job.manifest)
    cfg = getattr(experiment.slices, job.stage)(job.wildcards).cfg_json
    reason = "not made yet" if made is None else _stale(job, cfg)
    if reason is None:
        unmade = [before[need].job.what for need in job.needs if before[need].state != "done"]
        reason = f"waits for {unmade[0]}" + (f" and {len(unmade) - 1} more" if unmade[1:] else "") if unmade else None
    if reason is None and (made_from := _newer(job, made)):
        reason = f"{before[made_from].job.what} was made again"
    if reason is None:
        return Status(job, "done")
    logged = _time(job.log)
    if logged is not None and (made is None or logged > made):
        attempt = last_attempt(job.log)
        if attempt is not None and attempt.error is not None:
            return Status(job, "failed", reason, attempt.error)
        reason = "stopped before its end; the next run makes or continues it"
    elif made is None:
        unmade = [before[need].job.what for need in job.needs if before[need].state != "done"]
        reason = f"waits for {unmade[0]}" + (f" and {len(unmade) - 1} more" if unmade[1:] else "") if unmade else reason
    return Status(job, "waiting", reason)


def _stale(job: Job, cfg: str) -> str | None:
    """Why an artefact is not what the config asks for; see ``records``."""
    if (wrong := records.problem(job.manifest, cfg, "", recorded=True)) is not None:
        return wrong
    record = json.loads(Path(job.manifest).read_text(encoding="utf-8"))
    if record.get("cfg_sha256") != hashlib.sha256(cfg.encode()).hexdigest():
        return "its settings changed"
    return None


def _newer(job: Job, made: float) -> str | None:
    """The first manifest that was made after the artefact, and differs from the one that it was made from."""
    newer = [need for need in job.needs if (_time(need) or 0.0) > made]
    if not newer:
        return None
    known = _recorded(job.manifest).get("input_checksums") or {}
    # Older records have no name of the algorithm.
    return next((need for need in newer if str(known.get(need)).removeprefix("sha256:") != _sha256(need)), None)


def _recorded(manifest: str) -> dict[str, Any]:
    """Snakemake's record of an output; empty without one."""
    name = urlsafe_b64encode(manifest.encode()).decode()
    try:
        most = os.pathconf(METADATA, "PC_NAME_MAX") - 1
        parts = [name[i : i + most] for i in range(0, len(name), most)]
        path = METADATA.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # another version of Snakemake, another folder, or no record
        return {}


def _holder(manifest: str) -> str | None:
    """``process 123 on host`` if a stage works on the artefact, from its lock (``lowrank_speech.process.locked``)."""
    folder, name = os.path.split(manifest)
    try:
        text = Path(folder, f".{name}.lock").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    words = text.split()
    if len(words) != 4 or not words[1].isdigit():
        return "a process" if not words else text
    if words[3] != platform.node():
        return text  # on another node of a cluster, where it cannot be looked for
    return text if _alive(int(words[1])) else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""  # empty: a zombie
    except OSError:
        return True


def _time(path: str) -> float | None:
    try:
        return Path(path).stat().st_mtime
    except OSError:
        return None


def _sha256(path: str) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
