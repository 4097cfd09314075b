"""Stage export: a system in a format for other programs.

inputs   --model     model folder, dense or factorised (stage train, or any other stage)
outputs  --out       folder in the format, with README.md, a model card
         --manifest  format, parameters, size, and how much the export differs from the model

formats  hf           the folder with its factors, for transformers after `import lowrank_speech.hf`
         dense        factors multiplied out: a plain Hugging Face folder
         onnx         graphs for onnxruntime, with factors; Whisper as encoder and decoder with cache
         onnx-int8    the same with 8-bit weights
         ctranslate2  Whisper for faster-whisper, factors multiplied out
         lowrank      the earlier name of hf

Each is described in lowrank_speech/exporting, and compared with the model: if the outputs differ, there is no folder.
The files beside the weights (tokenizer, preprocessor, generation_config) are copied; the tokenizer is that of the
head's outputs. The card has the error rates that the experiment has at this time.

python -m lowrank_speech.stages.export --cfg '{"format":"dense"}' --model system/model --out export/model
    --manifest export/export.json
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from lowrank_speech.errors import UserError
from lowrank_speech.exporting import registry
from lowrank_speech.exporting.about import about
from lowrank_speech.exporting.export import export
from lowrank_speech.settings import REQUIRED, key, settings
from lowrank_speech.stages import common

log = logging.getLogger(__name__)


@settings
class Config:
    """The stage's slice."""

    format: str = key(REQUIRED, f"one of {', '.join(registry.FORMATS)}")

    def __post_init__(self) -> None:
        registry.module(self.format)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help="model folder to export")
    parser.add_argument("--out", required=True, type=Path, help="output: folder in the format")


def body(run: common.Run) -> None:
    arguments, config = run.arguments, run.config
    common.existing(arguments.model, "--model")
    if arguments.out.resolve() == arguments.model.resolve():
        raise UserError(f"export: --out and --model are the same folder, {arguments.out}; give another one as --out")

    from lowrank_speech.models.folder import load_model

    model, known = load_model(arguments.model), about(arguments.model, arguments.model.name)
    metrics = export(model, arguments.model, config.format, arguments.out, known)
    log.info("%s: %d parameters, %.1f MB", config.format, metrics["parameters"], metrics["bytes"] / 1e6)
    run.finish([arguments.out], metrics)


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("export", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
