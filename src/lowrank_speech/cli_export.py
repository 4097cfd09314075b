"""The command ``lowrank-speech export``: a model in a format for other programs.

    lowrank-speech export exp/default:wav2vec2/asr/lowrank small --format dense
    lowrank-speech export exp/default:whisper/asr/lowrank small --format ctranslate2
    lowrank-speech export small small-onnx --format onnx --int8

The libraries are imported when it runs, so that ``--help`` answers at once.
"""

import json
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lowrank_speech.cli_factorise import check_writable
from lowrank_speech.errors import UserError

Format = Literal["hf", "dense", "onnx", "ctranslate2"]


def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A system (exp/mine:base/task/method), model folder or hub name.")
    ],
    out: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write.")],
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="hf: with factors, for transformers with this package; dense: for transformers alone; onnx: for "
            "onnxruntime; ctranslate2: Whisper for faster-whisper.",
        ),
    ],
    int8: Annotated[bool, typer.Option("--int8", help="onnx: weights in 8 bits.")] = False,
    opset: Annotated[
        int | None, typer.Option(help="onnx: version of the operators.  [default: 18]", metavar="N")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DST if it exists.")] = False,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch of a hub name.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Write a model in a format for other programs, with a model card, and check that it computes the same.

    The folder appears only if its outputs agree with the model's.
    """
    options: dict[str, Any] = {}
    if form != "onnx" and int8:
        hint = (
            '; faster-whisper quantises when it loads the model (compute_type="int8")' if form == "ctranslate2" else ""
        )
        raise UserError(f"--int8 is only for --format onnx, not {form}{hint}; remove it")
    if opset is not None:
        if form != "onnx":
            raise UserError(f"--opset is only for --format onnx, not {form}; remove it")
        from lowrank_speech.exporting.onnx_files import check_opset

        check_opset(opset)
        options["opset"] = opset
    _check_target(out, overwrite)
    from lowrank_speech.inference.naming import find

    found = find(model, revision)
    if out.resolve() == found.folder.resolve():
        raise UserError(f"{out} is the model itself; name another folder")
    from lowrank_speech.exporting.about import about
    from lowrank_speech.exporting.export import export as write

    loaded = _load(found)
    name = "onnx-int8" if int8 else form
    typer.echo(f"writing {out} and comparing it with {model} ...", err=True)
    metrics = write(loaded, found.folder, name, out, about(found.folder, found.name), options)
    metrics["folder"] = str(out)
    typer.echo(json.dumps(metrics, ensure_ascii=False, allow_nan=False, indent=2) if as_json else _lines(metrics))


def _load(found: Any) -> Any:
    """The model, quietly: transformers and its exporters log much that has nothing to do with it."""
    from transformers import logging as hf_logging

    from lowrank_speech.models.registry import family_of
    from lowrank_speech.models.sources import Source, import_model

    hf_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = found.config
    family = family_of(config.get("model_type"), str(found.folder / "config.json"))
    named = (config.get("architectures") or [""])[0]
    loaded = import_model(Source(found.folder, found.revision), family)
    if not found.ours and named.endswith("Classification"):
        raise UserError(
            f"{found.name} is a {named}, whose classes this package does not read; train a system for languages on it, "
            f"and export that"
        )
    return loaded


def _check_target(out: Path, overwrite: bool) -> None:
    """Raise UserError, before anything expensive, if ``out`` cannot be written."""
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists: remove it, name another folder, or give --overwrite")
    if out.is_file():
        raise UserError(f"{out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "README.md").is_file():
        raise UserError(f"{out} is a folder without README.md, so no export; remove it yourself, or name another one")
    check_writable(out)


def _lines(metrics: dict[str, Any]) -> str:
    parameters, dense = metrics["parameters"], metrics["parameters_dense"]
    reduced = f", {1 - parameters / dense:.1%} fewer than dense" if parameters < dense else ""
    found = [f"{parameters:,} parameters{reduced}, {metrics['bytes'] / 1e6:.1f} MB"]
    if "divergence" in metrics:
        found.append(
            f"checked: {metrics['divergence']:.2g} nats from the model's distribution, same best symbol in "
            f"{metrics['same_best']:.1%} of {metrics['outputs']} outputs"
        )
    elif "largest_difference" in metrics:
        found.append(
            f"checked: log probabilities differ from the model's by at most {metrics['largest_difference']:.2g}"
        )
    return "\n".join(
        [*found, f"written: {metrics['folder']}", f"next: {metrics['folder']}/README.md says how to use it"]
    )
