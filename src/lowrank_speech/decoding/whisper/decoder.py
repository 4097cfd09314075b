"""The decoder behind every kind for Whisper: batches -> hypotheses.

Cuts that fit the model's window are decoded at once, each padded to the window. Longer ones (``long``) are those of
``whisper.recordings``.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lowrank_speech.decoding.base import Hypothesis, Segment, Word
from lowrank_speech.decoding.whisper import alignment, recordings
from lowrank_speech.decoding.whisper.codes import Codes
from lowrank_speech.decoding.whisper.generate import Generated, Options
from lowrank_speech.decoding.whisper.recordings import EDGE, RATE, Part, Recording
from lowrank_speech.decoding.whisper.search import NO_SPEECH, Found, Guards, Search, Window
from lowrank_speech.decoding.whisper.settings import WhisperDecoding
from lowrank_speech.decoding.whisper.stitch import stitch
from lowrank_speech.decoding.whisper.timestamps import split
from lowrank_speech.errors import UserError
from lowrank_speech.lang.codes import nearest_language
from lowrank_speech.models.text import decoder_tokens

SLACK = 20
"""Tokens that an utterance may have in addition to ``max_tokens_per_second``."""
PROMPT = 4
"""Usual number of tokens before a transcript: start, language, task, no time stamps."""
EMPTY = "empty"


class Decoder:
    """Decodes batches of the network ``source``; see ``decoding.base``.

    UserError: the model was trained with another lang, or cannot do what ``settings`` ask for.
    """

    def __init__(
        self,
        source: Any,
        lang: Any,
        settings: WhisperDecoding,
        beam: int = 1,
        nbest: int = 1,
        length_penalty: float = 1.0,
    ):
        self.model, self.settings, where = source.model, settings, source.folder
        self.tokens = decoder_tokens(source.model, where, lang)
        self.codes = codes = Codes.of(source.model, self.tokens, where, lang.tokens is None)
        self.positions, self.size = self.model.config.max_target_positions, self.model.window
        self.allowed = codes.allowed(settings.languages, where)
        codes.require_task(settings.task, where)
        for key, asked in (("timestamps", settings.timestamps), ("long: sequential", settings.long == "sequential")):
            if asked:
                codes.require_times(key, where)
        for key in ("no_speech_threshold", "no_speech"):
            if getattr(settings, key):
                codes.require_no_speech(key, where)
        self.earlier = codes.earlier(settings.prompt, self.positions // 2 - 1, where)
        self.overlap = self._overlap()
        guards = Guards(
            settings.temperatures,
            settings.compression_ratio_threshold,
            settings.logprob_threshold,
            settings.no_speech_threshold,
            settings.seed,
            lambda tokens: self.tokens.decode(codes.written(tokens)),
        )
        fused = self._fused(source, lang)
        self.searches = {
            timestamps: Search(
                self.model,
                codes,
                Options(beam, nbest, length_penalty, timestamps, settings.stop_loops, fused),
                guards,
                settings.no_speech,
            )
            for timestamps in (False, True)
        }

    def _fused(self, source: Any, lang: Any) -> Any:
        """Shallow fusion with a language model, if one is named and can change anything."""
        settings = self.settings
        if settings.lm is None or (settings.lm_weight == 0 and settings.insertion == 0):
            return None
        from lowrank_speech.decoding.whisper.fusion import fusion

        weights, size = (settings.lm_weight, settings.insertion), self.model.config.vocab_size
        return fusion(source.resources["lm"], lang, self.tokens, self.codes, *weights, size)

    def _overlap(self) -> int:
        """Frames that neighbouring chunks share."""
        if self.settings.overlap is None:
            return self.size // 3
        frames = round(self.settings.overlap * RATE)
        if not 0 < frames < self.size:
            raise UserError(
                f"decoder.overlap is {self.settings.overlap:g} s, but the model's window has {self.size / RATE:g} s; "
                f"it must be shorter"
            )
        return frames

    def __call__(self, batch: dict[str, Any]) -> list[Hypothesis]:
        features, lengths, cuts = batch["features"], batch["lengths"], batch["cuts"]
        found: list[Any] = [Hypothesis((), "", stopped=EMPTY)] * len(cuts)
        frames = lengths.tolist()
        long = [i for i, n in enumerate(frames) if self.settings.long and n > self.size + EDGE]
        short = [i for i, n in enumerate(frames) if n > 0 and i not in long]
        if short:
            rows = slice(None) if len(short) == len(cuts) else short
            mel = self.model.pad_mel(features[rows], lengths[rows])
            for i, row in zip(
                short, self._short([cuts[i] for i in short], mel, [frames[i] for i in short]), strict=True
            ):
                found[i] = row
        if long:
            rows = [(cuts[i], features[i, : frames[i]]) for i in long]
            for i, row in zip(long, self._long(rows), strict=True):
                found[i] = row
        return found

    # -- windows

    def _given(self, cuts: Sequence[Any]) -> list[str | None]:
        """The language of each cut, if Whisper is to be told; None: detect it."""
        if self.settings.language == "detect" or not self.codes.languages:
            return [None] * len(cuts)
        return [nearest_language(cut.supervisions[0].language, self.codes.languages) for cut in cuts]

    def _languages(self, given: Sequence[str | None], states: Tensor) -> list[str | None]:
        """``given``, with the detected language where there is none."""
        unknown = [i for i, language in enumerate(given) if language is None]
        languages = list(given)
        if unknown and self.codes.languages:
            picked = states if len(unknown) == len(languages) else states[unknown]
            for i, language in zip(unknown, self.searches[False].detect(picked, self.allowed), strict=True):
                languages[i] = language
        return languages

    def _window(self, name: str, language: str | None, frames: int, earlier: Sequence[int], timestamps: bool) -> Window:
        before = [self.codes.previous, *earlier[-(self.positions // 2 - 1) :]] if earlier else []
        prompt = [*before, *self.codes.start(language, self.settings.task, timestamps)]
        room = self.positions - max(PROMPT, len(prompt))
        bound = min(self.settings.max_new_tokens or room, room)
        if self.settings.max_tokens_per_second is not None:
            bound = min(bound, SLACK + int(self.settings.max_tokens_per_second * frames / RATE))
        return Window(tuple(prompt), len(before), bound, name)

    def _timed(self, states: Any, frames: int, language: str | None, tokens: list[int], offset: float) -> list[Any]:
        """Times of text tokens, if they are asked for."""
        if not self.settings.word_times:
            return []
        start = self.codes.start(language, self.settings.task, False)
        return alignment.align(self.model, states[None], (frames + 1) // 2, start, tokens, offset)

    def _words(self, tokens: list[int], times: list[Any], language: str | None) -> list[Word]:
        said = "en" if self.settings.task == "translate" else language
        return alignment.words(tokens, times, self.tokens.decode, said) if self.settings.word_times else []

    # -- cuts within the window

    def _short(self, cuts: Sequence[Any], mel: Tensor, frames: Sequence[int]) -> list[Hypothesis]:
        timestamps, given = self.settings.timestamps, self._given(cuts)
        search = self.searches[timestamps]
        states = search.encode(mel)
        languages = self._languages(given, states)
        windows = [
            self._window(cut.id, language, n, self.earlier, timestamps)
            for cut, language, n in zip(cuts, languages, frames, strict=True)
        ]
        rows = zip(search(states, windows), states, frames, languages, given, strict=True)
        return [
            self._hypothesis(found, row, n, language, language if told is None else None)
            for found, row, n, language, told in rows
        ]

    def _hypothesis(
        self, found: Found, states: Tensor, frames: int, language: str | None, detected: str | None
    ) -> Hypothesis:
        if found.dropped:
            return Hypothesis((), "", language=detected, stopped=NO_SPEECH, no_speech=found.no_speech)
        best = self._plain(found.best)
        nbest = tuple(self._plain(other) for other in found.nbest) if self.searches[False].options.nbest > 1 else ()
        tokens = list(best.ids)
        times = self._timed(states, max(frames - EDGE, 1), language, tokens, 0.0)
        parts = split(found.best.tokens, self.codes, frames / RATE)[0] if self.settings.timestamps else []
        segments = [Segment(self._text(part.tokens).strip(), part.start, part.end) for part in parts]
        return Hypothesis(
            best.ids,
            best.text,
            best.score,
            nbest,
            tuple(self._words(tokens, times, language)),
            language=detected,
            stopped=best.stopped,
            segments=tuple(segment for segment in segments if segment.text),
            no_speech=found.no_speech,
        )

    def _plain(self, found: Generated) -> Hypothesis:
        ids = self.codes.written(found.tokens)
        return Hypothesis(tuple(ids), self.tokens.decode(ids), found.score, stopped=found.stopped)

    def _text(self, tokens: Sequence[int]) -> str:
        return self.tokens.decode(self.codes.written(tokens))

    # -- longer cuts

    def _long(self, rows: Sequence[tuple[Any, Tensor]]) -> list[Hypothesis]:
        given = self._given([cut for cut, _ in rows])
        whole = [Recording.of(cut.id, mel, self.earlier) for cut, mel in rows]
        for recording, language in zip(whole, given, strict=True):
            recording.language = language
        if self.settings.long == "sequential":
            recordings.sequential(whole, self.size, self._search(True), self.codes, self.settings.condition)
        else:
            at_once = max(1, int(self.settings.batch_seconds * RATE) // self.size)
            recordings.chunked(whole, self.size, self.overlap, self._search(False), at_once)
        join = self._joined if self.settings.long == "sequential" else self._stitched
        return [
            join(recording, recording.language if told is None else None)
            for recording, told in zip(whole, given, strict=True)
        ]

    def _search(self, timestamps: bool) -> recordings.Searched:
        def search(found: list[Recording], begins: list[int], mel: Tensor) -> list[tuple[Found, Any]]:
            states = self.searches[timestamps].encode(mel)
            # The language is that of the first window; several windows of a recording may be in the batch.
            for i, language in enumerate(self._languages([recording.language for recording in found], states)):
                found[i].language = found[i].language or language
            windows = [
                self._window(
                    f"{recording.name} {begin}",
                    recording.language,
                    min(recording.end - begin, self.size),
                    recording.history,
                    timestamps,
                )
                for recording, begin in zip(found, begins, strict=True)
            ]
            kept = states if self.settings.word_times else [None] * len(windows)
            return list(zip(self.searches[timestamps](states, windows), kept, strict=True))

        return search

    def _joined(self, recording: Recording, detected: str | None) -> Hypothesis:
        """The hypothesis of the segments of all windows."""
        pieces, segments, words, ids = [], [], [], []
        ends = [*(part.start for part in recording.parts[1:]), recording.end]
        for part, end in zip(recording.parts, ends, strict=True):
            offset = part.start / RATE
            tokens = [token for segment in part.segments for token in self.codes.written(segment.tokens)]
            times = self._timed(part.states, part.frames, recording.language, tokens, offset)
            # The attention may place the last words behind the time stamp at which the next window begins.
            for word in self._words(tokens, times, recording.language):
                words.append(replace(word, start=min(word.start, end / RATE), end=min(word.end, end / RATE)))
            ids += tokens
            for segment in part.segments:
                text = self._text(segment.tokens)
                if text.strip():
                    pieces.append(text)
                    segments.append(Segment(text.strip(), offset + segment.start, offset + segment.end))
        return self._whole(recording, detected, ids, pieces, words, segments)

    def _stitched(self, recording: Recording, detected: str | None) -> Hypothesis:
        """The hypothesis of overlapping chunks."""
        parts = [part for part in recording.parts if not part.found.dropped]
        tokens = [self.codes.written(part.found.best.tokens) for part in parts]
        times = [
            self._timed(part.states, part.frames, recording.language, said, part.start / RATE)
            for part, said in zip(parts, tokens, strict=True)
        ]
        pieces, words, ids = [], [], []
        for run in stitch(tokens):
            said = [tokens[chunk][place] for chunk, place in run]
            kept = [times[chunk][place] for chunk, place in run] if self.settings.word_times else []
            pieces.append(self.tokens.decode(said))
            words += self._words(said, kept, recording.language)
            ids += said
        return self._whole(recording, detected, ids, pieces, words, [])

    def _whole(
        self,
        recording: Recording,
        detected: str | None,
        ids: list[int],
        pieces: list[str],
        words: list[Word],
        segments: list[Segment],
    ) -> Hypothesis:
        blanks = self.settings.task == "translate" or alignment.spaced(recording.language)
        text = ""
        for piece in pieces:
            text += piece if not text or not blanks or text[-1].isspace() or piece[0].isspace() else f" {piece}"
        heard = [part for part in recording.parts if not part.found.dropped]
        known = [part.found.no_speech for part in recording.parts if part.found.no_speech is not None]
        return Hypothesis(
            tuple(ids),
            text,
            sum(part.found.best.score for part in heard) if heard else None,
            words=tuple(words),
            language=detected,
            stopped=_stopped(recording.parts),
            segments=tuple(segments),
            no_speech=min(known) if known else None,
        )


def _stopped(parts: Sequence[Part]) -> str | None:
    """Why windows were stopped: the first of loop, bound; no speech only if there is none in any window."""
    if parts and all(part.found.dropped for part in parts):
        return NO_SPEECH
    reasons = {part.found.best.stopped for part in parts if not part.found.dropped}
    return next((reason for reason in ("loop", "bound") if reason in reasons), None)
