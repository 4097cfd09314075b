"""Stage export: a system in a form for others.

inputs   --model     model folder, dense or factorised (stage train; of any other stage too)
outputs  --out       model folder in the format
         --manifest  format, parameters; dense: how far the exported encoder is from the factorised one

formats  dense    factors multiplied out (in float64): a plain Hugging Face folder. The class that `architectures` in
                  config.json names loads it with `from_pretrained`, without this package
         lowrank  the folder with its factors, as small as the system is: `lowrank_speech.models.folder.load_model`
                  loads it, and the plan in config.json says which layers are factors

The files beside the weights (tokenizer, preprocessor, generation_config) are copied; the tokenizer is the one that the
head's outputs stand for. `largest_difference` is the largest absolute difference between the encoder states of
the two models on one second of seeded noise.

python -m lowrank_speech.stages.export --cfg '{"format":"dense"}' --model system/model --out export/model
    --manifest export/export.json
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, key, settings
from lowrank_speech.stages import common

log = logging.getLogger(__name__)

NOISE_SEED = 0


@settings
class Config:
    """The stage's slice."""

    format: Literal["dense", "lowrank"] = key(REQUIRED, "dense: factors multiplied out; lowrank: with its factors")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help="model folder to export")
    parser.add_argument("--out", required=True, type=Path, help="output: model folder")


def body(run: common.Run) -> None:
    arguments, config = run.arguments, run.config
    common.existing(arguments.model, "--model")
    if arguments.out.resolve() == arguments.model.resolve():
        raise UserError(f"export: --out and --model are the same folder, {arguments.out}; give another one as --out")

    from lowrank_speech.lowrank.structure import densify
    from lowrank_speech.models.folder import load_model, save_model

    model = load_model(arguments.model)
    metrics: dict[str, Any] = {"format": config.format}
    if config.format == "dense":
        expected = _states(model, arguments.model)
        densify(model.body)
        model.plan = None
        metrics["largest_difference"] = float((_states(model, arguments.model) - expected).abs().max())
    metrics["parameters"] = model.parameters_total()
    save_model(model, arguments.out, copy_from=arguments.model)
    log.info("%s: %d parameters", config.format, metrics["parameters"])
    run.finish([arguments.out], metrics)


def _states(model: Any, folder: Path) -> Any:
    """Encoder states on noise of one second, or of the model's window where that is shorter."""
    import torch

    from lowrank_speech.features.inputs import RATE, inputs_of

    seconds = min(1.0, model.window_seconds or 1.0)
    noise = torch.randn(int(RATE * seconds), generator=torch.Generator().manual_seed(NOISE_SEED))
    features = inputs_of(folder).of(noise)
    with torch.inference_mode():
        return model.states(features[None], torch.tensor([len(features)]))[0]


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("export", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
