"""Stage calibrate: second moments of the inputs of the layers, for activation-aware factors.

inputs   --model     model folder of a dense model (stage base)
         --cuts      cuts of one split with the family's features (stage features), .jsonl.gz
outputs  --out       moments.safetensors: for each layer the mean of x xᵀ, the mean of x, the number of frames
         --manifest  which utterances were used

The model runs over some utterances, one at a time, so that no padding is seen; frames of Whisper's window beyond the
utterance do not count. Whisper's decoder is calibrated on what it recognises itself (greedy search).

python -m lowrank_speech.stages.calibrate --cfg '{"seed":1,"layers":"ffn"}' --model base/model --cuts train.jsonl.gz
    --out calibrate/moments.safetensors --manifest calibrate/calibrate.json
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.artefact import Manifest
from lowrank_speech.errors import UserError
from lowrank_speech.stages import common


@dataclass(frozen=True)
class Segment:
    """Utterances are cut to at most ``seconds``."""

    seconds: float | None = None


@dataclass(frozen=True)
class Config:
    """The stage's slice. ``layers`` as in the stage factorise; ``utterances`` are drawn by ``seed``."""

    seed: int
    layers: str | tuple[str, ...] = "ffn"
    utterances: int = 64
    segment: Segment | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if self.utterances < 1:
            raise ValueError(f"utterances is {self.utterances}; expected 1 or more")


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help="model folder to calibrate")
    parser.add_argument("--cuts", required=True, type=Path, help="cuts with features, .jsonl.gz")
    parser.add_argument("--out", required=True, type=Path, help="output: moments, .safetensors")


def body(arguments: argparse.Namespace) -> None:
    cfg = common.read_cfg(arguments.cfg)
    config = common.from_json(Config, cfg)
    manifest = Manifest("calibrate", cfg, seed=config.seed)
    common.existing(arguments.model, "--model")
    common.existing(arguments.cuts, "--cuts")
    try:
        numbers = _run(arguments, config)
    except ValueError as error:
        raise UserError(f"calibrate {arguments.model}: {error}") from error
    manifest.device = numbers.pop("device")
    manifest.write(arguments.manifest, [arguments.out], numbers)


def _run(arguments: argparse.Namespace, config: Config) -> dict[str, Any]:
    from lowrank_speech.factorising.calibration import calibrate
    from lowrank_speech.models.device import pick_device
    from lowrank_speech.models.folder import load_model

    device = pick_device(config.device)
    model = load_model(arguments.model).to(device)
    if model.plan:
        raise UserError(f"calibrate: {arguments.model} is factorised already; give the dense model")
    seconds = config.segment.seconds if config.segment else None
    numbers = calibrate(
        model,
        arguments.model,
        arguments.cuts,
        arguments.out,
        config.layers,
        config.utterances,
        config.seed,
        seconds,
    )
    return numbers | {"device": str(device)}


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("calibrate", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
