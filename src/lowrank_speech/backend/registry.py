"""Registry of back ends: kind -> module. A new kind is one file, and one name and one case here.

A module has ``Settings`` (with ``kind``) and ``fit(inputs, truth, languages, settings)``, which returns a
``fitting.Fitted``. A kind that can read embeddings has a key ``on``. The cases are import statements because the code
hash follows them.

    >>> module("temperature").Settings().ridge
    0.001
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.settings import read
from lowrank_speech.settings_errors import nearest

KINDS = ("temperature", "affine", "gaussian", "fusion")


def module(kind: str) -> ModuleType:
    """Import and return the module of a kind. UserError: there is no such kind."""
    match kind:
        case "temperature":
            from lowrank_speech.backend import temperature as found
        case "affine":
            from lowrank_speech.backend import affine as found
        case "gaussian":
            from lowrank_speech.backend import gaussian as found
        case "fusion":
            from lowrank_speech.backend import fusion as found
        case _:
            raise UserError(f"backend: the kind {kind!r} does not exist; expected one of: {', '.join(KINDS)}")
    return found


def settings_of(section: Mapping[str, Any], where: str = "backend") -> Any:
    """The settings of a back end from its section. UserError: unknown kind, unknown key or invalid value."""
    kind = section.get("kind")
    if kind not in KINDS:
        raise UserError(
            f"{where}.kind: {kind!r} is not valid; expected one of: {', '.join(KINDS)}{nearest(str(kind), KINDS)}"
        )
    return read(module(kind).Settings, section, where)
