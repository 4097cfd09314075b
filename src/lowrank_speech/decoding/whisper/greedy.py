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

from lowrank_speech.decoding.base import Decoding, Hypothesis
from lowrank_speech.settings import Count, Positive, key, settings

READS = "model"
SLACK = 20
"""Tokens that an utterance may have in addition to ``max_tokens_per_second``."""


@settings
class Settings(Decoding):
    """Greedy decoding of Whisper."""

    kind: Literal["greedy"] = key("greedy", "the best token of each step")
    language: Literal["given", "detect"] = key(
        "given", "given: tell Whisper the language of the utterance; detect: let it detect the language"
    )
    max_new_tokens: Count | None = key(
        None, "maximum number of tokens per utterance; null: the decoder's number of positions"
    )
    max_tokens_per_second: Positive | None = key(
        50.0, "maximum number of tokens per second of an utterance, in addition to 20; null: no limit by duration"
    )
    stop_loops: bool = key(True, "stop an utterance whose output only repeats itself")


def open(source: Any, lang: Any, settings: Settings) -> Callable[[dict[str, Any]], list[Hypothesis]]:
    """Decoder for the network ``source``; see ``decoding.base``. UserError: the model was trained with another lang.

    If an utterance has no language, or one that the model does not know, the model detects one.
    """
    from lowrank_speech.decoding.whisper.generate import generate
    from lowrank_speech.lang.codes import nearest_language
    from lowrank_speech.models.text import decoder_tokens

    tokens = decoder_tokens(source.model, source.folder, lang)

    def decode(batch: dict[str, Any]) -> list[Hypothesis]:
        languages = None
        if settings.language == "given":
            given = [cut.supervisions[0].language for cut in batch["cuts"]]
            languages = [nearest_language(code, tokens.language_ids) for code in given]
        rows = generate(
            source.model,
            batch["features"],
            batch["lengths"],
            tokens,
            languages,
            settings.max_new_tokens,
            _bounds(batch["lengths"].tolist(), settings.max_tokens_per_second),
            settings.stop_loops,
        )
        return [
            Hypothesis(tuple(row.ids), tokens.decode(row.ids), row.score, language=row.language, stopped=row.stopped)
            for row in rows
        ]

    return decode


def _bounds(frames: list[int], per_second: float | None) -> list[int] | None:
    """Maximum number of tokens of each utterance, from its number of 10 ms frames."""
    return None if per_second is None else [SLACK + int(per_second * n / 100) for n in frames]
