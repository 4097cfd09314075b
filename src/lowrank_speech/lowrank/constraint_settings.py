"""Settings of the semi-orthogonal constraint (``lowrank.constraint``). Imports only pydantic, nothing heavy."""

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class ConstraintSettings:
    """How full fine-tuning keeps the first factors semi-orthogonal."""

    mode: Literal["floating", "fixed", "exact", "none"] = Field(
        "floating", description="scale of the factors: floating (Kaldi's TDNN-F), fixed, exact (fixed, by QR), or none"
    )
    scale: float = Field(1.0, gt=0, description="the scale of fixed and exact")
    probability: float = Field(0.25, gt=0, le=1, description="probability that a layer is updated after a step")
    every: int | None = Field(
        None, ge=1, le=1_000_000, description="update all layers every N steps, instead of by probability"
    )
