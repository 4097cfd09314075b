"""Say so if a factorisation keeps too little: such a model needs fine-tuning before it is of use.

warnings_of(rows, divergence)   lines for the log, the command and the report
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lowrank_speech.factorising.trial import Divergence

ENERGY = 0.5
"""Share of a layer's squared singular values; below, most of the layer is gone."""
SHARE = 0.05
"""Rank as a share of the full rank; below, the layer is nearly gone, whatever its spectrum says."""
ERROR = 1.0
"""Error of a layer's output over the output: at 1, leaving the layer out would be as good."""
AGREEMENT = 0.9
"""Share of outputs whose most likely symbol is that of the dense model; below, error rates rise visibly."""
STATES = 0.1
"""The same for models without a head: mean squared error of the encoder states over their power."""
SHOWN = 3


def warnings_of(rows: Sequence[Mapping[str, Any]], divergence: Divergence | None) -> list[str]:
    """One line for each kind of problem, from the rows of ``lowrank.factorise``; empty if there is none."""
    kinds = {
        f"keep less than {ENERGY:.0%} of their energy": lambda r: r["energy"] is not None and r["energy"] < ENERGY,
        f"have a rank below {SHARE:.0%} of the full one": lambda r: r["rank"] < SHARE * min(r["d_out"], r["d_in"]),
        "have an output error above 1": lambda r: (r["output_error"] or 0) > ERROR,
    }
    lines = []
    for what, applies in kinds.items():
        names = [row["name"] for row in rows if applies(row)]
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"{len(names)} layers {what} ({', '.join(names[:SHOWN])}{more}): this cut needs fine-tuning")
    if divergence is None:
        return lines
    loss, agreement = divergence
    if agreement is not None and agreement < AGREEMENT:
        lines.append(
            f"this cut needs fine-tuning: expected loss {loss:.3f} nats per output above the dense model's, which "
            f"agrees in {agreement:.1%} of them"
        )
    elif agreement is None and loss > STATES:
        lines.append(
            f"this cut needs fine-tuning: the encoder states differ from the dense model's by {loss:.1%} of their power"
        )
    return lines
