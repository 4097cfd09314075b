"""The export formats by name. To add one, add a file to this package, and a name and a ``case`` here.

A format is a module with

    write(model, source, out) -> dict    writes the folder ``out``; returns metrics (JSON values) for the manifest

``model`` is the ``SpeechModel`` in the folder ``source``; ``write`` may change it. Import torch inside the function.
"""

from types import ModuleType

from lowrank_speech.errors import UserError

FORMATS = ("dense", "lowrank")


def module(name: str) -> ModuleType:
    """Import the module of a format. Raises UserError with the known formats if it does not exist."""
    match name:
        case "dense":
            from lowrank_speech.exporting import dense as found
        case "lowrank":
            from lowrank_speech.exporting import lowrank as found
        case _:
            raise UserError(f"export: {name!r} is not a known format; expected one of: {', '.join(FORMATS)}")
    return found
