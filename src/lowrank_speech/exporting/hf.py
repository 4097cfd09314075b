"""Export format hf: the folder with its factors, as small as the system.

After ``import lowrank_speech.hf``, transformers' own classes and pipelines load it; so does
``lowrank_speech.models.folder.load_model``.
"""

from pathlib import Path
from typing import Any

from lowrank_speech.exporting import snippets


def write(model: Any, source: Path, out: Path) -> dict[str, Any]:
    """Write ``model`` unchanged to the folder ``out``; returns how what the folder holds compares with it."""
    from lowrank_speech.exporting.folders import kept

    return kept(model, source, out)


def usage(model: Any, folder: Path) -> str | None:
    """Code that uses the folder with transformers and, for factors, this package."""
    return snippets.transformers(model, folder)
