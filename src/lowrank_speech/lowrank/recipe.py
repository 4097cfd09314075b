"""What a factorisation asks for: which layers, which ranks, which start. Standard library only, to read configs with.

layers     a group of the family (ffn, attention, all; Whisper: also ffn:encoder, ffn:decoder, ...), or a list of name
           patterns
ranks      exactly one of: rank, fraction (of the smaller dimension), keep (share of each layer's parameters),
           energy (share of its squared singular values), reduction (share of the whole model's parameters that goes)
allocate   redistribute those parameters over the layers so that least energy is lost
init       svd | activation | random
"""

from dataclasses import dataclass
from typing import Any, Literal

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

    def ranks(self) -> dict[str, Any]:
        """What ``plan_ranks`` wants to know."""
        wish = {name: getattr(self, name) for name in WISHES}
        return {**wish, "multiple_of": self.multiple_of, "allocate": self.allocate}
