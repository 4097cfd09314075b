"""The commands ``lowrank-speech verify`` and ``clean``: look after the folder of an experiment.

lowrank-speech verify exp/default
lowrank-speech verify exp/default --remove
lowrank-speech clean config.yaml
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from lowrank_speech.errors import UserError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON value.")]


def verify(
    experiment: Annotated[Path, typer.Argument(help="The experiment's folder (config `output`).", metavar="EXP")],
    remove: Annotated[
        bool,
        typer.Option("--remove", help="Remove the manifests of damaged artefacts: the next run makes these again."),
    ] = False,
    jobs: Annotated[int | None, typer.Option(help="Files to hash at once.  [default: one per core]", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Compare all files of an experiment with the hashes in its manifests.

    A run trusts manifests, so it does not notice a file that was truncated or edited later. Exit code 1: something
    differs.
    """
    from tqdm import tqdm

    from lowrank_speech.upkeep import verify as work

    with tqdm(unit="B", unit_scale=True, disable=not sys.stderr.isatty(), leave=False) as bar:
        found = work.verify(experiment, jobs or len(os.sched_getaffinity(0)), bar.reset, bar.update)
    if remove and found.faults:
        with _idle("verify"):
            for manifest in found.broken:
                manifest.unlink(missing_ok=True)
    if as_json:
        faults = [
            {"file": str(f.file), "manifest": str(f.manifest), "what": f.what, "detail": f.detail} for f in found.faults
        ]
        typer.echo(
            json.dumps(
                {"artefacts": found.artefacts, "files": found.files, "bytes": found.bytes, "faults": faults}, indent=2
            )
        )
    else:
        for fault in found.faults:
            typer.echo(f"{fault.what:<10} {fault.file}  ({fault.detail})")
        typer.echo(
            f"{found.artefacts} artefacts, {found.files} files, {shown(found.bytes)}: "
            + (f"{len(found.faults)} differ" if found.faults else "all are as their manifests say")
        )
        if remove and found.faults:
            typer.echo(f"removed {len(found.broken)} manifests; run the experiment, which makes these artefacts again")
        elif found.faults:
            typer.echo("to make them again: lowrank-speech verify --remove, then run the experiment")
    if found.faults:
        raise typer.Exit(1)


def clean(
    configs: Annotated[
        list[Path],
        typer.Argument(
            help="The config file of the experiment; all of them, if several write to one folder.", metavar="CONFIG..."
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    as_json: Json = False,
) -> None:
    """List what no system of an experiment needs, with sizes, ask, and remove it.

    That is what removed or renamed systems, decoders, test sets and corpora have left. Exports, and results on dev,
    stay as long as their system. With --json, or if nobody can answer, the command only lists.
    """
    from lowrank_speech.upkeep import clean as work

    for config in configs:
        if not config.is_file():
            raise UserError(f"{config} is not a file; give the config of the experiment, such as config.yaml")
    root, needed = work.opened(configs)
    if not root.is_dir():
        raise UserError(f"{root} does not exist here: nothing of {configs[0]} has run in {Path.cwd()}")
    parts = work.unneeded(root, needed)
    total = sum(part.bytes for part in parts)
    if as_json:
        listed = [{"path": str(root / part.path), "bytes": part.bytes, "files": len(part.files)} for part in parts]
        typer.echo(json.dumps({"root": str(root), "bytes": total, "unneeded": listed}, indent=2))
        if not yes:
            return
    elif not parts:
        typer.echo(f"{root}: everything is needed")
        return
    else:
        for part in parts:
            typer.echo(f"{shown(part.bytes):>10}  {root / part.path}")
        typer.echo(f"{shown(total):>10}  in {sum(len(part.files) for part in parts)} files that no system needs")
    if not yes:
        if not sys.stdin.isatty():
            typer.echo("nothing was removed; to remove them: --yes")
            return
        if not typer.confirm("Remove them?"):
            raise typer.Exit(1)
    with _idle("clean"):
        work.remove(root, parts)
    typer.echo(f"removed {shown(total)}", err=as_json)


@contextmanager
def _idle(command: str) -> Iterator[None]:
    """Keep runs out of the working directory meanwhile. UserError: one works in it."""
    from lowrank_speech.workflow.launch import alone

    try:
        with alone(f"lowrank-speech {command}"):
            yield
    except RuntimeError as error:
        raise UserError(str(error)) from error


def shown(size: int) -> str:
    """1.5 GB, 12 MB, 300 bytes."""
    for unit, bytes in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes:
            return f"{size / bytes:.1f} {unit}" if size < 10 * bytes else f"{size / bytes:.0f} {unit}"
    return f"{size} bytes"
