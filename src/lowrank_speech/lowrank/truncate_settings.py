"""Settings of progressive truncation (``lowrank.truncate``). Imports only pydantic, nothing heavy."""

from typing import Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Progressive:
    """How a training reaches the ranks of `factorise` in several truncations, instead of starting with them."""

    start: float = Field(1.0, gt=0, le=1, description="ranks at the start, as a share of each layer's full rank")
    share: float = Field(0.3, gt=0, lt=1, description="share of all steps after which the ranks are final")
    stages: int = Field(4, ge=1, le=1000, description="number of truncations, evenly spaced")
    schedule: Literal["cubic", "linear"] = Field(
        "cubic", description="cubic: large truncations first, then smaller ones; linear: equal ones"
    )
