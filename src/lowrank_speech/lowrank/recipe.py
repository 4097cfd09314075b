"""Settings of a factorisation: which layers, which ranks, which init. Imports only pydantic, nothing heavy.

>>> Factorise(layers="ffn", reduction=0.24)
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

Init = Literal["svd", "activation", "two-sided", "random"]
CALIBRATED = ("activation", "two-sided")
"""Values of ``init`` that need statistics of calibration speech."""
WISHES = ("rank", "fraction", "keep", "energy", "reduction")
MOST = 1_000_000
LAYERS = re.compile(r"(ffn|attention|all)(:(encoder|decoder))?|embedding|.*[*?\[.].*")
LAYERS_ARE = (
    "expected ffn, attention, all (for one part of a Whisper ffn:encoder, ffn:decoder ...), embedding (Whisper), or a "
    "name pattern with a dot, * or ?"
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

    layers: Layers = Field(
        "ffn", description="ffn, attention, all (Whisper: also embedding, ffn:encoder ...), or name patterns; or a list"
    )
    rank: int | None = Field(None, ge=1, le=MOST, description="rank of each layer")
    fraction: float | None = Field(None, gt=0, le=1, description="or: rank as a share of the layer's full rank")
    keep: float | None = Field(None, gt=0, le=1, description="or: share of its parameters that each layer keeps")
    energy: float | None = Field(None, gt=0, le=1, description="or: share of each layer's squared singular values")
    reduction: float | None = Field(None, gt=0, lt=1, description="or: share of the whole model's parameters to save")
    allocate: bool = Field(
        False,
        description="choose each layer's rank by what it costs in the model's output, measured on calibration speech",
    )
    floor: float = Field(
        0.1, ge=0, lt=1, description="with allocate: the least rank of a layer, as a share of its full rank"
    )
    exact_rows: int = Field(
        4000,
        ge=0,
        le=MOST,
        description="frequent tokens whose rows of the embedding are kept, beside all special tokens",
    )
    multiple_of: int = Field(1, ge=1, le=MOST, description="ranks are multiples of this")
    init: Init = Field(
        "svd",
        description="how to initialise the factors; activation and two-sided need calibration; random: for comparison",
    )
    sequential: bool = Field(
        False, description="calibrate each block on the outputs of the blocks before it, which are factorised already"
    )

    def __post_init__(self) -> None:
        given = [name for name in WISHES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(WISHES)}; given: {', '.join(given) or 'none'}")
        if self.allocate and self.energy is not None:
            raise ValueError(
                "energy decides the rank of each layer, so it cannot be combined with allocate; remove one of them"
            )
        if self.sequential and self.init not in CALIBRATED:
            raise ValueError(f"sequential needs init: activation or two-sided; init is {self.init}")

    def ranks(self) -> dict[str, Any]:
        """The arguments of ``plan_ranks``."""
        return {name: getattr(self, name) for name in WISHES} | {"multiple_of": self.multiple_of}
