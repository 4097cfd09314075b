"""Prefix beam search over stored CTC emissions, with an n-gram of words, characters or tokens, and hot words.

The score of a label sequence is

    log p(labels | speech)        summed over all alignments
    + lm_weight * log p(text)     the language model with its end of sentence; unknown words also get ``unknown``
    + insertion * words
    + hotword_weight * occurrences of hot words

``decoding.ctc.prefixes`` has the search. docs/decoding.md says why it is our own, and compares it with other libraries.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from lowrank_speech.decoding.base import Decoding, Hypothesis
from lowrank_speech.errors import UserError
from lowrank_speech.settings import Count, Positive, key, settings

READS = "emissions"

Weight = Annotated[float, Field(ge=0, le=100)]
Bonus = Annotated[float, Field(ge=-100, le=100)]


@settings
class Settings(Decoding):
    """Prefix beam search on a CTC model."""

    kind: Literal["beam"] = key("beam", "prefix beam search")
    beam: Count = key(100, "states (prefix, and whether it ends in blank) that are kept after each frame; 1 is greedy")
    beam_threshold: Positive = key(25.0, "states that are this much (nats) worse than the best one are dropped")
    token_beam: Count | None = key(None, "only this many symbols of a frame may extend a prefix; null: all")
    nbest: Count = key(1, "number of different texts to list in hypotheses.jsonl, with their scores")
    lm: str | None = key(None, "language model, a name under lms; null: none")
    lm_weight: Weight = key(0.5, "scale of the language model's log probabilities")
    insertion: Bonus = key(0.0, "added to the score for each word")
    vocabulary: Literal["open", "closed"] = key(
        "open", "with a word n-gram: open allows any word, closed only the words of the language model"
    )
    unknown: float = key(
        -10.0, "with a word n-gram and open words: added, times lm_weight, for each unknown word", ge=-1000, le=0
    )
    hotwords: tuple[str, ...] = key((), "words or phrases that get a bonus wherever they occur")
    hotword_weight: Weight = key(5.0, "bonus for each occurrence of a hot word")
    batch_seconds: Positive = key(600.0, "seconds of speech in a batch")

    def __post_init__(self) -> None:
        if self.vocabulary == "closed" and self.lm is None:
            raise ValueError(
                "vocabulary is closed, but no lm is named, whose words could be allowed; name one, or remove vocabulary"
            )


def open(source: Any, lang: Any, settings: Settings) -> Callable[[dict[str, Any]], list[Hypothesis]]:
    """Decoder for the stored emissions ``source``; see ``decoding.base``.

    UserError: the model was trained with other tokens, the language model has others, or they cannot write a hot word.
    """
    from lowrank_speech.decoding.ctc.paths import tokens_of
    from lowrank_speech.decoding.ctc.prefixes import Limits, search
    from lowrank_speech.decoding.ctc.spelling import spellings
    from lowrank_speech.decoding.ctc.times import aligned, words_of

    tokens, spelled = tokens_of(source, lang), spellings(lang)
    scorer = scorer_of(source.resources.get("lm"), lang, settings)
    most = 1 if settings.nbest == 1 else None  # several sequences may have one text
    limits = Limits(settings.beam, settings.beam_threshold, settings.token_beam)

    def decode(batch: dict[str, Any]) -> list[Hypothesis]:
        log_probs, frames = batch["log_probs"].numpy(), batch["frames"].numpy()
        result = []
        for row, found in enumerate(search(log_probs, frames, limits, scorer, most)):
            nbest = _different(found, tokens, settings.nbest)
            if not nbest:
                result.append(Hypothesis((), "", stopped="nothing"))
                continue
            best, seconds = nbest[0], float(batch["frame_seconds"][row])
            spans = aligned(batch["log_probs"][row, : frames[row]], best.ids)
            listed = tuple(nbest) if settings.nbest > 1 else ()
            result.append(Hypothesis(best.ids, best.text, best.score, listed, words_of(spans, spelled, seconds)))
        return result

    return decode


def _different(found: list[tuple[tuple[int, ...], float]], tokens: Any, most: int) -> list[Hypothesis]:
    """The best label sequence of each of the ``most`` best texts."""
    result: dict[str, Hypothesis] = {}
    for ids, score in found:
        if len(result) == most:
            break
        text = tokens.decode(ids)
        result.setdefault(text, Hypothesis(ids, text, score))
    return list(result.values())


def scorer_of(model: Any, lang: Any, settings: Settings) -> Any:
    """What is added to the acoustic score, as a scorer of ``decoding.ctc.prefixes``; None: nothing is added."""
    from lowrank_speech.decoding.ctc.fusion import Sum, Units, WordEnds, Words
    from lowrank_speech.decoding.ctc.hotwords import HotWords, written
    from lowrank_speech.decoding.ctc.spelling import spellings

    spelled, parts, insertion = spellings(lang), [], settings.insertion
    if model is not None:
        model.check_lang(lang, "decoder.lm")
        if settings.vocabulary == "closed" and model.unit != "word":
            raise UserError(
                f"decoder.vocabulary: closed allows the words of a word n-gram, but {settings.lm} is one of "
                f"{model.unit}s; name another lm, or remove vocabulary"
            )
    if model is not None and (settings.lm_weight or settings.vocabulary == "closed"):
        if model.unit == "word":
            closed = settings.vocabulary == "closed"
            parts.append(Words(model, spelled, settings.lm_weight, insertion, settings.unknown, closed))
            insertion = 0.0
        else:
            parts.append(Units(model, spelled, settings.lm_weight, lang.tokens.unk))
    if insertion:
        parts.append(WordEnds(spelled, insertion))
    if settings.hotwords:
        hotwords = written(settings.hotwords, lang, "decoder.hotwords")
        parts.append(HotWords(hotwords, spelled, settings.hotword_weight))
    return Sum(parts) if parts else None
