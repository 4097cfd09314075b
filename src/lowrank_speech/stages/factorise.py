"""Stage factorise: replace linear layers of a model by two low-rank factors.

inputs   --model     model folder of a dense model (stage base)
         --moments   second moments of the layers' inputs (stage calibrate). `init: activation` needs them; with any
                     init they add the output error of each layer to the report
outputs  --out       model folder of the low-rank model; config.json holds the plan
         --manifest  parameters before and after, and a report layer by layer

The keys of the section `factorise` are those of ``lowrank_speech.lowrank.recipe``. Weights are read and written layer
by layer, so a model can be larger than the memory.

python -m lowrank_speech.stages.factorise --cfg '{"seed":1,"factorise":{"layers":"ffn","reduction":0.24}}' --model
    base/model --out factorise/model --manifest factorise/factorise.json
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.recipe import Factorise
from lowrank_speech.settings import REQUIRED, Seed, key, settings
from lowrank_speech.stages import common

log = logging.getLogger(__name__)


@settings
class Config:
    """The stage's slice."""

    seed: Seed = key(REQUIRED, "seed for init: random; otherwise not used")
    factorise: Factorise = key(REQUIRED, "layers, ranks and initial values")
    start: Annotated[float, Field(gt=0, le=1)] | None = key(
        None, "progressive truncation: ranks to start with, as a share of each layer's full rank; null: the ranks"
    )


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help="model folder to factorise")
    parser.add_argument("--moments", type=Path, help="second moments of the layers' inputs, .safetensors")
    parser.add_argument("--out", required=True, type=Path, help="output: model folder")


def body(run: common.Run) -> None:
    arguments, config = run.arguments, run.config
    common.existing(arguments.model, "--model")
    if arguments.moments is not None:
        common.existing(arguments.moments, "--moments")
    elif config.factorise.init == "activation":
        raise UserError("factorise: init: activation needs --moments (stage calibrate)")
    try:
        metrics = _factorise(arguments, config)
    except ValueError as error:
        raise UserError(f"factorise {arguments.model}: {error}") from error
    run.finish([arguments.out], metrics)


def _factorise(arguments: argparse.Namespace, config: Config) -> dict[str, Any]:
    from lowrank_speech.factorising.model import factorise_model
    from lowrank_speech.models.folder import load_model

    model = load_model(arguments.model)
    if model.plan:
        raise UserError(
            f"factorise: {arguments.model} is already factorised ({len(model.plan)} layers); give the dense model"
        )
    recipe, start = config.factorise, config.start
    metrics = factorise_model(model, recipe, arguments.out, arguments.model, arguments.moments, config.seed, start)
    for name, reason in metrics["left_dense"].items():
        log.warning("%s stays dense: %s", name, reason)
    ranks = [row.get("final_rank", row["rank"]) for row in metrics["layers"]]
    if start is not None:
        larger = [row["rank"] for row in metrics["layers"]]
        log.info("a training starts at ranks %d to %d and truncates them to:", min(larger), max(larger))
    log.info(
        "%d layers at ranks %d to %d: %d -> %d parameters, %.2f %% fewer",
        len(ranks), min(ranks), max(ranks), metrics["parameters_before"], metrics["parameters_after"],
        100 * metrics["reduction"],
    )  # fmt: skip
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("factorise", __doc__, Config, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
