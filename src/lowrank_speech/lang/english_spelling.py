"""British -> American spellings: the table of OpenAI's normaliser for English, ``normalizer.json`` in a checkpoint.

english_spelling.json is whisper/normalizers/english.json of openai/whisper (commit c0d2f62), unchanged. Its licence is
MIT; english_spelling.LICENSE has the notice.
"""

import json
from pathlib import Path


def american() -> dict[str, str]:
    """British spelling -> American spelling, in lower case."""
    return json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
