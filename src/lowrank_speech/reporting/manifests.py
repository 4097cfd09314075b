"""What the stages left in JSON: manifests, what a run cost, and the curves of a training.

A figure that is not there, or cannot be computed with, is None: the report shows a dash.
"""

import json
import math
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import read_manifest
from lowrank_speech.errors import UserError


def load_manifest(path: Path, stage: str) -> dict[str, Any]:
    """A stage's manifest, its ``metrics`` a dict at least empty.

    UserError with the command that makes it where the file does not exist, or with what is wrong with it.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; make it with: snakemake --cores all {path}")
    try:
        manifest = read_manifest(path, stage)
    except (ValueError, AttributeError) as error:  # not JSON, another stage's, or not a mapping
        raise UserError(
            f"{path} is not a manifest of the stage {stage}: {error}; remove it and run: snakemake --cores all {path}"
        ) from error
    return manifest | {"metrics": manifest.get("metrics") or {}}


def load_cost(path: Path) -> dict[str, Any]:
    """What the run cost that wrote the manifest ``path``, from the file beside it; empty where there is none."""
    beside = path.with_name(f"{path.name.removesuffix('.json')}.cost.json")
    if not beside.is_file():
        return {}
    try:
        cost = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{beside}: not valid JSON: {error}; remove it, the report does without") from error
    return cost if isinstance(cost, dict) else {}


def read_history(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl ({step, epoch, loss, lr, dev_loss?, dev_metric?}); [] where nothing was trained."""
    if not path.is_file():
        return []
    rows = []
    for count, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {count}: not valid JSON: {error}; train the system again") from error
    return rows


def number(value: Any) -> Any:
    """``value`` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def total(counts: Any) -> int | None:
    """Sum of counts by reason, as of ``set_aside`` and ``stopped``; None where a manifest does not have them."""
    if not isinstance(counts, dict):
        return None
    values = [number(count) for count in counts.values()]
    return None if None in values else sum(values)
