"""Read the JSON files of the stages: manifests, costs, and training curves.

A value that is missing or not finite is None, and the report shows a dash.
"""

import json
import math
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import read_manifest
from lowrank_speech.errors import UserError


def load_manifest(path: Path, stage: str) -> dict[str, Any]:
    """Read a stage's manifest; its ``metrics`` are always a dict.

    UserError: the file does not exist or is not a manifest of ``stage``; the message has the command that makes it.
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
    """The costs of the run that wrote the manifest ``path``, from the file beside it; empty if there is none."""
    beside = path.with_name(f"{path.name.removesuffix('.json')}.cost.json")
    if not beside.is_file():
        return {}
    try:
        cost = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{beside} is not valid JSON: {error}; remove it (the report then shows dashes)") from error
    return cost if isinstance(cost, dict) else {}


def read_history(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl ({step, epoch, loss, lr, dev_loss?, dev_metric?}); [] if nothing was trained."""
    if not path.is_file():
        return []
    rows = []
    for count, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {count} is not valid JSON: {error}; train the system again") from error
    return rows


def finite(value: Any) -> Any:
    """``value`` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def total(counts: Any) -> int | None:
    """Sum of counts by reason, such as ``set_aside`` and ``stopped``; None if the manifest does not have them."""
    if not isinstance(counts, dict):
        return None
    values = [finite(count) for count in counts.values()]
    return None if None in values else sum(values)
