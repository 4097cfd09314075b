"""What the formats that keep transformers' layout share."""

from pathlib import Path
from typing import Any


def kept(model: Any, source: Path, out: Path) -> dict[str, Any]:
    """Write ``model`` unchanged to the folder ``out``; returns how what the folder holds compares with it."""
    from lowrank_speech.exporting.probes import compared, outputs_of, reference
    from lowrank_speech.models.folder import load_model, save_model

    wanted = reference(model, source)
    save_model(model, out, copy_from=source)
    return compared(wanted, outputs_of(load_model(out), wanted), 0.0, f"the folder for {source}")
