"""Loss and metric on dev."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.objective import Objective


class Dev(NamedTuple):
    """An evaluation: loss per unit, the metric (an error rate), and for CTC the share of utterances of blank output."""

    loss: float
    metric: float
    blank: float | None


@torch.no_grad()
def evaluate(
    model: SpeechModel,
    objective: Objective,
    batches: Iterable[dict[str, Any]],
    device: torch.device,
    between: Callable[[], None],
) -> Dev:
    """Evaluate on ``batches``; leaves the model in eval mode. ``between`` is called after each and may raise."""
    model.eval()
    errors = units = utterances = blank = 0
    loss, loss_units = 0.0, 0
    for batch in batches:
        features, lengths = batch["features"].to(device), batch["lengths"].to(device)
        found = objective(model, features, lengths, batch["cuts"])
        loss, loss_units = loss + found.task_sum, loss_units + found.units
        wrong = objective.errors(model, features, lengths, batch["cuts"])
        errors, units, blank = errors + wrong.errors, units + wrong.units, blank + wrong.blank
        utterances += len(batch["cuts"])
        between()
    share = blank / max(utterances, 1) if objective.task == "ctc" else None
    return Dev(loss / max(loss_units, 1), errors / max(units, 1), share)
