"""Stage factorise: replace linear layers, and the embedding of a decoder, by two low-rank factors.

inputs   --model     model folder of a dense model (stage base)
         --moments   second moments of the layers' inputs (stage calibrate). `init: activation` and `two-sided` need
                     them; with any init they add the output error of each layer to the report
         --cuts      cuts with the family's features, of the split that calibration saw. `allocate` and `sequential`
                     need them; with any recipe they add how far the low-rank model is from the dense one
outputs  --out       model folder of the low-rank model; config.json holds the plan
         --manifest  parameters before and after, and a report layer by layer

The keys of the section `factorise` are those of ``lowrank_speech.lowrank.recipe``. Without cuts, weights are read and
written layer by layer, so a model can be larger than the memory.

python -m lowrank_speech.stages.factorise --cfg '{"seed":1,"factorise":{"layers":"ffn","reduction":0.24}}' --model
    base/model --out factorise/model --manifest factorise/factorise.json
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.recipe import CALIBRATED, Factorise
from lowrank_speech.settings import REQUIRED, Count, Seed, key, settings
from lowrank_speech.stages import common
from lowrank_speech.stages.task import Segment

log = logging.getLogger(__name__)


@settings
class Trial:
    """The utterances that measure what ranks cost."""

    utterances: Count = key(16, "how many of --cuts, other than those that calibration with the same seed saw")
    segment: Segment | None = key(None, "length of the utterances; null: do not cut")


@settings
class Config:
    """The stage's slice."""

    seed: Seed = key(REQUIRED, "seed to draw the utterances, for init: random, and for the labels of two-sided")
    factorise: Factorise = key(REQUIRED, "layers, ranks and initial values")
    trial: Trial = key(None, "the utterances of --cuts that are used", default_factory=Trial)
    start: Annotated[float, Field(gt=0, le=1)] | None = key(
        None, "progressive truncation: ranks to start with, as a share of each layer's full rank; null: the ranks"
    )


@settings
class Runtime:
    """How the stage runs."""

    device: Literal["auto", "cpu", "cuda"] = key("auto", "where to measure, with --cuts", runtime=True)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help="model folder to factorise")
    parser.add_argument("--moments", type=Path, help="second moments of the layers' inputs, .safetensors")
    parser.add_argument("--cuts", type=Path, help="calibration cuts with features, .jsonl.gz")
    parser.add_argument("--out", required=True, type=Path, help="output: model folder")


def body(run: common.Run) -> None:
    arguments, config = run.arguments, run.config
    common.existing(arguments.model, "--model")
    for name in ("moments", "cuts"):
        if getattr(arguments, name) is not None:
            common.existing(getattr(arguments, name), f"--{name}")
    recipe = config.factorise
    if recipe.init in CALIBRATED and arguments.moments is None:
        raise UserError(f"factorise: init: {recipe.init} needs --moments (stage calibrate)")
    if (recipe.allocate or recipe.sequential) and arguments.cuts is None:
        wish = "allocate" if recipe.allocate else "sequential"
        raise UserError(f"factorise: {wish} needs --cuts (calibration speech)")
    try:
        metrics = _factorise(run)
    except ValueError as error:
        raise UserError(f"factorise {arguments.model}: {error}") from error
    run.finish([arguments.out], metrics)


def _factorise(run: common.Run) -> dict[str, Any]:
    from lowrank_speech.factorising.model import factorise_model
    from lowrank_speech.models.device import pick_device
    from lowrank_speech.models.folder import load_model

    arguments, config = run.arguments, run.config
    model = load_model(arguments.model)
    if model.plan:
        raise UserError(
            f"factorise: {arguments.model} is already factorised ({len(model.plan)} layers); give the dense model"
        )
    trial, calibration, start = [], [], config.start
    if arguments.cuts is not None:
        from lowrank_speech.factorising.utterances import held_out, seen_again
        from lowrank_speech.features.store import load_cuts
        from lowrank_speech.lowrank.moments import utterances_of

        device = pick_device(run.runtime.device)
        run.device = str(device)
        seen = utterances_of(arguments.moments)
        seconds = config.trial.segment.seconds if config.trial.segment else None
        where = (model.to(device), arguments.model, load_cuts(arguments.cuts), arguments.cuts)
        trial = held_out(*where, config.trial.utterances, seen, config.seed, seconds)
        if config.factorise.sequential:
            calibration = seen_again(*where, seen, config.seed, seconds)
    metrics = factorise_model(
        model,
        config.factorise,
        arguments.out,
        arguments.model,
        arguments.moments,
        config.seed,
        trial,
        calibration,
        start,
    )
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
    for line in metrics["warnings"]:
        log.warning(line)
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("factorise", __doc__, Config, add, body, argv, Runtime)


if __name__ == "__main__":
    raise SystemExit(main())
