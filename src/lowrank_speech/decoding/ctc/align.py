"""Forced alignment: when each word of the reference is spoken, from stored CTC emissions.

The hypothesis is the reference as the token set writes it, so an error rate of this decoder only counts what the tokens
lack. Utterances that cannot be aligned are set aside. Source: ``torchaudio.functional.forced_align`` (Viterbi).
"""

from collections.abc import Callable
from typing import Any, Literal

from lowrank_speech.decoding.base import Decoding, Hypothesis, Unusable
from lowrank_speech.settings import Positive, key, settings

READS = "emissions"

TOO_SHORT, IMPOSSIBLE = "too short for its text", "no alignment"


@settings
class Settings(Decoding):
    """Alignment of the reference with the emissions of a CTC model."""

    kind: Literal["align"] = key("align", "forced alignment of the reference: words with times")
    batch_seconds: Positive = key(600.0, "seconds of speech in a batch")


def open(source: Any, lang: Any, settings: Settings) -> Callable[[dict[str, Any]], list[Hypothesis | Unusable]]:
    """Decoder for the stored emissions ``source``; see ``decoding.base``. UserError: the model has other tokens."""
    from lowrank_speech.decoding.ctc.paths import tokens_of
    from lowrank_speech.decoding.ctc.spelling import spellings
    from lowrank_speech.decoding.ctc.times import aligned, needed, score_of, words_of

    tokens, spelled = tokens_of(source, lang), spellings(lang)

    def decode(batch: dict[str, Any]) -> list[Hypothesis | Unusable]:
        result: list[Hypothesis | Unusable] = []
        rows = zip(batch["cuts"], batch["log_probs"], batch["frames"].tolist(), batch["frame_seconds"], strict=True)
        for cut, log_probs, frames, seconds in rows:
            supervision = cut.supervisions[0]
            text = lang.normalise(supervision.text, supervision.language)
            ids = tokens.encode(text, supervision.language)
            spans = aligned(log_probs[:frames], ids)
            if spans:
                words, score = words_of(spans, spelled, seconds), score_of(spans)
                result.append(Hypothesis(tuple(ids), tokens.decode(ids), score, words=words))
            elif frames < needed(ids):
                result.append(Unusable(TOO_SHORT, f"{frames} frames; the {len(ids)} tokens need {needed(ids)}"))
            else:
                result.append(Unusable(IMPOSSIBLE, f"its {len(ids)} tokens have probability 0 in {frames} frames"))
        return result

    return decode
