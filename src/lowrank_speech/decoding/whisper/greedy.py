"""Greedy decoding of Whisper, with transformers' ``generate``.

An utterance gets at most 20 + ``max_tokens_per_second`` x seconds tokens, and never more than the decoder has
positions. The default of 50 per second is generous. A second of English has 3 to 6 of Whisper's byte-level tokens, a
second of fast Chinese or Japanese up to 16 (1 for a character, 2 for a rare one). Scripts that are rare in its
vocabulary need most: Burmese 2.8 per character or 8 per syllable, which is 48 for a second of 6 syllables. The 20
leave room in very short utterances.

A model that has lost track repeats itself until it is stopped. With ``stop_loops`` an utterance ends once at least its
last 32 tokens are one n-gram, repeated at least four times (``whisper.stopping``). The hypothesis keeps the tokens so
far, and is marked ``stopped: loop``. Other utterances of the batch are not affected.

The score is the log probability of the tokens, including the end of text.
"""

from collections.abc import Callable
from typing import Any, Literal

from lowrank_speech.decoding.base import Hypothesis
from lowrank_speech.decoding.whisper.settings import WhisperDecoding
from lowrank_speech.settings import key, settings

READS = "model"


@settings
class Settings(WhisperDecoding):
    """Greedy decoding of Whisper."""

    kind: Literal["greedy"] = key("greedy", "the best token of each step")


def open(source: Any, lang: Any, settings: Settings) -> Callable[[dict[str, Any]], list[Hypothesis]]:
    """Decoder for the network ``source``; see ``decoding.base``. UserError: the model was trained with another lang.

    If an utterance has no language, or one that the model does not know, the model detects one.
    """
    from lowrank_speech.decoding.whisper.decoder import Decoder

    return Decoder(source, lang, settings)
