"""Read the heads of a config with their classes, and check that the Whisper of language tokens has the languages."""

import json
from collections.abc import Mapping
from typing import Any

from lowrank_speech import published
from lowrank_speech.errors import UserError
from lowrank_speech.lang.spoken import whisper_codes
from lowrank_speech.settings import read
from lowrank_speech.workflow.check_heads import TOKENS
from lowrank_speech.workflow.config import head, systems


def check_heads(config: Mapping[str, Any]) -> None:
    """Raise UserError if a class refuses the head of a task or method, or a Whisper lacks a language of its task."""
    for kind in ("tasks", "methods"):
        for name, section in config[kind].items():
            if (own := section.get("head")) is not None:
                # Only here, because the modules of heads import torch.
                from lowrank_speech.models.heads.registry import head_class

                read(head_class(own["kind"]).SETTINGS, own, f"{kind}.{name}.head")
    for system in systems(config):
        own = head(config, system)
        if own is not None and own["kind"] == TOKENS:
            source = config["bases"][system.base]["source"]
            _check_languages(source, config["tasks"][system.task].get("languages") or (), own["codes"])


def _check_languages(source: str, labels: Any, codes: Mapping[str, str]) -> None:
    """Refuse a local Whisper that lacks tokens for languages, or for ``labels``; the stage checks those of the hub."""
    if source == "scratch" or source.endswith(".en"):
        known = None if source == "scratch" else []
    else:
        known = _languages(source)
    if known is None:
        return
    if not known:
        raise UserError(
            f"head: language-tokens: {source} is an English-only Whisper, which was not trained with language tokens; "
            f"use a multilingual one"
        )
    if labels:
        whisper_codes(labels, codes, known, source)


def _languages(source: str) -> list[str] | None:
    """Codes of the languages of a local Whisper; None: not known here (older checkpoints have no list)."""
    try:
        said = json.loads((published.local(source) / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if said.get("is_multilingual") is False:
        return []
    known = said.get("lang_to_id")
    return None if known is None else [token[2:-2] for token in known]
