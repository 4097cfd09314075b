"""Settings of LoRA adapters (``lowrank.lora``). Imports pydantic and nothing heavy."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

INITS = ("default", "gaussian", "orthogonal", "pissa", "olora")
CHANGES_BASE = re.compile(r"pissa(_niter_\d+)?|olora")
"""Inits that take the adapter's start out of the base weights, which therefore change once, before training."""


def _check_init(value: str) -> str:
    if value not in INITS and not CHANGES_BASE.fullmatch(value):
        raise ValueError(f"is {value!r}; expected one of {', '.join(INITS)}, or pissa_niter_N")
    return value


def _not_empty(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if value is not None and not value:
        raise ValueError("is empty; name layers or patterns, or leave the key out")
    return value


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class LoraSettings:
    """What to adapt and how: the update is (alpha / rank) B A, with rslora (alpha / sqrt(rank)) B A."""

    rank: int = Field(8, ge=1, le=1_000_000, description="rank of the adapters")
    alpha: float = Field(16.0, gt=0, description="scale of the adapters, divided by rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapters' inputs")
    targets: Annotated[tuple[str, ...] | None, AfterValidator(_not_empty)] = Field(
        None, description="name patterns, or groups of layers; null: query, value and feed-forward"
    )
    where: Literal["factors", "first", "second", "product"] = Field(
        "factors",
        description="what of a factorised layer is adapted; with product its rank grows when the adapter is merged",
    )
    rslora: bool = Field(False, description="divide alpha by the square root of the rank")
    dora: bool = Field(False, description="train a magnitude for each output beside the update")
    init: Annotated[str, AfterValidator(_check_init)] = Field(
        "default", description="default (B = 0), gaussian, orthogonal, pissa, pissa_niter_N, or olora"
    )

    def __post_init__(self) -> None:
        if self.where == "product" and (self.dora or self.init not in ("default", "gaussian")):
            raise ValueError(
                f"where: product goes with plain LoRA (init default or gaussian), not with "
                f"{'dora' if self.dora else f'init: {self.init}'}, which reads one weight matrix"
            )
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init: orthogonal needs an even rank, not {self.rank}")
        if self.dora and CHANGES_BASE.fullmatch(self.init):
            raise ValueError(f"dora does not go with init: {self.init}; remove one of them")
