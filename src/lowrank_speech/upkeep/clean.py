"""Find what no system of an experiment's configs needs: artefacts of removed methods, test sets, decoders and so on.

    root, needed = opened([Path("config.yaml")])
    for part in unneeded(root, needed):
        print(part.path, part.bytes, len(part.files))

Exports, and results on dev, are made only when a person asks for them; they are needed as long as their system is.

A folder of the stages corpus and features has an artefact for each split, which is told by the beginning of the names
of its files; in all other stages a folder is an artefact. Logs and the states of unfinished trainings mirror the paths
of the artefacts, and go with them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lowrank_speech.errors import UserError
from lowrank_speech.workflow.experiments import open_experiment
from lowrank_speech.workflow.jobs import WILDCARDS, jobs

BY_SPLIT = ("corpus", "features")
"""Stages with an artefact for each split in one folder."""
MIRRORS = ("logs", "scratch")
ON_DEMAND = "export"
OF_TEST_SETS = ("emissions", "decode", "score")
DEV = "dev"


@dataclass(frozen=True)
class Part:
    """Files that belong together, and their size on the disk."""

    path: str
    files: tuple[Path, ...]
    bytes: int


def opened(configs: Sequence[Path]) -> tuple[Path, set[str]]:
    """The folder to which the configs write, and the manifests of all their jobs.

    UserError: a config is not valid, or they write to different folders.
    """
    needed: dict[str, set[str]] = {}
    for config in configs:
        try:
            experiment = open_experiment(config)
        except ValueError as error:
            raise UserError(f"{config}: {error}") from error
        found = {job.manifest for job in jobs(experiment.slices, experiment.layout)}
        needed.setdefault(experiment.layout.root, set()).update(found)
    if len(needed) > 1:
        raise UserError(f"the configs write to different folders ({', '.join(sorted(needed))}); clean each alone")
    ((root, manifests),) = needed.items()
    return Path(root), manifests


def unneeded(root: Path, needed: Iterable[str]) -> list[Part]:
    """What is below ``root``, but belongs to no artefact with one of the manifests ``needed``; the largest first."""
    keys = {_key(PurePosixPath(Path(manifest).relative_to(root).as_posix())) for manifest in needed}
    files = [path for path in sorted(root.rglob("*")) if path.is_symlink() or not path.is_dir()]
    inner = {file: PurePosixPath(file.relative_to(root).as_posix()) for file in files}
    kept = {file for file in files if _kept(inner[file], keys)}
    shared = {folder for file in kept for folder in inner[file].parents}
    groups: dict[str, list[Path]] = {}
    for file in files:
        if file not in kept:
            groups.setdefault(_group(inner[file], shared), []).append(file)
    parts = [Part(name, tuple(files), sum(f.lstat().st_size for f in files)) for name, files in groups.items()]
    return sorted(parts, key=lambda part: (-part.bytes, part.path))


def remove(root: Path, parts: Iterable[Part]) -> None:
    """Delete the files, and the folders that are empty then."""
    for part in parts:
        for file in part.files:
            file.unlink(missing_ok=True)
            for folder in file.parents:
                if folder == root or not folder.is_dir() or any(folder.iterdir()):
                    break
                folder.rmdir()


def _key(inner: PurePosixPath) -> tuple[str, ...]:
    """What identifies the artefact of a file: its folder, and the split where a folder has several."""
    folder, name = str(inner.parent), inner.name.removeprefix(".").split(".")[0]
    return (folder, name) if inner.parts[0] in BY_SPLIT else (folder,)


def _kept(inner: PurePosixPath, keys: set[tuple[str, ...]]) -> bool:
    stage, *rest = inner.parts
    if not rest or stage not in {*WILDCARDS, ON_DEMAND, *MIRRORS}:
        return True  # the person's own
    if stage in MIRRORS:
        return _kept(PurePosixPath(*rest), keys)
    if stage in BY_SPLIT:
        return _key(inner) in keys
    if any((str(folder),) in keys for folder in inner.parents):
        return True
    if stage == ON_DEMAND:
        return (str(PurePosixPath("train", *rest[:3])),) in keys
    if stage in OF_TEST_SETS and len(rest) > 1:
        # Results on dev stand beside those of the test sets of the same system and decoder.
        place = 4 if stage != "emissions" else 3
        beside = str(PurePosixPath(stage, *rest[:place]))
        return rest[place : place + 1] == [DEV] and any(key[0].startswith(f"{beside}/") for key in keys)
    return False


def _group(inner: PurePosixPath, shared: set[PurePosixPath]) -> str:
    """What to list an unneeded file under: its topmost folder without a kept file; ``shared``: the folders with one."""
    alone = [folder for folder in inner.parents if folder not in shared and folder.parts]
    if alone:
        return str(alone[-1])
    return f"{'/'.join(_key(inner))}.*" if inner.parts[0] in BY_SPLIT else str(inner)
