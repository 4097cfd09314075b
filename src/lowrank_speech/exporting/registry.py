"""Which formats a system can be exported in: a new one is one file in this package, and one name and one ``case`` here.

A format is a module with

    write(model, source, out) -> dict    write the folder ``out``; metrics (JSON values) for the manifest

``model`` is the ``SpeechModel`` in the folder ``source``; ``write`` may change it. Import torch inside the function.
"""

from types import ModuleType

from lowrank_speech.errors import UserError

FORMATS = ("dense", "lowrank")


def module(name: str) -> ModuleType:
    """The module of a format, imported now; UserError that lists the known ones."""
    match name:
        case "dense":
            from lowrank_speech.exporting import dense as found
        case "lowrank":
            from lowrank_speech.exporting import lowrank as found
        case _:
            raise UserError(f"export: {name!r} is not a known format; expected one of: {', '.join(FORMATS)}")
    return found
