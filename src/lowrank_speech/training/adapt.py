"""Choose what trains: the whole model, only the head, or LoRA adapters."""

import logging
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.lora_settings import LoraSettings
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import TrainConfig

log = logging.getLogger(__name__)


def freeze_for(model: SpeechModel, adapt: str, trains_head: bool) -> None:
    """Set ``requires_grad``: ``full`` trains all but the front end and constants, other values at most the head."""
    fixed = {id(p) for p in (*model.front_end(), *model.constants())}
    for name, parameter in model.named_parameters():
        trains = trains_head if model.is_head(name) else adapt == "full" and id(parameter) not in fixed
        parameter.requires_grad_(trains)


def check_head(settings: Any, adapt: str, recipe: TrainConfig) -> None:
    """Raise UserError if a system with the head of ``settings`` (None: the default one) cannot train as it should."""
    kind, name = getattr(settings, "kind", None), "head.layers: weighted"
    if kind == "language-tokens" and adapt == "head":
        raise UserError(
            "adapt: head: the head language-tokens has no weights of its own; set adapt: full, lora or none"
        )
    if getattr(settings, "layers", "last") == "weighted" and recipe.compile:
        raise UserError(f"{name}: the states within compiled layers cannot be read; set training.compile: false")


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
