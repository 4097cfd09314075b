"""What a run would do and why, in words: Snakemake decides which jobs run, their manifests say what changed.

found = plan("config.yaml")
found.jobs[0].text        "its settings changed (training.lr 0.0001 -> 0.0002)"
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.settings import read, resolved
from lowrank_speech.workflow import closures
from lowrank_speech.workflow.experiments import Experiment, open_experiment, workflow_file
from lowrank_speech.workflow.jobs import Job, jobs

NEW, SETTINGS, CODE, OUTPUTS, INPUTS, OTHER = "new", "settings", "code", "outputs", "inputs", "other"
"""Kinds of reasons."""
SHOWN = 60
"""Characters of a value that a text shows."""


@dataclass(frozen=True)
class Change:
    """A setting that changed. ``before`` or ``after`` is None where the key did not exist."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key} {_short(self.before)} -> {_short(self.after)}"


@dataclass(frozen=True)
class Planned:
    """A job that would run. ``reason``: its kind; ``text``: in words; ``changes``: of settings."""

    stage: str
    names: Mapping[str, str]
    reason: str
    text: str
    changes: tuple[Change, ...] = ()

    @property
    def name(self) -> str:
        """The names in its path, such as ``wav2vec2/asr/full``."""
        return "/".join(self.names.values())

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"names": dict(self.names)}


@dataclass(frozen=True)
class Plan:
    """``total``: number of jobs of the experiment, planned or not."""

    output: str
    jobs: tuple[Planned, ...]
    total: int


def plan(config: str | Path) -> Plan:
    """What a run of the config file would do. Raises UserError if Snakemake refuses the config."""
    try:
        experiment = open_experiment(config)
    except ValueError as error:
        raise UserError(f"{config}: {error}") from error
    known = jobs(experiment.slices, experiment.layout)
    found = _dry_run(config)
    planned = {path: one for one in found["jobs"] for path in one["output"]}
    mine = [job for job in known if job.manifest in planned]
    rerun = {job.manifest: job for job in mine}
    explained = [_explained(job, experiment, planned[job.manifest], found["remade"], rerun) for job in mine]
    return Plan(experiment.layout.root, tuple(explained), len(known))


def lines(found: Plan) -> list[str]:
    """The plan for a terminal: jobs with the same stage and reason are one entry."""
    if not found.jobs:
        return [f"{found.output}: nothing would run; all {found.total} jobs are up to date"]
    groups: dict[str, dict[str, list[str]]] = {}
    for job in found.jobs:
        groups.setdefault(job.stage, {}).setdefault(job.text, []).append(job.name)
    each = ", ".join(f"{sum(map(len, texts.values()))} {stage}" for stage, texts in groups.items())
    shown = [f"{found.output}: {len(found.jobs)} of {found.total} jobs would run: {each}", ""]
    for stage, texts in groups.items():
        for text, names in texts.items():
            listed = ", ".join(filter(None, names[:6])) + (f" and {len(names) - 6} more" if names[6:] else "")
            number = f" ({len(names)})" if names[1:] else ""
            shown.append(f"{stage}{number}{' ' if listed else ''}{listed}: {text}")
    return shown


def _explained(
    job: Job, experiment: Experiment, said: Mapping[str, Any], remade: Mapping[str, str], rerun: Mapping[str, Job]
) -> Planned:
    names, manifest = dict(job.names), Path(job.manifest)

    def because(reason: str, text: str, changes: Sequence[Change] = ()) -> Planned:
        return Planned(job.stage, names, reason, text, tuple(changes))

    if not manifest.is_file():
        return because(NEW, "not made yet")
    try:
        record = json.loads(manifest.read_text(encoding="utf-8"))
        old = dict(record["cfg"])
    except (ValueError, KeyError, TypeError):
        return because(OUTPUTS, "its manifest cannot be read")
    current = getattr(experiment.slices, job.stage)(job.wildcards)
    if record.get("cfg_sha256") != hashlib.sha256(current.cfg_json.encode()).hexdigest():
        changed = list(differences(_complete(job.stage, old), _complete(job.stage, current.cfg)))
        shown = ", ".join(map(str, changed[:4])) + (f" and {len(changed) - 4} more" if changed[4:] else "")
        return because(SETTINGS, f"its settings changed ({shown})" if shown else "its settings changed", changed)
    if record.get("code") != closures.code_hash(job.stage, experiment.slices, job.wildcards):
        return because(CODE, "its code changed")
    if job.manifest in remade:
        return because(OUTPUTS, remade[job.manifest])
    stages = list(dict.fromkeys(rerun[need].stage for need in job.needs if need in rerun))
    if stages:
        return because(INPUTS, f"its input is made again first ({', '.join(stages)})")
    return because(OTHER, f"Snakemake: {_first(said['reason'])}")


def _first(reason: str) -> str:
    text = " ".join(reason.split()) or "no reason given"
    return text if len(text) <= 200 else f"{text[:197]}..."


def differences(old: Any, new: Any, key: str = "") -> Iterator[Change]:
    """The settings that differ between two mappings, with dotted names."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield Change(key, old, new)


def _complete(stage: str, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A slice with the defaults of the stage's settings class; as it is, if another version of the class made it."""
    cls = _config_of(stage)
    try:
        return dict(cfg) if cls is None else resolved(read(cls, dict(cfg), stage))
    except UserError:
        return dict(cfg)


def _config_of(stage: str) -> type | None:
    """The settings class of a stage. Statements instead of importlib, as everywhere."""
    match stage:
        case "base":
            from lowrank_speech.stages.base import Config
        case "calibrate":
            from lowrank_speech.stages.calibrate import Config
        case "features":
            from lowrank_speech.stages.features import Config
        case "factorise":
            from lowrank_speech.stages.factorise import Config
        case "train":
            from lowrank_speech.stages.train import Config
        case "report":
            from lowrank_speech.stages.report import Config
        case "score":
            from lowrank_speech.stages.score import Config
        case _:  # its manifest has the keys of its slice
            return None
    return Config


def _dry_run(config: str | Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "plan.json")
        command = [sys.executable, "-m", "lowrank_speech.workflow.dry_run", str(out)]
        command += ["--snakefile", str(workflow_file("Snakefile")), "--configfile", str(config), "--cores", "1"]
        command += ["--rerun-incomplete"]  # as those of a run that is going on, or was killed
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not out.is_file():
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            errors = [line for line in said if line.startswith("error")] or said[-1:] or ["no message"]
            raise UserError(f"{config}: {errors[0].removeprefix('error in the config: ')}")
        return json.loads(out.read_text(encoding="utf-8"))


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
