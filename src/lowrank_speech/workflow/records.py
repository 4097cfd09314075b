"""Find artefacts that do not match the config in ways that Snakemake cannot detect.

Snakemake compares settings, code and inputs of a job with its own record of the last run. It does not detect outputs
without a record (of another version, or in a copied results folder), missing files whose downstream files exist, and
changed external files. Every artefact's manifest (artefact.py) lists its settings, code, files and external inputs;
``problem`` compares them with the disk.

This costs a ``stat`` per output and per external file. An external file is hashed only if its size or time changed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Stats = Mapping[str, Any]


def problem(
    manifest: str,
    cfg: str,
    code: str,
    recorded: bool,
    sources: Mapping[str, str] | None = None,
) -> str | None:
    """Why the artefact of ``manifest`` has to be remade, in a few words; None: it is up to date.

    ``cfg`` (canonical JSON) and ``code``: those that the job would use now; they are compared if Snakemake has not
    ``recorded`` the last run.
    ``sources``: name -> path of the external files that the job would read now; None: they cannot be found here, and
    are not compared. If the manifest does not exist, the job runs anyway, so the result is None.
    """
    try:
        with open(manifest, encoding="utf-8") as file:
            record = json.load(file)
        outputs = record["outputs"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest cannot be read"
    folder = os.path.dirname(manifest)
    for name, described in outputs.items():
        size = _size(os.path.join(folder, name))
        if size is None:
            return f"{name} is gone"
        if size != described["bytes"]:
            return f"{name} has {size} bytes; {described['bytes']} were written"
    if not recorded and (
        record.get("cfg_sha256") != hashlib.sha256(cfg.encode()).hexdigest() or record.get("code") != code
    ):
        return "it was made with other settings or code"
    if sources is not None:
        return _changed_source(manifest, record.get("sources") or {}, sources)
    return None


def _changed_source(manifest: str, hashes: Mapping[str, str], sources: Mapping[str, str]) -> str | None:
    """The first external file that differs from the one that was read."""
    if set(hashes) != set(sources):
        name = min(set(hashes) ^ set(sources))
        return f"{name} {'is gone' if name in hashes else 'is new'}"
    states = _cost(manifest).get("sources") or {}
    for name, path in sources.items():
        found = os.stat(path)
        if states.get(name) != [found.st_size, found.st_mtime_ns] and _sha256(path) != hashes[name]:
            return f"{path} has changed"
    return None


def _cost(manifest: str) -> Stats:
    try:
        return json.loads(Path(f"{manifest.removesuffix('.json')}.cost.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
