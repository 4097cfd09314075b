"""Export format lowrank: the folder with its factors, as small as the system.

``lowrank_speech.models.folder.load_model`` loads it; the plan in its config.json lists the factorised layers.
"""

from pathlib import Path
from typing import Any


def write(model: Any, source: Path, out: Path) -> dict[str, Any]:
    """Write ``model`` unchanged to the folder ``out``; returns no metrics."""
    from lowrank_speech.models.folder import save_model

    save_model(model, out, copy_from=source)
    return {}
