"""The tokenizer in an export's folder."""

import logging
from pathlib import Path
from typing import Any

from lowrank_speech.exporting.snippets import has_tokenizer

log = logging.getLogger(__name__)


def tokenizer_in(folder: Path) -> Any:
    """Transformers' tokenizer from the files in ``folder``; None, with a warning, if there are none."""
    if not has_tokenizer(folder):
        log.warning("the model has no tokenizer (tokenizer.json, vocab.json, ...): its export writes ids, and no text")
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
