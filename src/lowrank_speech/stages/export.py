"""Stage export: a system in a format for other programs.

inputs   --model     model folder, dense or factorised (stage train, or any other stage)
outputs  --out       model folder in the format
         --manifest  format, parameters; dense: how much the exported encoder differs from the factorised one

formats  dense    factors multiplied out: a plain Hugging Face folder
         lowrank  the folder with its factors, as small as the system

Each is described in lowrank_speech/exporting. The files beside the weights (tokenizer, preprocessor, generation_config)
are copied; the tokenizer is that of the head's outputs.

python -m lowrank_speech.stages.export --cfg '{"format":"dense"}' --model system/model --out export/model
    --manifest export/export.json
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from lowrank_speech.errors import UserError
from lowrank_speech.exporting import registry
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
    parser.add_argument("--out", required=True, type=Path, help="output: model folder")


def body(run: common.Run) -> None:
    arguments, config = run.arguments, run.config
    common.existing(arguments.model, "--model")
    if arguments.out.resolve() == arguments.model.resolve():
        raise UserError(f"export: --out and --model are the same folder, {arguments.out}; give another one as --out")

    from lowrank_speech.models.folder import load_model

    model = load_model(arguments.model)
    metrics = {"format": config.format, **registry.module(config.format).write(model, arguments.model, arguments.out)}
    metrics["parameters"] = model.parameters_total()
    log.info("%s: %d parameters", config.format, metrics["parameters"])
    run.finish([arguments.out], metrics)


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("export", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
