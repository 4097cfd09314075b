"""Recognise with a CTC model: short recordings in batches, long ones in overlapping chunks.

Chunks begin at whole frames. Each overlaps its neighbours by ``2 * MARGIN`` seconds; of the overlap each side gives the
half that is farther from its own edge. Together the frames are those of the whole recording, up to what a network hears
beyond a margin. Decoding runs over stretches of at most ``STRETCH`` seconds, cut in the longest pause of their second
half, so that neither a token nor a search is cut. Waveforms are normalised by the mean and variance of the whole
recording, as if it were decoded at once.

F frames, V vocabulary.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lowrank_speech.decoding import registry
from lowrank_speech.decoding.base import Hypothesis, Unusable, Word
from lowrank_speech.decoding.ctc.paths import BLANK
from lowrank_speech.decoding.ctc.spelling import spellings
from lowrank_speech.decoding.ctc.times import Span, words_of
from lowrank_speech.errors import UserError
from lowrank_speech.inference.network import Network
from lowrank_speech.inference.results import Transcript
from lowrank_speech.inference.streaming import RATE, Samples, Scan, scan
from lowrank_speech.lang.codes import nearest_language

CHUNK, MARGIN, STRETCH = 30.0, 2.5, 60.0
"""Seconds of a chunk, of the part of it that is only context on each side, and that are decoded at once."""


class CtcRecogniser:
    """Transcribes with a CTC ``network``.

    ``settings``: those of a kind of decoder for CTC models (``decoding.registry``); ``chunk``: seconds of a chunk, and
    of the longest recording that is decoded at once. UserError: the decoder cannot be used here, or ``language`` is not
    one of the model's.
    """

    def __init__(self, network: Network, settings: Any, language: str | None = None, chunk: float = CHUNK):
        self.network, self.settings, self.longest = network, settings, chunk
        self.language = _language(network, language)
        self._least, self._stride = network.field
        self._spelled, self._tokens = spellings(network.lang), network.lang.tokens
        graph = network.resources.get("graph")
        self._whole_words = graph is not None and graph.over_words
        self._decode = self._greedy if settings.kind == "greedy" else self._opened()

    def input(self, samples: Tensor) -> Tensor:
        """The model's input for a short recording. UserError: it is too short for a frame."""
        return self.network.input(samples)

    def short(self, inputs: Sequence[Tensor], seconds: Sequence[float]) -> list[Transcript | UserError]:
        """Results of recordings of at most ``longest`` seconds."""
        found = self._decode(self.emissions(inputs))
        return [
            _unusable(one) if isinstance(one, Unusable) else self._transcript([(one, False)], length)
            for one, length in zip(found, seconds, strict=True)
        ]

    def long(self, sound: Any, progress: Callable[[float, float], None] = lambda done, total: None) -> Transcript:
        """The result of a longer recording. ``progress(done, total)`` is called in between, in seconds."""
        found = scan(sound)
        parts: list[tuple[Hypothesis, bool]] = []
        done = 0
        for stretch in stretches(self.streamed(sound, found), round(STRETCH * RATE / self._stride)):
            one = self._decode([stretch])[0]
            if isinstance(one, Unusable):
                raise _unusable(one)
            offset = done * self._stride / RATE
            words = [replace(word, start=word.start + offset, end=word.end + offset) for word in one.words]
            one = replace(one, words=tuple(words))
            parts.append((one, self._goes_on([part for part, _ in parts], one)))
            done += len(stretch)
            progress(done * self._stride / RATE, found.seconds)
        return self._transcript(parts, found.seconds)

    # -- emissions

    def emissions(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Log probabilities (F, V) float32, on the CPU, of each input of the model."""
        logits, frames = self.network.model.ctc_logits(*self.network.batch(list(inputs)))
        log_probs = logits.float().log_softmax(-1).cpu()
        return [row[:n] for row, n in zip(log_probs, frames.tolist(), strict=True)]

    def streamed(self, sound: Any, found: Scan) -> Iterator[Tensor]:
        """Log probabilities (F, V) of a long recording, chunk after chunk; together those of all its frames."""
        stride = self._stride
        margin = round(min(MARGIN, self.longest / 8) * RATE / stride)
        chunk, samples, start = max(round(self.longest * RATE / stride), 2 * margin + 1), Samples(sound), 0
        while True:
            end = (start + chunk - 1) * stride + self._least
            part = samples.read(start * stride, end)
            rows = self.emissions([self._normalised(part, found)])[0]
            if end >= found.samples:
                yield rows[margin if start else 0 :]
                return
            yield rows[margin if start else 0 : chunk - margin]
            start += chunk - 2 * margin

    def _normalised(self, samples: Tensor, found: Scan) -> Tensor:
        inputs = self.network.inputs
        if inputs.kind == "waveform" and inputs.normalise:
            return (samples - found.mean) / (found.variance + 1e-7) ** 0.5
        return inputs.of(samples)

    # -- hypotheses

    def _opened(self) -> Callable[[list[Tensor]], list[Any]]:
        kind = self.settings.kind
        module = registry.module(kind, "ctc")
        if module.READS != "emissions" or kind == "align":
            known = [k.name for k in registry.kinds(task="ctc") if k.reads == "emissions" and k.name != "align"]
            raise UserError(f"the decoder {kind} does not transcribe; expected one of: greedy, {', '.join(known)}")
        decode = module.open(self.network, self.network.lang, self.settings)

        def run(rows: list[Tensor]) -> list[Any]:
            return decode(
                {
                    "cuts": [SimpleNamespace(id="", supervisions=[]) for _ in rows],
                    "log_probs": torch.nn.utils.rnn.pad_sequence(rows, batch_first=True),
                    "frames": torch.tensor([len(row) for row in rows]),
                    "frame_seconds": [self._stride / RATE] * len(rows),
                }
            )

        return run

    def _greedy(self, rows: list[Tensor]) -> list[Hypothesis]:
        """The best path, as the decoder ``greedy``, with the times of its words."""
        found = []
        for row in rows:
            best = row.max(-1)
            spans, place = [], 0
            for token, count in zip(
                *map(Tensor.tolist, best.indices.unique_consecutive(return_counts=True)), strict=True
            ):
                if token != BLANK:
                    spans.append(Span(token, place, place + count, float(best.values[place : place + count].sum())))
                place += count
            ids = tuple(span.token for span in spans)
            words = words_of(spans, self._spelled, self._stride / RATE)
            found.append(Hypothesis(ids, self._tokens.decode(ids), float(best.values.sum()), words=words))
        return found

    def _goes_on(self, before: Sequence[Hypothesis], one: Hypothesis) -> bool:
        """Whether ``one`` begins in the middle of the last word ``before`` it."""
        last = next((part for part in reversed(before) if part.ids), None)
        if last is None or not one.ids or self._whole_words:
            return False
        return not (self._spelled[last.ids[-1]].endswith(b" ") or self._spelled[one.ids[0]].startswith(b" "))

    def _transcript(self, parts: Iterable[tuple[Hypothesis, bool]], seconds: float) -> Transcript:
        text, words, notes = "", [], []
        for one, joined in parts:
            text += one.text if joined or not text or not one.text else f" {one.text}"
            first, *rest = one.words or (None,)
            if joined and words and first is not None:
                words[-1] = _joined(words[-1], first)
            elif first is not None:
                words.append(first)
            words += rest
            if one.stopped == "nothing":
                notes.append("the decoder found no hypothesis in a stretch of it; widen its beam")
        return Transcript(text, self.language, seconds, tuple(words), notes=tuple(dict.fromkeys(notes)))


def stretches(chunks: Iterable[Tensor], most: int) -> Iterator[Tensor]:
    """Log probabilities (F, V) in stretches of at most ``most`` frames, cut in the middle of the longest pause of their
    second half; a pause is a run of blanks."""
    kept: list[Tensor] = []
    for chunk in chunks:
        kept.append(chunk)
        while sum(map(len, kept)) > most:
            whole = torch.cat(kept)
            cut = _pause(whole[:most])
            yield whole[:cut]
            kept = [whole[cut:].clone()]
    if kept and sum(map(len, kept)):
        yield torch.cat(kept)


def _pause(log_probs: Tensor) -> int:
    """The frame at which to cut; the last one, if there is no blank."""
    half = len(log_probs) // 2
    values, counts = (log_probs[half:].argmax(-1) == BLANK).unique_consecutive(return_counts=True)
    ends = counts.cumsum(0)
    runs = [(int(n), int(end)) for blank, n, end in zip(values, counts, ends, strict=True) if blank]
    if not runs:
        return len(log_probs)
    longest, end = max(runs)
    return half + end - longest // 2


def _joined(left: Word, right: Word) -> Word:
    score = None if left.score is None or right.score is None else left.score + right.score
    return Word(left.text + right.text, left.start, right.end, score)


def _unusable(found: Unusable) -> UserError:
    return UserError(f"it cannot be decoded: {found.reason} ({found.detail})")


def _language(network: Network, language: str | None) -> str | None:
    """The language of the recordings, for the result. UserError: the model was not trained with it."""
    known = network.lang.languages
    if language is None:
        return known[0] if len(known) == 1 else None
    found = nearest_language(language, known) if known else language
    if found is None or not re.fullmatch(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]+)*", language):
        expected = f"expected one of: {', '.join(known)}" if known else "give a code such as de or pt-BR"
        raise UserError(f"language is {language!r}, which the model does not know; {expected}")
    return found
