"""A language classifier on a base: the head that the config names, with its factors, for the languages of the task."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.lang.spoken import whisper_codes
from lowrank_speech.models.heads.registry import head_class
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.models.tasks import to_task
from lowrank_speech.settings import read
from lowrank_speech.training.config import TrainConfig

log = logging.getLogger(__name__)


def head_settings(section: dict[str, Any] | None) -> Any:
    """The settings of the section ``head``; None: the default head. Raises UserError for an unknown kind or key."""
    return None if section is None else read(head_class(section.get("kind")).SETTINGS, section, "head")


def check_training(settings: Any, adapt: str, recipe: TrainConfig) -> None:
    """Raise UserError if a system with the head of ``settings`` (None: the default one) cannot train as it should."""
    if settings is not None and head_class(settings.kind).DECODER and adapt == "head":
        raise UserError(
            f"adapt: head: the head {settings.kind} has no weights of its own; set adapt: full, lora or none"
        )
    if getattr(settings, "layers", "last") == "weighted" and recipe.compile:
        raise UserError(
            "head.layers: weighted: the states within compiled layers cannot be read; set training.compile: false"
        )


def check_base(base: SpeechModel, settings: Any, folder: Path, labels: Sequence[str]) -> None:
    """Raise UserError if the base in ``folder`` cannot have the head. ``labels``: the languages, as far as known."""
    if settings is None or not head_class(settings.kind).DECODER:
        return
    if not base.decodes:
        raise UserError(
            f"head: language-tokens are those of Whisper's decoder, but {folder} is a {base.family} model for "
            f"{base.task}; use a Whisper with its decoder as the base, or another head"
        )
    if not base.languages:
        raise UserError(
            f"head: language-tokens: {folder} is an English-only Whisper, which was not trained with language tokens; "
            f"use a multilingual one"
        )
    if labels:
        whisper_codes(labels, settings.codes, base.languages, str(folder))


def classifier(
    base: SpeechModel, settings: Any, labels: Sequence[str], folder: Path, seed: int
) -> tuple[SpeechModel, bool]:
    """``base``, from ``folder``, with a head for ``labels``; also returns whether the head's weights are new."""
    check_base(base, settings, folder, labels)
    plan: dict[str, int] = {}
    if settings is not None and head_class(settings.kind).DECODER:
        codes = whisper_codes(labels, settings.codes, base.languages, str(folder))
        settings = dataclasses.replace(settings, codes=codes)
    elif getattr(settings, "ranks", None):
        # Imported here, so that the code hash of heads without factors can leave it out.
        from lowrank_speech.training.head_ranks import head_plan

        plan = head_plan(base, settings, len(labels))
    model, new = to_task(base, "classify", len(labels), labels, seed=seed, head=settings, head_plan=plan)
    log.info("head %s: %d parameters", model.head.KIND, model.parameters_head())
    return model, new
