"""Where the results come from: date, commit, normaliser of scoring, code of each stage, hosts."""

import datetime
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lowrank_speech.reporting.systems import System


def provenance(root: Path, systems: Sequence[System]) -> list[tuple[str, str]]:
    """(what, value) for the page."""
    results = [result for system in systems for result in system.results]
    held = [(stage, manifest) for one in (*systems, *results) for stage, manifest in one.manifests.items()]
    codes: dict[str, list[str]] = {}
    for stage, manifest in held:
        if manifest.get("code"):
            codes.setdefault(stage, []).append(str(manifest["code"])[:12])
    costs = [cost for one in (*systems, *results) for cost in one.costs.values()]
    hosts = list(dict.fromkeys(str(cost["host"]) for cost in costs if cost.get("host")))
    rows = [("runs", ran(root, systems)), ("commit of this report", commit())]
    if any(result.system.type == "asr" for result in results):
        kinds = dict.fromkeys(r.normaliser.removeprefix("normaliser: ") for r in results if r.system.type == "asr")
        rows.append(("normaliser of scoring", "; ".join(kinds)))
    rows += [(f"code of {stage}", ", ".join(dict.fromkeys(found))) for stage, found in codes.items()]
    return [*rows, ("hosts", ", ".join(hosts) or "unknown")]


def ran(root: Path, systems: Sequence[System]) -> str:
    """First and last date (UTC) of the trainings, decodings and scorings, by the times of their cost files."""
    paths = [root / "train" / str(s.name) / "train.cost.json" for s in systems]
    paths += [
        root / stage / str(r) / f"{stage}.cost.json"
        for s in systems
        for r in s.results
        for stage in ("decode", "score")
    ]
    times = [path.stat().st_mtime for path in paths if path.is_file()]
    if not times:
        return "unknown"
    ends = (datetime.datetime.fromtimestamp(t, datetime.UTC).date().isoformat() for t in (min(times), max(times)))
    return " to ".join(dict.fromkeys(ends))


def commit() -> str:
    """The commit of this code, and whether files differ from it; ``unknown`` outside a git repository."""
    folder = Path(__file__).parent
    try:
        named = _git(folder, "rev-parse", "HEAD").strip()
        # Only in this package: an experiment may be in the same repository.
        changed = bool(_git(folder, "status", "--porcelain", "--", str(folder.parent)).strip())
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{named[:12]}, with changes that are not committed" if changed else named[:12]


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout
