"""Keys that several heads share. Imports neither torch nor transformers."""

from typing import Annotated, Literal

from pydantic import Field

from lowrank_speech.settings import Count, Positive, key, settings

Layers = Literal["last", "weighted"]
LAYERS = "states that the head reads: those of the last encoder layer, or a learnt weighted sum of all layers"
MOST = 1_000_000


@settings
class ClassifierSettings:
    """The input and the output layer of a classifier."""

    layers: Layers = key("last", LAYERS)
    classifier: Literal["linear", "orthonormal", "cosine"] = key(
        "linear",
        "output layer: linear; orthonormal: linear, with a semi-orthogonal matrix (`constraint`); cosine: scale times "
        "the cosine between embedding and class, for `loss: aam`",
    )
    scale: Positive = key(30.0, "cosine: factor on the cosines, in training and in the scores")
    subcentres: Count = key(1, "cosine: vectors of each class, of which the nearest one counts")

    def __post_init__(self) -> None:
        if self.subcentres > 1 and self.classifier != "cosine":
            raise ValueError(
                f"subcentres is {self.subcentres}, but classifier is {self.classifier}; set classifier: cosine, or "
                f"subcentres: 1"
            )


@settings
class FactorSettings(ClassifierSettings):
    """Low-rank factors of the head's own layers, all but the output layer. Give at most one of the keys."""

    rank: Annotated[int, Field(ge=1, le=MOST)] | None = key(None, "factors: rank of each layer of the head")
    fraction: Annotated[float, Field(gt=0, le=1)] | None = key(None, "or: rank as a share of each layer's full rank")
    reduction: Annotated[float, Field(gt=0, lt=1)] | None = key(
        None, "or: share of the head's parameters to save; all three null: no factors"
    )

    def __post_init__(self) -> None:
        ClassifierSettings.__post_init__(self)
        if len(self.ranks) > 1:
            raise ValueError(f"give at most one of rank, fraction, reduction; given: {', '.join(self.ranks)}")

    @property
    def ranks(self) -> dict[str, float]:
        """The given one of rank, fraction and reduction, as an argument of ``lowrank.plan.plan_ranks``."""
        given = {name: getattr(self, name) for name in ("rank", "fraction", "reduction")}
        return {name: value for name, value in given.items() if value is not None}
