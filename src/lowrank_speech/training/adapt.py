"""Choose what trains: the whole model, only the head, or LoRA adapters."""

import logging
from typing import Any

from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.lora_settings import LoraSettings
from lowrank_speech.models.speech import SpeechModel

log = logging.getLogger(__name__)


def freeze_for(model: SpeechModel, adapt: str, trains_head: bool) -> None:
    """Set ``requires_grad``: ``full`` trains all but the front end and constants, other values at most the head."""
    fixed = {id(p) for p in (*model.front_end(), *model.constants())}
    for name, parameter in model.named_parameters():
        trains = trains_head if model.is_head(name) else adapt == "full" and id(parameter) not in fixed
        parameter.requires_grad_(trains)


def constrained(model: SpeechModel, body: bool) -> Any:
    """The modules whose factors a constraint concerns, by ``body`` and ``head.``; None if there are none.

    ``body``: whether those of the pretrained body train.
    """
    parts, settings = {"body": model.body} if body else {}, getattr(model.head, "settings", None)
    if getattr(settings, "ranks", None) or getattr(settings, "classifier", None) == "orthonormal":
        parts["head"] = model.head
    if set(parts) == {"body"}:
        return model.body
    return nn.ModuleDict(parts) if parts else None


def lora_on(model: SpeechModel, settings: LoraSettings | None) -> Any:
    """Add LoRA adapters to the body of ``model`` in place; the head trains too. Returns the peft model."""
    # Imported here, so that the code hash of other ways to adapt can leave it out.
    from lowrank_speech.lowrank.lora import add_lora

    if settings is None:
        raise UserError("adapt: lora needs the section `lora`")
    patterns = model.layer_patterns(settings.targets) if settings.targets else model.LORA
    try:
        peft_model, report = add_lora(model.body, settings, patterns)
    except ValueError as error:
        raise UserError(f"lora: {error}") from error
    log.info("LoRA on %d layers: %d of %d parameters train", *(report[k] for k in ("layers", "trainable", "total")))
    return peft_model
