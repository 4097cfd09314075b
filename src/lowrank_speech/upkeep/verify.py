"""Compare the files of an experiment with its manifests, byte for byte.

    result = verify(Path("exp/default"), jobs=4)
    result.faults          # what is missing, truncated, or has other bytes than its manifest says

A manifest lists the files of its artefact relative to its own folder, so a copied or moved experiment verifies as well.
Later runs look at manifests only, so they do not see such a fault: without its manifest, an artefact is made again.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import cost_path, sha256
from lowrank_speech.errors import UserError

NOT_ARTEFACTS = ("logs", "scratch")
"""Folders of an experiment without artefacts."""


@dataclass(frozen=True)
class Fault:
    """A file that is not as the manifest says; ``what``: missing, size, content, unreadable."""

    file: Path
    manifest: Path
    what: str
    detail: str


@dataclass
class Result:
    """What was verified: numbers of artefacts, files and bytes, and the faults, sorted by file."""

    artefacts: int = 0
    files: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)

    @property
    def broken(self) -> list[Path]:
        """The manifests of the artefacts with a fault."""
        return sorted({fault.manifest for fault in self.faults})


def manifests(root: Path) -> Iterator[tuple[Path, dict[str, Any] | str]]:
    """Every manifest below ``root`` with its content, or with the reason why it cannot be read; sorted by path."""
    for path in sorted(root.rglob("*.json")):
        if path.name.endswith(".cost.json") or path.relative_to(root).parts[0] in NOT_ARTEFACTS:
            continue
        try:
            record = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            # Other JSON files belong to an artefact, whose manifest has their hash.
            if cost_path(path).is_file():
                yield path, " ".join(str(error).split())
            continue
        if isinstance(record, dict) and isinstance(record.get("outputs"), dict) and "cfg_sha256" in record:
            yield path, record


def verify(
    root: Path,
    jobs: int = 1,
    start: Callable[[int], object] = lambda total: None,
    progress: Callable[[int], object] = lambda done: None,
) -> Result:
    """Hash all files of all artefacts below ``root``, ``jobs`` at once.

    ``start`` gets the bytes of all files, ``progress`` those of each file that is done.

    UserError: ``root`` is not the folder of an experiment.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder of an experiment, such as exp/default")
    found, listed = Result(), []
    for manifest, record in manifests(root):
        found.artefacts += 1
        if isinstance(record, str):
            found.faults.append(Fault(manifest, manifest, "unreadable", record))
            continue
        listed += [(manifest, manifest.parent / name, facts) for name, facts in record["outputs"].items()]
    if not found.artefacts:
        raise UserError(
            f"{root} has no artefact with a manifest; give the folder of an experiment, such as exp/default"
        )
    found.files, found.bytes = len(listed), sum(facts["bytes"] for *_, facts in listed)
    start(found.bytes)

    def check(of: tuple[Path, Path, dict[str, Any]]) -> Fault | None:
        manifest, file, facts = of
        fault = _fault(file, facts)
        progress(facts["bytes"])
        return None if fault is None else Fault(file, manifest, *fault)

    with ThreadPoolExecutor(jobs) as pool:  # hashing releases the interpreter's lock
        found.faults += [fault for fault in pool.map(check, listed) if fault is not None]
    found.faults.sort(key=lambda fault: fault.file)
    return found


def _fault(file: Path, facts: dict[str, Any]) -> tuple[str, str] | None:
    try:
        actual = file.stat().st_size
        if actual != facts["bytes"]:
            return "size", f"{actual:,} bytes, the manifest says {facts['bytes']:,}"
        digest = sha256(file)
    except FileNotFoundError:
        return "missing", "the file does not exist"
    except OSError as error:
        return "unreadable", str(error.strerror)
    if digest != facts["sha256"]:
        return "content", f"sha256 {digest[:12]}..., the manifest says {facts['sha256'][:12]}..."
    return None
