"""Stage factorise: replace linear layers of a model by two low-rank factors.

inputs   --model     model folder of a dense model (stage base)
         --moments   second moments of the layers' inputs (stage calibrate): needed by `init: activation`; with any init
                     the report then has the output error of each layer
outputs  --out       model folder of the low-rank model; config.json holds the plan
         --manifest  parameters before and after, and a report layer by layer

layers     a group of the family (ffn, attention, all; Whisper: also ffn:encoder, ffn:decoder, ...), or a list of name
           patterns
ranks      exactly one of: rank, fraction (of the smaller dimension), keep (share of each layer's parameters),
           energy (share of its squared singular values), reduction (share of the whole model's parameters that goes)
allocate   redistribute those parameters over the layers so that least energy is lost
init       svd | activation | random

python -m lowrank_speech.stages.factorise --cfg '{"seed":1,"factorise":{"layers":"ffn","reduction":0.24}}' --model
    base/model --out factorise/model --manifest factorise/factorise.json
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lowrank_speech.artefact import Manifest
from lowrank_speech.errors import UserError
from lowrank_speech.stages import common

log = logging.getLogger(__name__)

WISHES = ("rank", "fraction", "keep", "energy", "reduction")


@dataclass(frozen=True)
class Factorise:
    """Which layers, which ranks, which start; see the module's docstring. ``multiple_of``: ranks are its multiples."""

    layers: str | tuple[str, ...] = "ffn"
    rank: int | None = None
    fraction: float | None = None
    keep: float | None = None
    energy: float | None = None
    reduction: float | None = None
    allocate: bool = False
    multiple_of: int = 1
    init: Literal["svd", "activation", "random"] = "svd"

    def __post_init__(self) -> None:
        given = [name for name in WISHES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(WISHES)}; given: {', '.join(given) or 'none'}")
        if self.allocate and self.energy is not None:
            raise ValueError("energy decides the rank layer by layer: it does not go with allocate")


@dataclass(frozen=True)
class Config:
    """The stage's slice. ``seed`` decides `init: random` and nothing else."""

    seed: int
    factorise: Factorise


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=Path, help="model folder to factorise")
    parser.add_argument("--moments", type=Path, help="second moments of the layers' inputs, .safetensors")
    parser.add_argument("--out", required=True, type=Path, help="output: model folder")


def body(arguments: argparse.Namespace) -> None:
    cfg = common.read_cfg(arguments.cfg)
    config = common.from_json(Config, cfg)
    manifest = Manifest("factorise", cfg, seed=config.seed)
    common.existing(arguments.model, "--model")
    if arguments.moments is not None:
        common.existing(arguments.moments, "--moments")
    elif config.factorise.init == "activation":
        raise UserError("factorise: init: activation needs --moments (stage calibrate)")
    try:
        numbers = _run(arguments, config)
    except ValueError as error:
        raise UserError(f"factorise {arguments.model}: {error}") from error
    manifest.write(arguments.manifest, [arguments.out], numbers)


def _run(arguments: argparse.Namespace, config: Config) -> dict[str, Any]:
    from lowrank_speech.lowrank.apply import factorise
    from lowrank_speech.lowrank.counts import count_parameters
    from lowrank_speech.lowrank.moments import MomentsFile
    from lowrank_speech.lowrank.select import select
    from lowrank_speech.models.families import kept_out, layer_patterns
    from lowrank_speech.models.folder import load_model, save_model

    wish = config.factorise
    model = load_model(arguments.model)
    if model.plan:
        raise UserError(
            f"factorise: {arguments.model} is factorised already ({len(model.plan)} layers); give the dense model"
        )
    before = count_parameters(model.hf)["total"]
    chosen = select(model.hf, layer_patterns(model.family, wish.layers), exclude=kept_out(model.family))
    moments = MomentsFile(arguments.moments) if arguments.moments is not None else None
    plan = _plan(wish, chosen, before, moments)
    for name, reason in plan.left_dense.items():
        log.warning("%s stays dense: %s", name, reason)
    if not plan:
        raise UserError(f"factorise: all {len(chosen)} layers would stay dense: ask for a lower rank")
    rows = factorise(model.hf, plan, wish.init, moments, config.seed)
    after = count_parameters(model.hf)["total"]
    model.plan = plan.to_json()
    save_model(model, arguments.out, copy_from=arguments.model)
    log.info(
        "%d layers at ranks %d to %d: %d -> %d parameters, %.2f %% fewer",
        len(plan), min(plan.values()), max(plan.values()), before, after, 100 * (1 - after / before),
    )  # fmt: skip
    return {
        "parameters_before": before,
        "parameters_after": after,
        "reduction": 1 - after / before,
        "layers": rows,
        "left_dense": dict(plan.left_dense),
    }


def _plan(wish: Factorise, chosen: dict[str, Any], total: int, moments: Any) -> Any:
    from lowrank_speech.lowrank.apply import spectra
    from lowrank_speech.lowrank.plan import plan_ranks

    needed = None
    if wish.energy is not None or wish.allocate:
        # What an activation-aware cut loses is the spectrum of the whitened weight.
        needed = spectra(chosen, moments if wish.init == "activation" else None)
    return plan_ranks(
        {name: (layer.out_features, layer.in_features) for name, layer in chosen.items()},
        total,
        **{name: getattr(wish, name) for name in WISHES},
        multiple_of=wish.multiple_of,
        spectra=needed,
        allocate=wish.allocate,
    )


def main(argv: Sequence[str] | None = None) -> int:
    return common.main("factorise", __doc__, add, body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
