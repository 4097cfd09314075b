"""Loss and metric on dev."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.losses.objective import Objective
from lowrank_speech.training.memory.precision import autocast
from lowrank_speech.training.memory.running_out import explained
from lowrank_speech.training.process.distributed import Ranks
from lowrank_speech.training.process.signals import Signals


class Dev(NamedTuple):
    """An evaluation: loss per unit, error rate, and for CTC the share of utterances whose output is only blank."""

    loss: float
    metric: float
    blank: float | None


@torch.no_grad()
def evaluate(
    model: SpeechModel,
    objective: Objective,
    config: TrainConfig,
    batches: Iterable[dict[str, Any]],
    device: torch.device,
    signals: Signals,
    ranks: Ranks,
) -> Dev:
    """Evaluate ``batches``, this process's share of dev. Leaves the model in eval mode.

    The forward pass runs in ``frozen_dtype``. When one process gets a signal, all processes stop.
    """
    model.eval()
    errors = units = utterances = blank = has_blank = 0
    loss, loss_units = 0.0, 0
    for batch in batches:
        features, lengths = batch["features"].to(device), batch["lengths"].to(device)
        with explained(batch, config), autocast(config.frozen_dtype, device):
            found = objective(model, features, lengths, batch["cuts"], errors=True)
        counted = found.errors
        loss, loss_units = loss + found.task_sum, loss_units + found.units
        errors, units = errors + counted.errors, units + counted.units
        blank, has_blank = blank + (counted.blank or 0), has_blank + (counted.blank is not None)
        utterances += len(batch["cuts"])
        if signals.received is not None:
            break
    sums = ranks.sum([errors, units, blank, has_blank, utterances, loss, loss_units, signals.received is not None])
    errors, units, blank, has_blank, utterances, loss, loss_units, stopped = sums
    if stopped:
        raise signals.stop()
    share = blank / max(utterances, 1) if has_blank else None
    return Dev(loss / max(loss_units, 1), errors / max(units, 1), share)
