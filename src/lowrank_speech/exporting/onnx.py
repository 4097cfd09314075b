"""Export format onnx: graphs for onnxruntime, with the factors.

    model.onnx    an encoder with its head: CTC, languages, or states
    encoder.onnx  Whisper's encoder, with the keys and values of the decoder's cross-attention
    decoder.onnx  Whisper's decoder, with its cache

Batches and lengths are free; an utterance's result does not depend on its batch. Beside them are tokenizer,
preprocessor and generation settings, and ``labels.json`` of a classifier. ``onnx_graphs`` describes inputs and outputs.
onnxruntime's log probabilities are those of the model within 1e-4.
"""

from pathlib import Path
from typing import Any

from lowrank_speech.exporting import onnx_files, snippets

OPSET = 18
TOLERANCE = 1e-4


def check(model: Any, source: Path) -> None:
    """Raise UserError if a package is missing or too old."""
    onnx_files.check_packages()


def write(model: Any, source: Path, out: Path, opset: int = OPSET) -> dict[str, Any]:
    """Write the graphs of ``model`` to the folder ``out``; returns how onnxruntime's outputs compare with its own."""
    from lowrank_speech.exporting.onnx_check import outputs_in
    from lowrank_speech.exporting.probes import compared, reference

    wanted = reference(model, source)
    onnx_files.write_graphs(model, source, out, opset)
    what = f"the ONNX export of {source}"
    return {"opset": opset} | compared(wanted, outputs_in(out, model, wanted), TOLERANCE, what)


def usage(model: Any, folder: Path) -> str | None:
    """Code that uses the folder with onnxruntime."""
    return snippets.onnx(model, folder)
