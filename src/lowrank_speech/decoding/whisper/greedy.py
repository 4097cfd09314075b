"""Greedy decoding of Whisper, through transformers' own ``generate``.

An utterance gets at most 20 + ``max_tokens_per_second`` x seconds tokens, and never more than the decoder's positions
hold. The default of 50 a second is generous. A second of English makes 3 to 6 of Whisper's byte-level tokens, a second
of fast Chinese or Japanese up to 16 (1 a character, 2 a rare one). Scripts that its vocabulary hardly holds make most:
Burmese 2.8 a character or 8 a syllable, which is 48 in a second of 6 syllables. The 20 leave room in very short
utterances.

A model that has gone astray repeats itself until it is stopped. With ``stop_loops`` an utterance ends where its last 32
tokens or more are one n-gram said four times or more (``whisper.stopping``); what was generated until then stays in the
hypothesis, which is marked with ``stopped: loop``. Other utterances of the batch are not affected.

The score is the log probability of the tokens, the end of text included.
"""

from collections.abc import Callable
from typing import Any, Literal

from lowrank_speech.decoding.base import Decoding, Hypothesis
from lowrank_speech.settings import Count, Positive, key, settings

READS = "model"
SLACK = 20
"""Tokens that an utterance may have beside ``max_tokens_per_second``."""


@settings
class Settings(Decoding):
    """Greedy decoding of Whisper."""

    kind: Literal["greedy"] = key("greedy", "the best token of each step")
    language: Literal["given", "detect"] = key(
        "given", "what Whisper is told: the utterance's language, or nothing, so that it detects one"
    )
    max_new_tokens: Count | None = key(None, "bound on the tokens of any utterance; null: as many as fit the decoder")
    max_tokens_per_second: Positive | None = key(
        50.0,
        "bound on the tokens of an utterance by its length, beside 20 that each may have; null: no such bound",
    )
    stop_loops: bool = key(True, "end an utterance that only repeats itself")


def open(source: Any, lang: Any, settings: Settings) -> Callable[[dict[str, Any]], list[Hypothesis]]:
    """A decoder of the network ``source``; see ``decoding.base``. UserError: ``lang`` has other tokens.

    An utterance without a language, or with one that the model does not know, gets the one that the model detects.
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
    """The most tokens of each utterance, from its frames of 10 ms."""
    return None if per_second is None else [SLACK + int(per_second * n / 100) for n in frames]
