"""What a decoder reads besides a model or emissions: a language model, a graph.

A decoder names a resource in a key of its settings (``lm: words3``). The workflow turns the name into the folder of the
stage that makes it, the stage decode takes that folder as an option of the same name (``--lm``), and the decoder finds
the loaded resource in ``source.resources["lm"]``. A settings class lists its resources in ``reads``; without it, a
decoder reads the language model of its key ``lm``. Several keys define a graph; ``graph`` is one of them.

The cases are import statements, so that the code hash of a decoder without a resource leaves that resource out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError

NAMES = ("lm", "graph", "rescore_lm")
"""Resources, which are keys of decoders and options of the stages decode and tune."""
MADE_BY = {"lm": "lm", "graph": "graph", "rescore_lm": "lm"}
"""Resource -> the stage that makes it."""


def read_by(settings: type) -> tuple[str, ...]:
    """The resources that decoders with a settings class may read."""
    return getattr(settings, "reads", ("lm",))


def load(given: Mapping[str, Path | None], settings: Any, who: str) -> dict[str, Any]:
    """Load the resources that ``settings`` name from the folders in ``given``.

    ``who``: the stage, for messages. UserError: a folder is missing or superfluous, or cannot be read.
    """
    found = {}
    for name in NAMES:
        named = getattr(settings, name, None) if name in read_by(type(settings)) else None
        folder, option = given.get(name), f"--{name.replace('_', '-')}"
        if named is None and folder is None:
            continue
        if named is None:
            raise UserError(f"{who}: the decoder {settings.kind} reads no {name}, but {option} is {folder}; remove it")
        if folder is None:
            raise UserError(
                f"{who}: the decoder {settings.kind} reads the {name} {named!r}; give the folder of the stage "
                f"{MADE_BY[name]} as {option}"
            )
        if not folder.exists():
            raise UserError(f"{option}: {folder} does not exist")
        found[name] = _loaded(name, folder)
    return found


def _loaded(name: str, folder: Path) -> Any:
    match name:
        case "lm":
            from lowrank_speech.lang.lm.load import LanguageModel

            return LanguageModel.load(folder)
        case "graph":
            from lowrank_speech.lang.graphs.load import Graph

            return Graph.load(folder)
        case "rescore_lm":
            from lowrank_speech.lang.lm.load import LanguageModel

            return LanguageModel.load(folder)
    raise AssertionError(name)
