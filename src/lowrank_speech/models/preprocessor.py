"""Read the settings of a model's feature extractor from a model folder.

``preprocessor_config.json`` has them at its top level. transformers 5 writes ``processor_config.json``, with the same
settings under ``feature_extractor`` (or ``audio_processor``), and prefers that file if a folder has both.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.models.files import PREPROCESSOR

NESTED = ("feature_extractor", "audio_processor")


@dataclass(frozen=True)
class Preprocessor:
    """``settings`` of the feature extractor, and the ``file`` they come from; empty settings if it does not exist."""

    settings: dict[str, Any]
    file: Path


def preprocessor_files(folder: str | Path) -> dict[Path, dict[str, Any]]:
    """Path -> content of the files in ``folder`` with settings of a feature extractor; the first one takes precedence.

    Raises UserError if a file is not a JSON mapping.
    """
    found = {}
    for name in reversed(PREPROCESSOR):
        file = Path(folder) / name
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{file}: not valid JSON ({error}); use the file of the published model") from error
        if not isinstance(content, dict):
            raise UserError(f"{file}: expected a JSON mapping, got {content!r}; use the file of the published model")
        if section(file, content) is not None:
            found[file] = content
    return found


def section(file: Path, content: dict[str, Any]) -> dict[str, Any] | None:
    """The part of a file's ``content`` with the settings, or None."""
    if file.name == PREPROCESSOR[0]:
        return content
    return next((content[key] for key in NESTED if isinstance(content.get(key), dict)), None)


def read_preprocessor(folder: str | Path) -> Preprocessor:
    """The settings of the feature extractor of the model in ``folder``."""
    for file, content in preprocessor_files(folder).items():
        return Preprocessor(section(file, content), file)
    return Preprocessor({}, Path(folder) / PREPROCESSOR[0])
