"""Whisper's own way: the decoder's language tokens as the classifier, restricted to the languages of the task.

After the token <|startoftranscript|>, the decoder predicts the language: p(language | x) is the softmax over all tokens
of its output at this position. Restricted to the task's languages it is the softmax over their tokens alone. The head
has no weights of its own. Untrained it is zero-shot recognition; encoder and decoder can be trained, with factors and
adapters too, by the cross-entropy of the restricted softmax. ``families.whisper`` computes the logits.

Source: Radford et al., "Robust speech recognition via large-scale weak supervision", 2022; openai/whisper, decoding.py
(detect_language).
"""

from typing import Literal

from lowrank_speech.models.heads.base import Head
from lowrank_speech.settings import key, settings


@settings
class LanguageTokensSettings:
    kind: Literal["language-tokens"] = key("language-tokens", "the language tokens of Whisper's decoder; no weights")
    codes: dict[str, str] = key(
        {},
        "language of the task -> Whisper's code for it, where they differ; by default the same code, or the language "
        "of which it is a variety (pt-BR: pt)",
        default_factory=dict,
    )


class LanguageTokensHead(Head):
    """Its logits come from the decoder: ``Whisper.head_logits``."""

    KIND, SETTINGS, TASK = "language-tokens", LanguageTokensSettings, "classify"
    DECODER = True

    def __init__(self, settings: LanguageTokensSettings, width: int, outputs: int):
        super().__init__(settings)
