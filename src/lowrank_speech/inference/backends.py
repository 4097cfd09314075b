"""The trained back end that calibrates a system's language scores."""

from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.inference.naming import Found

NONE = "none"
FILE = "backend.json"


def backend_of(found: Found, asked: str | Path | None = None) -> Any:
    """The back end in the file ``asked``; None: that of the system, if it has one; ``none``: none.

    UserError: the file is not a back end, or the system has several.
    """
    if asked == NONE:
        return None
    if asked is not None:
        path = Path(asked)
        return _load(path / FILE if path.is_dir() else path)
    if found.experiment is None or found.system is None:
        return None
    files = sorted((found.experiment / "backend" / found.system).glob(f"*/{FILE}"))
    usable = [backend for file in files if _fits(backend := _load(file))]
    if len(usable) > 1:
        named = ", ".join(str(file) for file in files)
        raise UserError(f"{found.name} has several back ends; give one of these files as --backend: {named}")
    return usable[0] if usable else None


def _fits(backend: Any) -> bool:
    """Whether a back end reads the scores of one system."""
    return len(backend.inputs) == 1 and backend.on == "scores"


def _load(file: Path) -> Any:
    from lowrank_speech.backend.model import Backend

    try:
        return Backend.load(file)
    except ValueError as error:
        raise UserError(str(error)) from error
