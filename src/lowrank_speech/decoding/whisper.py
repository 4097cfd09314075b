"""Whisper decoding through transformers' own ``generate``."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lowrank_speech.models.speech import SpeechModel

log = logging.getLogger(__name__)


def generate(
    model: SpeechModel,
    features: Tensor,
    lengths: Tensor,
    tokens: Any,
    languages: Sequence[str] | None,
    max_new_tokens: int | None = None,
) -> list[list[int]]:
    """Token ids of each utterance, without prompt and end of text.

    ``languages``: one a row, given to the decoder; None lets the model detect them. Greedy.
    """
    hf, options = model.hf, {}
    if tokens.language_ids:
        options["task"] = "transcribe"
        if languages is not None:
            for language in sorted(set(languages) - set(tokens.language_ids), key=str):
                tokens.prompt(language)  # says what is wrong with it
            options["language"] = [f"<|{language}|>" for language in languages]
    room = model.config.max_target_positions - 4
    limit = min(max_new_tokens or room, room)
    out = hf.generate(
        input_features=model.pad_mel(features, lengths),
        num_beams=1,
        do_sample=False,
        max_new_tokens=limit,
        return_timestamps=False,
        **options,
    )
    prompt = {tokens.sot, *tokens.language_ids.values()}
    rows = []
    for row in out.tolist():
        ids = [i for i in row if i not in prompt]
        ids = ids[: ids.index(tokens.eot)] if tokens.eot in ids else ids
        rows.append(ids)
    return rows
