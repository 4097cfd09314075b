"""The token set of a Whisper decoder: a published model's own, or that of a base from scratch."""

from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.models.whisper_vocabulary import Vocabulary, open_tokenizer

UNSPACED = ("zh", "yue", "ja", "th", "lo", "my", "km", "bo")
"""Languages that write words without blanks. Source: openai/whisper, tokenizer.py (split_to_word_tokens)."""


class WhisperTokens:
    """Whisper's own tokenizer, from the files in a model folder, with the interface of ``lang.tokens``.

    ``leading_space``: texts begin with a blank, except in ``UNSPACED`` languages, as in the transcripts that published
    Whispers were trained with.
    """

    def __init__(self, folder: str | Path, leading_space: bool = False):
        self._leading_space = leading_space
        self._tokenizer = open_tokenizer(folder)
        self._ids = Vocabulary.of(self._tokenizer, folder)
        self.size, self.eot, self.sot = len(self._tokenizer), self._ids.eot, self._ids.sot
        # English-only models (whisper-tiny.en) have neither languages nor tasks in their prompt.
        self.language_ids = self._ids.languages

    def prompt(self, language: str | None) -> list[int]:
        """Ids of the prompt for a transcript in ``language``."""
        if not self.language_ids:
            return [self.sot, self._ids.no_timestamps]
        if language not in self.language_ids:
            raise UserError(
                f"Whisper does not know the language {language!r}; expected one of: "
                f"{', '.join(sorted(self.language_ids))}"
            )
        return [self.sot, self.language_ids[language], self._ids.tasks["transcribe"], self._ids.no_timestamps]

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Ids of ``text`` without special tokens."""
        spaced = self._leading_space and (language or "").replace("_", "-").partition("-")[0] not in UNSPACED
        return self._tokenizer(f" {text}" if spaced else text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        """Text of ``ids``; special tokens are left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def decoder_tokens(model: SpeechModel, folder: str | Path, lang: Any) -> Any:
    """Tokens of ``model``'s decoder: those of ``lang`` for a base from scratch, else Whisper's own from ``folder``."""
    if lang.tokens is None:
        return WhisperTokens(folder, lang.leading_space)
    if model.meta.lang_sha256 != lang.sha256:
        raise UserError(
            f"{folder}: the decoder was trained on other tokens than those in the given lang folder; a published "
            f"Whisper needs a lang of `kind: whisper`, a base from scratch needs the lang of its pretraining"
        )
    return lang.tokens
