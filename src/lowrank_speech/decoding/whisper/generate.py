"""Greedy search with Whisper: transformers' ``generate``, with a language and a token limit for each row.

B batch, F frames, C mel bands.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from lowrank_speech.decoding.whisper.stopping import Likelihood, Stop
from lowrank_speech.models.speech import SpeechModel

log = logging.getLogger(__name__)
PROMPT = 4
"""Number of tokens before a transcript: start, language, task, no time stamps."""


@dataclass(frozen=True)
class Generated:
    """Result for one utterance; the fields are those of ``decoding.base.Hypothesis``."""

    ids: list[int]
    score: float
    language: str | None
    stopped: str | None


def generate(
    model: SpeechModel,
    features: Tensor,
    lengths: Tensor,
    tokens: Any,
    languages: Sequence[str | None] | None,
    max_new_tokens: int | None = None,
    bounds: Sequence[int] | None = None,
    loops: bool = False,
) -> list[Generated]:
    """Generate tokens for log-mel ``features`` (B, F, C) of ``lengths`` (B,) frames, without prompt and end of text.

    ``languages``: one for each row; None, for a row or for all: the model detects it. ``bounds``: maximum number of
    tokens of each row. ``loops``: stop rows that repeat themselves.
    """
    # Silence warnings about arguments, which would come with each batch.
    for name in ("generation", "models.whisper"):
        logging.getLogger(f"transformers.{name}").setLevel(logging.ERROR)
    mel, options = model.pad_mel(features, lengths), {}
    detected: list[str | None] = [None] * len(mel)
    if tokens.language_ids:
        languages = list(languages or [None] * len(mel))
        unknown = [i for i, language in enumerate(languages) if language is None]
        if unknown:
            for i, language in zip(unknown, _detect(model, mel[unknown], tokens), strict=True):
                languages[i] = detected[i] = language
        options = {"task": "transcribe", "language": [f"<|{language}|>" for language in languages]}
        # generate() only looks up the lower-case code.
        ids = {f"<|{language.lower()}|>": i for language, i in tokens.language_ids.items()}
        model.hf.generation_config.lang_to_id = {**model.hf.generation_config.lang_to_id, **ids}
    room = model.config.max_target_positions - PROMPT
    limit = min(max_new_tokens or room, room)
    most = torch.tensor([min(limit, bound) for bound in bounds or [limit] * len(mel)], device=mel.device)
    stop, likelihood = Stop(most, tokens.eot, loops), Likelihood()
    out = model.hf.generate(
        input_features=mel,
        num_beams=1,
        do_sample=False,
        max_new_tokens=int(most.max()),
        return_timestamps=False,
        stopping_criteria=StoppingCriteriaList([stop]),
        logits_processor=LogitsProcessorList([likelihood]),
        **options,
    )
    prompt = {tokens.sot, *tokens.language_ids.values()}
    rows, counts = [], []
    for row, stopped in zip(out.tolist(), stop.lengths.tolist(), strict=True):
        row = row[:stopped] if stopped else row
        ended = tokens.eot in row
        row = row[: row.index(tokens.eot)] if ended else row
        counts.append(len(row) + ended)
        rows.append([i for i in row if i not in prompt])
    why = [("loop" if looped else "bound") if n else None for n, looped in zip(stop.lengths, stop.looped, strict=True)]
    return [Generated(*row) for row in zip(rows, likelihood.sums(counts), detected, why, strict=True)]


def _detect(model: SpeechModel, mel: Tensor, tokens: Any) -> list[str]:
    """The language that the model detects in each utterance."""
    names = {i: language for language, i in tokens.language_ids.items()}
    ids = model.hf.detect_language(input_features=mel, generation_config=model.hf.generation_config)
    return [names[i] for i in ids.tolist()]
