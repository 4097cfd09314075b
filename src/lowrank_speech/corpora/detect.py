"""Find out which kind of corpus a folder is, and the keys of its section in a config.

Each kind may have a function ``looks_like(path) -> dict | None``: the keys of its section for the folder ``path`` apart
from ``kind`` and ``path``, or None if the folder is not of this kind. A key whose value the person must supply is None.
No code hash covers these functions (``fingerprints.py``), so improving one reruns nothing.

    >>> detect("/data/mycorpus")
    Found(kind='kaldi', keys={'kind': 'kaldi', 'path': '/data/mycorpus', 'splits': ...}, missing=('language',))
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_speech.corpora import registry
from lowrank_speech.errors import UserError

HELP = "docs/your-data.md describes the layouts"


@dataclass(frozen=True)
class Found:
    """A kind and the keys of its section in a config.

    ``missing``: required keys that the folder does not tell, for example ``language``; ``keys`` leaves them out.
    """

    kind: str
    keys: dict[str, Any]
    missing: tuple[str, ...] = ()


def candidates(path: str | Path) -> list[Found]:
    """All kinds that the folder ``path`` may be of, in the order of the registry.

    UserError: the folder does not exist or cannot be read.
    """
    root = Path(os.path.normpath(Path(path).expanduser().absolute()))
    try:
        if not root.is_dir():
            what = "is a file; give the folder that contains it" if root.exists() else "does not exist"
            raise UserError(f"{root} {what}")
        os.scandir(root).close()
        found = []
        for kind in registry.KINDS:
            looks_like = getattr(registry.module(kind), "looks_like", None)
            keys = looks_like(root) if looks_like else None
            if keys is not None:
                given = {name: value for name, value in keys.items() if value is not None}
                missing = tuple(name for name, value in keys.items() if value is None)
                found.append(Found(kind, {"kind": kind, "path": str(root), **given}, missing))
    except OSError as error:
        raise UserError(
            f"{error.filename or root} cannot be read: {error.strerror or error}; change its permissions"
        ) from error
    return found


def detect(path: str | Path) -> Found:
    """The kind of the corpus in the folder ``path``. UserError: no kind or several kinds fit it."""
    found = candidates(path)
    if not found:
        raise UserError(f"{path}: no known layout of a corpus fits this folder; write a table (kind table). {HELP}")
    if len(found) > 1:
        kinds = ", ".join(one.kind for one in found)
        raise UserError(f"{path}: several kinds of corpus fit this folder: {kinds}; choose one of them. {HELP}")
    return found[0]
