"""What a decoder reads besides a model or emissions: a language model, a graph.

A decoder names a resource in a key of its settings (``lm: words3``). The workflow turns the name into the folder of the
stage that makes it, the stage decode takes that folder as an option of the same name (``--lm``), and the decoder finds
the loaded resource in ``source.resources["lm"]``.

The cases are import statements, so that the code hash of a decoder without a resource leaves that resource out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError

NAMES = ("lm",)
"""Keys of decoders that name a resource, and options of the stages decode and tune."""
MADE_BY = {"lm": "lm"}
"""Resource -> the stage that makes it."""


def load(given: Mapping[str, Path | None], settings: Any, who: str) -> dict[str, Any]:
    """Load the resources that ``settings`` name from the folders in ``given``.

    ``who``: the stage, for messages. UserError: a folder is missing or superfluous, or cannot be read.
    """
    found = {}
    for name in NAMES:
        named, folder = getattr(settings, name, None), given.get(name)
        if named is None and folder is None:
            continue
        if named is None:
            raise UserError(f"{who}: the decoder {settings.kind} names no {name}, but --{name} is {folder}; remove it")
        if folder is None:
            raise UserError(
                f"{who}: the decoder {settings.kind} reads the {name} {named!r}; give the folder of the stage "
                f"{MADE_BY[name]} as --{name}"
            )
        if not folder.exists():
            raise UserError(f"--{name}: {folder} does not exist")
        found[name] = _loaded(name, folder)
    return found


def _loaded(name: str, folder: Path) -> Any:
    match name:
        case "lm":
            from lowrank_speech.lang.lm.load import LanguageModel

            return LanguageModel.load(folder)
    raise AssertionError(name)
