"""The token set of a Whisper decoder: the one that comes with a published model, or that of a base from scratch."""

from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.models.speech import SpeechModel


class WhisperTokens:
    """Whisper's own tokenizer, from the files in a model folder, with the interface of ``lang.tokens``."""

    def __init__(self, folder: str | Path, generation_config: Any):
        from transformers import WhisperTokenizer

        try:
            self._tokenizer = WhisperTokenizer.from_pretrained(folder)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{folder}: Whisper's tokenizer files are missing or broken: {error}") from error
        self._generation = generation_config
        self.size = len(self._tokenizer)
        self.eot = self._tokenizer.eos_token_id
        self.sot = self._tokenizer.convert_tokens_to_ids("<|startoftranscript|>")
        # English-only models (whisper-tiny.en) have neither languages nor tasks in their prompt.
        self.language_ids = {
            k.strip("<|>"): i for k, i in (getattr(generation_config, "lang_to_id", None) or {}).items()
        }

    def prompt(self, language: str | None) -> list[int]:
        """Ids that open a transcript in ``language``."""
        if not self.language_ids:
            return [self.sot, self._generation.no_timestamps_token_id]
        if language not in self.language_ids:
            raise UserError(f"Whisper knows no language {language!r}; it knows {', '.join(sorted(self.language_ids))}")
        task = self._generation.task_to_id["transcribe"]
        return [self.sot, self.language_ids[language], task, self._generation.no_timestamps_token_id]

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Ids of ``text`` without special tokens."""
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; special tokens are left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def decoder_tokens(model: SpeechModel, folder: str | Path, lang: Any) -> Any:
    """Tokens of ``model``'s decoder: those of ``lang`` for a base from scratch, else Whisper's own from ``folder``."""
    if lang.tokens is None:
        return WhisperTokens(folder, model.hf.generation_config)
    if model.meta.lang_sha256 != lang.sha256:
        raise UserError(
            f"{folder}: the decoder was trained on other tokens than those in the given lang folder; a published "
            f"Whisper needs a lang of `kind: whisper`, a base from scratch the lang that it was pretrained with"
        )
    return lang.tokens
