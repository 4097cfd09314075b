"""Stage calibrate: second moments of the inputs of the layers, for activation-aware factors.

inputs   --model     model folder of a dense model (stage base)
         --cuts      cuts of one split with the family's features (stage features), .jsonl.gz
outputs  --out       moments.safetensors: for each layer the mean of x xᵀ, the mean of x, the number of frames, and with
                     gradients the mean of g gᵀ of its output
         --manifest  which utterances were used

The model sees some utterances, one at a time, so neither padding nor frames of Whisper's window beyond the utterance
count. Whisper's decoder is calibrated on its own output (greedy search).

python -m lowrank_speech.stages.calibrate --cfg '{"seed":1,"layers":"ffn"}' --model base/model --cuts train.jsonl.gz
    --out calibrate/moments.safetensors --manifest calibrate/calibrate.json
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.recipe import Layers
from lowrank_speech.settings import REQUIRED, Count, Seed, key, settings
from lowrank_speech.stages import common
from lowrank_speech.stages.task import Segment


@settings
class Config:
    """The stage's slice."""

    seed: Seed = key(REQUIRED, "seed to draw the utterances")
    layers: Layers = key("ffn", "ffn, attention, all (Whisper: also ffn:encoder ...), or name patterns")
    utterances: Count | None = key(
        None, "how many utterances the model sees; null: at least 64, and as many as its layers need, up to 512"
    )
    segment: Segment | None = key(None, "length of the utterances; null: do not cut")
    gradients: bool = key(False, "also the second moments of the outputs' gradients, for init: two-sided")


@settings
class Runtime:
    """How the stage runs."""

    device: Literal["auto", "cpu", "cuda"] = key("auto", "where to compute", runtime=True)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help="model folder to calibrate")
    parser.add_argument("--cuts", required=True, type=Path, help="cuts with features, .jsonl.gz")
    parser.add_argument("--out", required=True, type=Path, help="output: moments, .safetensors")


def body(run: common.Run) -> None:
    arguments = run.arguments
    common.existing(arguments.model, "--model")
    common.existing(arguments.cuts, "--cuts")
    try:
        metrics = _calibrate(run)
    except ValueError as error:
        raise UserError(f"calibrate {arguments.model}: {error}") from error
    run.finish([arguments.out], metrics)


def _calibrate(run: common.Run) -> dict[str, Any]:
    from lowrank_speech.factorising.calibration import calibrate
    from lowrank_speech.features.store import load_cuts
    from lowrank_speech.models.device import pick_device
    from lowrank_speech.models.folder import load_model

    arguments, config, device = run.arguments, run.config, pick_device(run.runtime.device)
    model = load_model(arguments.model).to(device)
    if model.plan:
        raise UserError(f"calibrate: {arguments.model} is already factorised; give the dense model")
    seconds = config.segment.seconds if config.segment else None
    run.device = str(device)
    return calibrate(
        model,
        arguments.model,
        load_cuts(arguments.cuts),
        arguments.cuts,
        arguments.out,
        config.layers,
        config.utterances,
        config.seed,
        seconds,
        config.gradients,
    )


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("calibrate", __doc__, Config, add, body, argv, Runtime)


if __name__ == "__main__":
    raise SystemExit(main())
