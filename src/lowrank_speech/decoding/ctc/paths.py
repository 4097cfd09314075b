"""Shared by CTC decoders: the token set of a model's outputs, and the conversion of paths to labels.

F frames.
"""

from typing import Any

import torch
from torch import Tensor

from lowrank_speech.errors import UserError

BLANK = 0


def tokens_of(source: Any, lang: Any) -> Any:
    """The token set of ``lang``. UserError: the outputs of ``source`` stand for other tokens."""
    if lang.tokens is None or source.lang_sha256 != lang.sha256:
        raise UserError(
            f"decode: {source.folder} was trained with other tokens than those of the given lang folder (kind "
            f"{lang.kind}); give the folder that it was trained with"
        )
    return lang.tokens


def collapse(path: Tensor) -> list[int]:
    """Convert frame-level symbols (F,) to labels: merge adjacent repeats, drop blanks."""
    merged = torch.unique_consecutive(path)
    return merged[merged != BLANK].tolist()
