"""Keys of the decoders that search a graph."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lowrank_speech.decoding.base import Decoding
from lowrank_speech.lang.graphs.settings import GraphSettings
from lowrank_speech.settings import Count, Positive, key, settings

Beam = Annotated[float, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(ge=0, le=100)]
Insertion = Annotated[float, Field(ge=-100, le=100)]
States = Annotated[int, Field(ge=100, le=1_000_000)]

MAX_ACTIVE = 10_000
"""The default of ``max_active``, where it applies."""


@settings
class GraphDecoding(GraphSettings, Decoding):
    """Search of a graph with stored emissions."""

    reads: ClassVar[tuple[str, ...]] = ("graph",)

    lm_weight: Weight = key(0.5, "weight of the graph's scores: n-gram and pronunciations")
    acoustic_scale: Positive = key(1.0, "weight of the network's log probabilities")
    insertion: Insertion = key(0.0, "added to the score for each word; h, hg: each token")
    search_beam: Beam = key(16.0, "in each frame, drop paths worse than the best by more than this (nats)")
    lattice_beam: Beam = key(8.0, "drop paths of the lattice worse than the best by more than this (nats)")
    max_active: States | None = key(
        None, "states that survive in a frame, at most; null: 10,000, and no bound where kaldi-decoder makes lattices"
    )
    backend: Literal["auto", "kaldi", "k2"] = key(
        "auto", "k2, or kaldi: kaldi-decoder on the CPU; auto: k2 where it works with this torch"
    )


@settings
class Rescoring(GraphDecoding):
    """A second pass with a larger n-gram."""

    reads: ClassVar[tuple[str, ...]] = ("graph", "rescore_lm")

    rescore_lm: str | None = key(None, "the larger n-gram, a name in `lms`")
    rescore_weight: Weight | None = key(None, "its weight, instead of the scores of `lm`; null: lm_weight")
    nbest: Count = key(1, "hypotheses to list")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rescore_lm is None:
            raise ValueError("rescore_lm is missing; name the larger n-gram, defined under `lms`")
