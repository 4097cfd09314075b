"""Write the ONNX graphs of a model and the files beside them."""

import contextlib
import importlib.metadata
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lowrank_speech.errors import UserError
from lowrank_speech.models.files import copy_files

log = logging.getLogger(__name__)

PACKAGES = {"onnx": (1, 18), "onnxscript": (0, 5), "onnxruntime": (1, 20)}
OPSETS = range(18, 25)
LABELS = "labels.json"
NOISY = ("torch.onnx", "onnxscript", "torch.export", "onnx_ir", "root")


def check_packages() -> None:
    """Raise UserError if a package for ONNX is missing or too old."""
    for name, least in PACKAGES.items():
        wanted = ".".join(map(str, least))
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(
                f"export to ONNX needs the package {name} of at least version {wanted}, which is not installed: "
                f"pip install 'lowrank-speech[onnx]'"
            ) from error
        if tuple(int(part) for part in found.split(".")[:2] if part.isdigit()) < least:
            raise UserError(
                f"export to ONNX needs {name} of at least version {wanted}, but {found} is installed: "
                f"pip install --upgrade 'lowrank-speech[onnx]'"
            )


def check_opset(opset: int) -> None:
    """Raise UserError if the graphs cannot be written for ``opset``."""
    if opset not in OPSETS:
        raise UserError(
            f"--opset is {opset}; expected {OPSETS.start} (for onnxruntime 1.14 and later) to {OPSETS.stop - 1}"
        )


def write_graphs(model: Any, source: Path, out: Path, opset: int) -> None:
    """Write graphs, tokenizer, preprocessor and labels of ``model``, the model in ``source``, to the folder ``out``."""
    check_opset(opset)
    out.mkdir(parents=True, exist_ok=True)
    copy_files(source, out, tokenizer=model.task in ("ctc", "seq2seq"))
    if model.decodes:
        model.hf.generation_config.to_json_file(out / "generation_config.json")
    if model.meta.labels:
        text = json.dumps({"labels": model.meta.labels, "priors": model.meta.priors}, indent=2, ensure_ascii=False)
        (out / LABELS).write_text(text + "\n", encoding="utf-8")
    for name, graph in _graphs(model, source).items():
        log.info("writing %s", name)
        _export(out / name, opset, graph)


class Graph(NamedTuple):
    """A module to export, example arguments, their free dimensions, and the names of inputs and outputs."""

    module: Any
    given: tuple[Any, ...]
    shapes: tuple[Any, ...]
    inputs: list[str]
    outputs: list[str]


def _graphs(model: Any, source: Path) -> dict[str, Graph]:
    """File -> graph."""
    from lowrank_speech.features.inputs import inputs_of

    if model.family != "whisper":
        return {"model.onnx": _encoding(model, inputs_of(source).normalise)}
    if model.task != "seq2seq":
        return {"model.onnx": _whisper_encoding(model)}
    return {"encoder.onnx": _prefill(model), "decoder.onnx": _step(model)}


def _encoding(model: Any, normalise: bool) -> Graph:
    import torch

    from lowrank_speech.exporting.onnx_graphs import Encoding

    module, free = Encoding(model, normalise), torch.export.Dim.DYNAMIC
    features = torch.randn(2, 16_000) if module.takes_samples else torch.randn(2, 60, model.feature_size)
    lengths = torch.tensor([features.shape[1], features.shape[1] * 2 // 3])
    outputs = {"ctc": ["log_probs", "frames"], "classify": ["log_probs"], "body": ["states", "frames"]}[model.task]
    inputs = ["samples" if module.takes_samples else "features", "lengths"]
    return Graph(module, (features, lengths), ({0: free, 1: free}, {0: free}), inputs, outputs)


def _whisper_encoding(model: Any) -> Graph:
    import torch

    from lowrank_speech.exporting.onnx_graphs import WhisperEncoding

    free = {0: torch.export.Dim.DYNAMIC}
    given = (_mel(model), torch.tensor([model.window, model.window // 2]))
    return Graph(WhisperEncoding(model), given, (free, free), ["features", "lengths"], ["log_probs"])


def _prefill(model: Any) -> Graph:
    import torch

    from lowrank_speech.exporting.onnx_graphs import Prefill

    free = {0: torch.export.Dim.DYNAMIC}
    return Graph(Prefill(model), (_mel(model),), (free,), ["features"], [f"cross_{name}" for name in _names(model)])


def _step(model: Any) -> Graph:
    import torch

    from lowrank_speech.exporting.onnx_graphs import Step

    free, config, names = torch.export.Dim.DYNAMIC, model.config, _names(model)
    heads, size = config.decoder_attention_heads, config.d_model // config.decoder_attention_heads
    cache = [torch.randn(2, heads, 3, size) for _ in names]
    cross = [torch.randn(2, heads, config.max_source_positions, size) for _ in names]
    given = (torch.ones(2, 4, dtype=torch.int64), cache, cross)
    shapes = ({0: free, 1: free}, [{0: free, 2: free}] * len(names), [{0: free}] * len(names))
    inputs = ["tokens", *names, *(f"cross_{name}" for name in names)]
    return Graph(Step(model), given, shapes, inputs, ["log_probs", *(f"new_{name}" for name in names)])


def _mel(model: Any) -> Any:
    import torch

    return torch.randn(2, model.config.num_mel_bins, model.window)


def _names(model: Any) -> list[str]:
    """Names of the decoder's cache: keys and values, layer by layer."""
    return [f"{kind}.{layer}" for layer in range(model.config.decoder_layers) for kind in ("key", "value")]


def _export(path: Path, opset: int, graph: Graph) -> None:
    import torch

    with _silent(), torch.inference_mode():
        try:
            program = torch.onnx.export(
                graph.module.eval(),
                graph.given,
                dynamo=True,
                dynamic_shapes=graph.shapes,
                input_names=graph.inputs,
                output_names=graph.outputs,
                opset_version=opset,
                verbose=False,
            )
        except Exception as error:  # of many kinds, from torch.export, onnxscript and onnx
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise UserError(
                f"torch cannot write this model ({type(graph.module.model.hf).__name__}) as ONNX: "
                f"{' '.join(str(cause).split())[:300]}; export it with --format dense or hf"
            ) from error
        program.save(path)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the exporter's remarks about packages and deprecations that have nothing to do with the model."""
    levels = {name: logging.getLogger(name).level for name in NOISY}
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def quantise(folder: Path) -> None:
    """Replace the weights of matrix products in the graphs of ``folder`` by 8-bit integers."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for path in sorted(folder.glob("*.onnx")):
        small = path.with_name(f"int8-{path.name}")
        with _silent():
            quantize_dynamic(
                path,
                small,
                op_types_to_quantize=["MatMul", "Gemm"],
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        for left in folder.glob(f"{path.name}*"):
            left.unlink()
        small.replace(path)
