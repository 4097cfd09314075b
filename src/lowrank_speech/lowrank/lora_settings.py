"""Settings of LoRA adapters (``lowrank.lora``). Imports only pydantic, nothing heavy."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

INITS = ("default", "gaussian", "orthogonal", "pissa", "olora")
CHANGES_BASE = re.compile(r"pissa(_niter_\d+)?|olora")
"""Inits that subtract the adapter's initial value from the base weights, so these change once, before training."""


def _check_init(value: str) -> str:
    if value not in INITS and not CHANGES_BASE.fullmatch(value):
        raise ValueError(f"is {value!r}; expected one of {', '.join(INITS)}, or pissa_niter_N")
    return value


def _not_empty(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if value is not None and not value:
        raise ValueError("is empty; name layers or patterns, or remove the key")
    return value


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class LoraSettings:
    """What to adapt and how: the update is (alpha / rank) B A, with rslora (alpha / sqrt(rank)) B A."""

    rank: int = Field(8, ge=1, le=1_000_000, description="rank of the adapters")
    alpha: float = Field(16.0, gt=0, description="scale of the adapters, divided by rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapters' inputs")
    targets: Annotated[tuple[str, ...] | None, AfterValidator(_not_empty)] = Field(
        None, description="name patterns, or layer groups; null: query, value and feed-forward"
    )
    where: Literal["factors", "first", "second", "product"] = Field(
        "factors",
        description="part of a factorised layer to adapt; with product, merging the adapter increases the layer's rank",
    )
    rslora: bool = Field(False, description="divide alpha by the square root of the rank")
    dora: bool = Field(False, description="DoRA: also train a magnitude for each output")
    init: Annotated[str, AfterValidator(_check_init)] = Field(
        "default", description="default (B = 0), gaussian, orthogonal, pissa, pissa_niter_N, or olora"
    )

    def __post_init__(self) -> None:
        if self.where == "product" and (self.dora or self.init not in ("default", "gaussian")):
            raise ValueError(
                f"where: product supports only plain LoRA (init default or gaussian), not "
                f"{'dora' if self.dora else f'init: {self.init}'}, which needs a single weight matrix"
            )
        if self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init: orthogonal needs an even rank, not {self.rank}")
        if self.dora and CHANGES_BASE.fullmatch(self.init):
            raise ValueError(f"dora cannot be combined with init: {self.init}; remove one of them")
