"""Run the ONNX graphs of a folder on the utterances of ``probes``."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_speech.errors import UserError
from lowrank_speech.exporting.probes import Reference
from lowrank_speech.models.speech import SpeechModel


def session(path: Path) -> Any:
    """An onnxruntime session on the CPU. Raises UserError if onnxruntime cannot read the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own, without a common base
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} cannot run {path.name}: {' '.join(str(error).split())[:300]}; "
            f"install a newer one (pip install --upgrade 'lowrank-speech[onnx]'), or give a lower --opset"
        ) from error


def outputs_in(folder: Path, model: SpeechModel, wanted: Reference) -> list[Tensor]:
    """Outputs (N, V) of the graphs in ``folder`` for each utterance of ``wanted``.

    All utterances are one batch, so that padding is tested too; the decoder gets its tokens in several steps.
    """
    if model.task == "seq2seq":
        return _decoded(folder, model, wanted)
    graph = session(folder / "model.onnx")
    lengths = torch.tensor([len(features) for features in wanted.features])
    if model.family == "whisper":
        padded = nested(wanted.features)
        given = {"features": model.pad_mel(padded, lengths)}
    else:
        takes = graph.get_inputs()[0].name
        rows = wanted.waves if takes == "samples" else wanted.features
        lengths = torch.tensor([len(row) for row in rows])
        given = {takes: nested(rows)}
    given["lengths"] = lengths
    log_probs, *frames = graph.run(None, {name: np.ascontiguousarray(x.numpy()) for name, x in given.items()})
    if not frames:
        return [row[None] for row in torch.from_numpy(log_probs)]
    return [torch.from_numpy(row[:n]) for row, n in zip(log_probs, frames[0].tolist(), strict=True)]


def nested(rows: list[Tensor]) -> Tensor:
    """Rows (T, ...) padded to a batch (B, T, ...)."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _decoded(folder: Path, model: SpeechModel, wanted: Reference) -> list[Tensor]:
    encoder, decoder = session(folder / "encoder.onnx"), session(folder / "decoder.onnx")
    lengths = torch.tensor([len(features) for features in wanted.features])
    mel = model.pad_mel(nested(wanted.features), lengths)
    cross = encoder.run(None, {"features": np.ascontiguousarray(mel.numpy())})
    names = [node.name for node in decoder.get_inputs()]
    own, seen = [n for n in names if n.startswith(("key", "value"))], [n for n in names if n.startswith("cross_")]
    heads, size = model.config.decoder_attention_heads, model.config.d_model // model.config.decoder_attention_heads
    found = []
    for row, tokens in enumerate(wanted.tokens):
        given = {name: part[row : row + 1] for name, part in zip(seen, cross, strict=True)}
        cache = {name: np.zeros((1, heads, 0, size), np.float32) for name in own}
        prompt = len(tokens[0]) - len(wanted.outputs[row]) + 1
        ids, parts = tokens.numpy(), []
        for start, end in [(0, prompt), *((i, i + 1) for i in range(prompt, ids.shape[1]))]:
            log_probs, *new = decoder.run(None, {"tokens": ids[:, start:end], **cache, **given})
            cache = dict(zip(own, new, strict=True))
            parts.append(torch.from_numpy(log_probs[0]))
        found.append(torch.cat(parts)[prompt - 1 :])
    return found
