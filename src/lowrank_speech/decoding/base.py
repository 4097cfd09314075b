"""Shared by all decoders: the interface of a decoder kind, and the hypothesis that it returns.

A kind of decoder is a module ``decoding/<folder>/<kind>.py`` with

    READS                              "model" or "emissions": the input of the decoder
    Settings                           settings class: ``kind``, the keys of :class:`Decoding`, and the kind's own keys
    open(source, lang, settings)       returns a function from a batch to a list with one :class:`Hypothesis` (or
                                       :class:`Unusable`) per row

``source`` is a ``decoding.sources.Network`` or ``decoding.sources.Stored``, depending on READS; its ``resources`` are
what the settings name (``decoding.resources``). ``lang`` is the ``lang.load.Lang`` of a recognition task, else None. A
batch is a dict (B batch, T samples, F frames, C features, V vocabulary):

    cuts       list of B Lhotse cuts
    features   with READS = "model": the model's input, (B, T) or (B, F, C) float32, and ``lengths`` (B,) int64
    log_probs  with READS = "emissions": (B, F, V) float32, zero beyond ``frames`` (B,) int64; ``frame_seconds``: list
               with the duration of a frame of each cut

Modules must import torch inside functions, because the config check reads ``Settings`` before the first job.

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
class Segment:
    """A stretch of a hypothesis. ``start``, ``end``: seconds from the start of the cut."""

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Hypothesis:
    """The result of decoding an utterance.

    ids        token ids without prompt, blanks and end of text; in language recognition the class
    text       the ids as text, before normalisation; in language recognition the language
    score      log probability; None: not available
    nbest      alternatives with their scores, the best first, including this one; empty: not available
    words      words with times; empty: not available
    scores     language recognition: log-likelihood of each label of the model, in the order of the labels; one more
               with ``out_of_set``
    embedding  language recognition: what the output layer of the head reads; empty: not asked for
    language   the language that the decoder detected, if none was given
    stopped    why the decoder stopped before the end of text: ``bound`` (on the number of tokens), ``loop``; why
               there is no text: ``nothing`` (no hypothesis is left), ``empty`` (no frame of speech), ``no_speech``
               (the decoder heard none); or None
    segments   stretches with times; empty: not available
    no_speech  probability that there is no speech; None: not available
    """

    ids: tuple[int, ...]
    text: str
    score: float | None = None
    nbest: tuple["Hypothesis", ...] = ()
    words: tuple[Word, ...] = ()
    scores: tuple[float, ...] = ()
    language: str | None = None
    stopped: str | None = None
    segments: tuple[Segment, ...] = ()
    no_speech: float | None = None
    embedding: tuple[float, ...] = ()


@dataclass(frozen=True)
class Unusable:
    """Returned instead of a hypothesis for an utterance that the decoder cannot take; the stage sets it aside."""

    reason: str
    detail: str


@settings
class Decoding:
    """Keys of every decoder."""

    batch_seconds: Positive = key(60.0, "seconds of speech in a batch")

    @property
    def any_length(self) -> bool:
        """Whether the decoder takes cuts that are longer than the model's window."""
        return False


@settings
class Runtime:
    """Where a network runs. No hash includes these keys."""

    device: Literal["auto", "cpu", "cuda"] = key("auto", "where to compute; auto: CUDA if available", runtime=True)
