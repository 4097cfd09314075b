"""Ranks for the factors of a new head (TDNN-F, ECAPA-TDNN-F): ``rank``, ``fraction`` or ``reduction`` of its settings.

All linear layers of the head count, except the output layer, whose size follows from the classes. ``reduction`` refers
to the parameters of the whole head. A layer whose factors would not be smaller stays dense.
"""

import logging
from typing import Any

import torch

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.plan import largest_rank, plan_ranks
from lowrank_speech.lowrank.select import linears, shapes_of
from lowrank_speech.models.heads.registry import head_class
from lowrank_speech.models.speech import SpeechModel

log = logging.getLogger(__name__)


def head_plan(model: SpeechModel, settings: Any, outputs: int) -> dict[str, int]:
    """Name (relative to the head) -> rank, for a head with ``settings`` and ``outputs`` on the body of ``model``.

    Empty if the settings ask for no factors. Raises UserError if no layer becomes smaller, or a reduction is out of
    reach.
    """
    wish = getattr(settings, "ranks", {})
    if not wish:
        return {}
    with torch.device("meta"):
        head = head_class(settings.kind)(settings, model.width, outputs)
    shapes = {name: shape for name, shape in shapes_of(linears(head)).items() if name != head.OUTPUT}
    if "rank" in wish:  # the small layers of a head may have a lower full rank
        shapes = {name: shape for name, shape in shapes.items() if largest_rank(shape) >= wish["rank"]}
    total = sum(p.numel() for p in head.parameters())
    try:
        plan = plan_ranks(shapes, total, **wish)
    except ValueError as error:
        raise UserError(f"head: {_said(error, wish)}") from error
    if not plan:
        name, value = next(iter(wish.items()))
        raise UserError(f"head: with {name}: {value} no layer of the {settings.kind} becomes smaller; lower {name}")
    log.info(
        "%d of the %s's layers are factors: %d -> %d parameters", len(plan), settings.kind, total,
        total - plan.saving(shapes),
    )  # fmt: skip
    return dict(plan)


def _said(error: ValueError, wish: dict[str, Any]) -> str:
    if "there is no layer" in str(error):
        return f"rank is {wish.get('rank')}, but no layer would become smaller; lower it"
    return str(error).replace("the whole model", "the whole head")
