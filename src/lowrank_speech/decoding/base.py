"""What all decoders share: the hypothesis that they return, and the interface of a kind.

A kind of decoder is a module ``decoding/<folder>/<kind>.py`` with

    READS                              "model" or "emissions": what its batches hold
    Settings                           settings class: ``kind``, the keys of :class:`Decoding`, and the kind's own keys
    open(source, lang, settings)       a function from a batch to a list with a :class:`Hypothesis` for each of its rows

``source`` is ``decoding.sources.Network`` or ``decoding.sources.Stored``, by READS; ``lang`` is the ``lang.load.Lang``
of a recognition task, else None. A batch is a dict (B batch, T samples, F frames, C features, V vocabulary):

    cuts       list of B Lhotse cuts
    features   of a network: (B, T) or (B, F, C) float32, its model's input, and ``lengths`` (B,) int64
    log_probs  of stored emissions: (B, F, V) float32, zero beyond ``frames`` (B,) int64

The config check reads ``Settings`` before the first job, so a kind imports torch inside its functions.

    decoder = registry.module("greedy", "ctc").open(source, lang, settings)
    hypotheses = decoder(batch)
"""

from dataclasses import dataclass
from typing import Literal

from lowrank_speech.settings import Positive, key, settings


@dataclass(frozen=True)
class Word:
    """A word of a hypothesis. ``start``, ``end``: seconds from the start of the cut; ``score``: log probability."""

    text: str
    start: float
    end: float
    score: float | None = None


@dataclass(frozen=True)
class Hypothesis:
    """What a decoder makes of an utterance.

    ids        token ids without prompt, blanks and end of text; the class in language recognition
    text       the ids as text, before normalisation; the language in language recognition
    score      log probability; None where the decoder has none
    nbest      alternatives with their scores, the best first and this one among them; empty: the decoder has none
    words      words with times; empty: the decoder has none
    scores     language recognition: a log-likelihood for each label of the model, in the labels' order
    language   the language that the decoder detected because it was given none
    stopped    why the decoder stopped before the model ended: ``bound`` (of the number of tokens), ``loop``; else None
    """

    ids: tuple[int, ...]
    text: str
    score: float | None = None
    nbest: tuple["Hypothesis", ...] = ()
    words: tuple[Word, ...] = ()
    scores: tuple[float, ...] = ()
    language: str | None = None
    stopped: str | None = None


@settings
class Decoding:
    """Keys of every decoder."""

    batch_seconds: Positive = key(60.0, "seconds of speech decoded at once")


@settings
class Runtime:
    """Where a network runs: no hash sees these keys."""

    device: Literal["auto", "cpu", "cuda"] = key("auto", "where to compute; auto: CUDA if there is one", runtime=True)
