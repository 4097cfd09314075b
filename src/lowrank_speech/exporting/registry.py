"""The export formats by name. To add one, add a file to this package, and a name and a ``case`` here.

A format is a module with

    write(model, source, out) -> dict    writes the folder ``out``; returns metrics (JSON values) for the manifest
    check(model, source)                 optional: raises UserError if the format does not fit, before the work starts
    usage(model, folder) -> str | None   optional: Python code for the card, which runs in the folder

``model`` is the ``SpeechModel`` in the folder ``source``; ``write`` may change it. It compares what it wrote with the
model (``exporting.probes``) and raises UserError if they differ. Import torch inside the functions.
"""

from types import ModuleType

from lowrank_speech.errors import UserError

FORMATS = ("hf", "dense", "onnx", "onnx-int8", "ctranslate2", "lowrank")
"""``lowrank`` is the earlier name of ``hf``."""


def module(name: str) -> ModuleType:
    """Import the module of a format. Raises UserError with the known formats if it does not exist."""
    match name:
        case "hf":
            from lowrank_speech.exporting import hf as found
        case "dense":
            from lowrank_speech.exporting import dense as found
        case "onnx":
            from lowrank_speech.exporting import onnx as found
        case "onnx-int8":
            from lowrank_speech.exporting import onnx_int8 as found
        case "ctranslate2":
            from lowrank_speech.exporting import ctranslate2 as found
        case "lowrank":
            from lowrank_speech.exporting import lowrank as found
        case _:
            raise UserError(f"export: {name!r} is not a known format; expected one of: {', '.join(FORMATS)}")
    return found
