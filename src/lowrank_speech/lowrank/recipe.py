"""Settings of a factorisation: which layers, which ranks, which init. Imports only pydantic, nothing heavy.

>>> Factorise(layers="ffn", reduction=0.24)
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

WISHES = ("rank", "fraction", "keep", "energy", "reduction")
MOST = 1_000_000
LAYERS = re.compile(r"(ffn|attention|all)(:(encoder|decoder))?|.*[*?\[.].*")
LAYERS_ARE = (
    "expected ffn, attention or all (for one part of a Whisper ffn:encoder, ffn:decoder ...), or a name pattern with a "
    "dot, * or ?"
)


def _check_layers(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    given = (value,) if isinstance(value, str) else value
    if not given:
        raise ValueError(f"is empty; {LAYERS_ARE}")
    for item in given:
        if not LAYERS.fullmatch(item):
            raise ValueError(f"is {item!r}; {LAYERS_ARE}")
    return value


Layers = Annotated[str | tuple[str, ...], AfterValidator(_check_layers)]
"""A layer group, a name pattern (``fnmatch``, relative to the model's body), or a list of these."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class Factorise:
    """Which layers become two factors, with which ranks, and how to initialise the factors."""

    layers: Layers = Field("ffn", description="ffn, attention, all (Whisper: also ffn:encoder ...), or name patterns")
    rank: int | None = Field(None, ge=1, le=MOST, description="rank of each layer")
    fraction: float | None = Field(None, gt=0, le=1, description="or: rank as a share of the layer's full rank")
    keep: float | None = Field(None, gt=0, le=1, description="or: share of its parameters that each layer keeps")
    energy: float | None = Field(None, gt=0, le=1, description="or: share of each layer's squared singular values")
    reduction: float | None = Field(None, gt=0, lt=1, description="or: share of the whole model's parameters to save")
    allocate: bool = Field(False, description="redistribute the parameters over the layers to lose the least energy")
    multiple_of: int = Field(1, ge=1, le=MOST, description="ranks are multiples of this")
    init: Literal["svd", "activation", "random"] = Field(
        "svd", description="how to initialise the factors; activation needs calibration, random is for comparison"
    )

    def __post_init__(self) -> None:
        given = [name for name in WISHES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(WISHES)}; given: {', '.join(given) or 'none'}")
        if self.allocate and self.energy is not None:
            raise ValueError(
                "energy decides the rank of each layer, so it cannot be combined with allocate; remove one of them"
            )

    def ranks(self) -> dict[str, Any]:
        """The arguments of ``plan_ranks``."""
        wish = {name: getattr(self, name) for name in WISHES}
        return {**wish, "multiple_of": self.multiple_of, "allocate": self.allocate}
