"""The commands ``lowrank-speech run``, ``status`` and ``plan``: an experiment without Snakemake's own command line.

    lowrank-speech run config.yaml
    lowrank-speech run config.yaml --profile slurm -- --until train
    lowrank-speech status config.yaml --watch
    lowrank-speech plan config.yaml

Outputs go below the config's ``output``, relative to the working directory, as with ``make run``.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lowrank_speech.errors import UserError

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="Config file of the experiment.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]
EVERY = 2.0
"""Seconds between two looks of ``status --watch``."""
CLEAR = "\x1b[H\x1b[J"


def run(
    config: Config,
    snakemake: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]", help="Further arguments of snakemake, after --.")
    ] = None,
    cores: Annotated[
        str | None, typer.Option(help="Number of cores, or all.  [default: all, or those of the profile]", metavar="N")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only let Snakemake list what would run; see also `plan`.")
    ] = False,
    profile: Annotated[
        str, typer.Option(help="workstation, slurm, or a folder with a workflow profile of Snakemake.")
    ] = "workstation",
) -> None:
    """Run an experiment, from raw data to the results table; what is up to date is not made again.

    Prints the table at the end, or each error in one line. Ctrl-C stops it; the next run continues from there.
    """
    from lowrank_speech.workflow.experiments import workflow_file
    from lowrank_speech.workflow.launch import launch

    if not config.is_file():
        raise UserError(f"the config file {config} does not exist; `lowrank-speech init` writes one")
    if cores is not None and cores != "all" and not (cores.isdigit() and int(cores)):
        raise UserError(f"--cores is {cores!r}; expected a number above 0, or all")
    arguments = ["--snakefile", str(workflow_file("Snakefile")), *_profile(profile)]
    arguments += ["--cores", cores] if cores is not None else []
    arguments += ["--dry-run"] if dry_run else []
    # Snakemake takes all words after --configfile for files, and launch puts it last.
    try:
        code = launch(str(config), [*(snakemake or ()), *arguments], "lowrank-speech run")
    except RuntimeError as error:
        raise UserError(str(error)) from error
    raise typer.Exit(code)


def _profile(name: str) -> list[str]:
    """Snakemake's arguments for a profile: one of the repository, or a folder."""
    from lowrank_speech.workflow.experiments import workflow_file

    folder = Path(name)
    if folder.is_dir():
        if not list(folder.glob("config*.y*ml")):
            raise UserError(f"--profile: {name} has no config.yaml; give a folder with a profile, workstation or slurm")
        return ["--workflow-profile", name]
    known = sorted(
        path.parent.name for path in workflow_file("Snakefile").parent.glob("workflow/profiles/*/config.yaml")
    )
    if name not in known:
        raise UserError(f"--profile: {name} is neither a folder nor one of: {', '.join(known)}")
    folder = workflow_file(f"workflow/profiles/{name}/config.yaml").parent
    # The profile names this file relative to the repository.
    partitions = folder / "partitions.yaml"
    more = ["--slurm-partition-config", str(partitions)] if partitions.is_file() else []
    return ["--workflow-profile", str(folder), *more]


def status(
    config: Config,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help=f"Look again every {EVERY:g} s, until all is done.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what is done, running, failed and waiting, with the last line of the logs of running and failed jobs.

    Starts nothing, and works while a run is going on. Changed code and changed data are only seen by `plan`.
    """
    from lowrank_speech.workflow import status as workflow

    experiment = _opened(config)
    if watch and as_json:
        raise UserError("--watch shows text; leave out --json, or call the command again and again")
    while True:
        found = workflow.status(experiment)
        if as_json:
            shown = {
                "experiment": experiment.config["experiment"],
                "output": experiment.layout.root,
                "counts": workflow.counts(found),
                "jobs": [one.as_dict() for one in found],
            }
            typer.echo(json.dumps(shown, ensure_ascii=False, indent=2))
            return
        text = "\n".join(status_lines(experiment.layout.root, found))
        typer.echo(f"{CLEAR}{text}" if watch and sys.stdout.isatty() else text)
        if not watch or all(one.state == "done" for one in found):
            return
        try:
            time.sleep(EVERY)
        except KeyboardInterrupt:
            return


def status_lines(root: str, found: list[Any]) -> list[str]:
    """The state of an experiment for a terminal."""
    from lowrank_speech.workflow.status import STATES, counts

    number = counts(found)
    said = ", ".join(f"{number[state]} {state}" for state in STATES if number[state] and state != "done")
    lines = [f"{root}: {number['done']} of {len(found)} jobs done" + (f", {said}" if said else "")]
    for state in ("running", "failed"):
        for one in found:
            if one.state == state:
                lines += ["", f"{state}: {one.job.what}" + (f" ({one.reason})" if state == "running" else "")]
                lines += [f"  {progress_text(one.progress)}"] if one.progress else []
                lines += [f"  {one.line}"] if one.line else []
                lines += [f"  log: {one.job.log}"]
    waiting: dict[tuple[str, str], list[str]] = {}
    for one in found:
        if one.state == "waiting":
            kind = (one.reason or "").partition(" and ")[0]
            kind = "waits for other jobs" if kind.startswith("waits for") else kind
            waiting.setdefault((one.job.stage, kind), []).append(one.job.what.partition(" ")[2])
    if waiting:
        lines += [""]
    for (stage, why), names in waiting.items():
        listed = ", ".join(filter(None, names[:3])) + (f" and {len(names) - 3} more" if names[3:] else "")
        lines.append(f"waiting: {stage}{' ' if listed else ''}{listed}: {why}")
    return lines


def progress_text(progress: Any) -> str:
    """Epoch, step, loss and time of a training, for a terminal."""
    of = f" of {progress.epochs}" if progress.epochs is not None else ""
    parts = [f"epoch {progress.epoch}{of}"]
    if progress.step is not None:
        parts.append(f"step {progress.step} of {progress.steps}")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:g}")
    if progress.dev_error is not None:
        parts.append(f"dev error {100 * progress.dev_error:.1f} %")
    if progress.seconds_left is not None:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
        parts.append(f"about {left} left")
    return ", ".join(parts)


def plan(config: Config, as_json: Json = False) -> None:
    """Say what a run would do, and why; nothing is run.

    Needs some seconds, because Snakemake compares settings, code, inputs and external files of all jobs.
    """
    if not config.is_file():
        raise UserError(f"the config file {config} does not exist; `lowrank-speech init` writes one")
    if sys.stderr.isatty():
        typer.echo("asking Snakemake ...", err=True)
    from lowrank_speech.experiment import plan as planning

    found = planning.plan(config)
    if as_json:
        counts: dict[str, int] = {}
        for job in found.jobs:
            counts[job.stage] = counts.get(job.stage, 0) + 1
        shown = {"output": found.output, "total": found.total, "counts": counts}
        shown["jobs"] = [job.as_dict() for job in found.jobs]
        typer.echo(json.dumps(shown, ensure_ascii=False, indent=2))
        return
    typer.echo("\n".join(planning.lines(found)))


def _opened(config: Path) -> Any:
    from lowrank_speech.workflow.experiments import open_experiment

    if not config.is_file():
        raise UserError(f"the config file {config} does not exist; `lowrank-speech init` writes one")
    try:
        return open_experiment(config)
    except ValueError as error:
        raise UserError(f"{config}: {error}") from error
