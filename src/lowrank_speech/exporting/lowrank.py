"""Format lowrank: the folder with its factors, as small as the system is.

``lowrank_speech.models.folder.load_model`` loads it, and the plan in its config.json says which layers are factors.
"""

from pathlib import Path
from typing import Any


def write(model: Any, source: Path, out: Path) -> dict[str, Any]:
    """Write ``model`` as it is to the folder ``out``; no metrics."""
    from lowrank_speech.models.folder import save_model

    save_model(model, out, copy_from=source)
    return {}
