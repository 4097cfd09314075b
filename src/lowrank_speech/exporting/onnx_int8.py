"""Export format onnx-int8: the graphs of ``onnx`` with weights of matrices in 8 bits, one scale for each output.

onnxruntime quantises the inputs of these matrices when it runs. A dense token embedding has 8 bits and a scale for each
row. Convolutions, norms and biases stay float32.
"""

import copy
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.exporting import onnx_files, snippets
from lowrank_speech.exporting.onnx import OPSET

LOST = 0.1
"""The largest mean Kullback-Leibler divergence from the model, in nats per row. Good ones are at about 0.001."""


def check(model: Any, source: Path) -> None:
    """Raise UserError if a package is missing or too old, or the model has no probabilities to compare."""
    onnx_files.check_packages()
    if not model.has_logits:
        raise UserError(
            f"{source} has no head, so its 8-bit export cannot be checked; use --format onnx without --int8"
        )


def write(model: Any, source: Path, out: Path, opset: int = OPSET) -> dict[str, Any]:
    """Write the graphs to the folder ``out``; returns how onnxruntime's outputs compare with those of ``model``."""
    from lowrank_speech.exporting.onnx_check import outputs_in
    from lowrank_speech.exporting.onnx_graphs import part_embedding
    from lowrank_speech.exporting.probes import compared, divergence, reference

    wanted = reference(model, source)
    model = copy.deepcopy(model)
    part_embedding(model)
    onnx_files.write_graphs(model, source, out, opset)
    onnx_files.quantise(out)
    found = outputs_in(out, model, wanted)
    metrics = compared(wanted, found, float("inf"), f"the 8-bit export of {source}")
    metrics |= {"opset": opset, "divergence": divergence(wanted, found)}
    if not metrics["divergence"] <= LOST:
        raise UserError(
            f"the 8-bit export of {source} is too far from the model: {metrics['divergence']:.2g} nats per row, "
            f"at most {LOST} was expected; export it without --int8"
        )
    return metrics


def usage(model: Any, folder: Path) -> str | None:
    """Code that uses the folder with onnxruntime."""
    return snippets.onnx(model, folder)
