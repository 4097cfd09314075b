"""Recognise with Whisper: short recordings in batches, long ones window after window or in overlapping chunks.

The decoders are those of ``decoding.whisper``. Here they read the log-mel of a long recording piece by piece, and take
the times of words from a window before they go on, so that no encoder states pile up.

Long recordings also get the guards of openai/whisper, unless the decoder's options set one of them: a window that
repeats itself or is improbable is decoded again at a higher temperature, and one without speech is left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lowrank_speech.decoding.base import Hypothesis
from lowrank_speech.decoding.whisper import recordings
from lowrank_speech.decoding.whisper.codes import Codes
from lowrank_speech.decoding.whisper.decoder import Decoder
from lowrank_speech.decoding.whisper.recordings import RATE as FRAMES
from lowrank_speech.decoding.whisper.recordings import Recording
from lowrank_speech.errors import UserError
from lowrank_speech.features.logmel import mel_frames
from lowrank_speech.inference.network import Network
from lowrank_speech.inference.results import Transcript
from lowrank_speech.inference.streaming import Mel, scan
from lowrank_speech.lang.codes import nearest_language

GUARDS: dict[str, Any] = {
    "temperatures": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    "compression_ratio_threshold": 2.4,
    "logprob_threshold": -1.0,
    "no_speech_threshold": 0.6,
}
"""Those of openai/whisper (transcribe.py)."""
STOPPED = {
    "bound": "the decoder stopped at its limit of tokens, so the text may be cut off",
    "loop": "the decoder stopped where it only repeated itself, so the text may be wrong there",
    "nothing": "no hypothesis survived the beam",
    "empty": "it has no frame of speech",
    "no_speech": "a part of it has no speech, by its no-speech probability",
}


class WhisperRecogniser:
    """Transcribes with a Whisper ``network``.

    ``settings``: those of a kind of decoder for Whisper (``decoding.registry``), with ``long`` set; ``asked``: the keys
    that a person set. UserError: the model does not know ``language``, or cannot do what ``settings`` ask for.
    """

    def __init__(self, network: Network, settings: Any, language: str | None = None, asked: Sequence[str] = ()):
        self.network, self.settings, self._asked = network, settings, set(asked)
        self.longest = network.model.window / FRAMES
        self._decoder = _Streaming(network, settings)
        self.codes: Codes = self._decoder.codes
        self.language = language_of(self.codes, language)
        self._long: _Streaming | None = None

    def input(self, samples: Tensor) -> Tensor:
        """The model's input for a short recording."""
        return self.network.input(samples)

    def short(self, inputs: Sequence[Tensor], seconds: Sequence[float]) -> list[Transcript | UserError]:
        """Results of recordings of at most ``longest`` seconds."""
        features, lengths = self.network.batch(list(inputs))
        cut = SimpleNamespace(id="", supervisions=[SimpleNamespace(language=self.language)])
        found = self._decoder({"cuts": [cut] * len(inputs), "features": features, "lengths": lengths})
        return [self._transcript(one, length) for one, length in zip(found, seconds, strict=True)]

    def long(self, sound: Any, progress: Callable[[float, float], None] = lambda done, total: None) -> Transcript:
        """The result of a longer recording. ``progress(done, total)`` is called in between, in seconds."""
        n_mels = self.network.inputs.n_mels
        found = scan(sound, n_mels)
        if self._long is None:
            self._long = _Streaming(self.network, self._guarded())
        recording = _Streamed(
            "", None, max(mel_frames(found.samples) - recordings.EDGE, 1), list(self._decoder.earlier)
        )
        recording.source = Mel(sound, n_mels, found.loudest)
        recording.place = self.network.device, self.network.dtype
        recording.progress = lambda frame: progress(frame / FRAMES, found.seconds)
        return self._transcript(self._long.whole(recording, self.language), found.seconds)

    def _guarded(self) -> Any:
        """The settings with guards, if none was set."""
        if self._asked & set(GUARDS):
            return self.settings
        guards = dict(GUARDS)
        if self.codes.no_speech is None:
            del guards["no_speech_threshold"]
        return replace(self.settings, **guards)

    def _transcript(self, found: Hypothesis, seconds: float) -> Transcript:
        language = found.language or self.language or (None if self.codes.languages else "en")
        words = found.words if self.settings.word_times else None
        notes = (STOPPED.get(found.stopped, found.stopped),) if found.stopped else ()
        return Transcript(found.text.strip(), language, seconds, words, found.segments, notes=notes)


class _Streamed(Recording):
    """A recording whose log-mel is read when a window needs it."""

    source: Mel
    place: tuple[torch.device, torch.dtype]
    progress: Callable[[int], None]
    settle: Callable[[Any], None]

    def window(self, start: int, size: int) -> Tensor:
        for part in self.parts:
            self.settle(part)
        self.progress(start)
        part = self.source.read(start, start + size)
        padded = torch.nn.functional.pad(part, (0, 0, 0, size - len(part)), value=self.source.floor)
        return padded.T.to(*self.place)


class _Streaming(Decoder):
    """The decoder of Whisper, for recordings that are read piece by piece."""

    def __init__(self, network: Network, settings: Any):
        extra = ("beam", "nbest", "length_penalty")
        options = {name: getattr(settings, name) for name in extra if hasattr(settings, name)}
        super().__init__(network, network.lang, settings, **options)

    def whole(self, recording: _Streamed, language: str | None) -> Hypothesis:
        """The hypothesis of a long recording."""
        recording.language = language

        def settle(part: recordings.Part) -> None:
            """Replace the encoder states of a window, which are large, by the times of its tokens."""
            if not isinstance(part.states, Tensor):
                return
            said = part.segments if self.settings.long == "sequential" else [part.found.best]
            tokens = [token for piece in said for token in self.codes.written(piece.tokens)]
            offset = part.start / FRAMES
            part.states = super(_Streaming, self)._timed(part.states, part.frames, recording.language, tokens, offset)

        recording.settle = settle
        if self.settings.long == "sequential":
            recordings.sequential([recording], self.size, self._search(True), self.codes, self.settings.condition)
        else:
            at_once = max(1, int(self.settings.batch_seconds * FRAMES) // self.size)
            recordings.chunked([recording], self.size, self.overlap, self._search(False), at_once)
        join = self._joined if self.settings.long == "sequential" else self._stitched
        return join(recording, recording.language if language is None else None)

    def _timed(self, states: Any, frames: int, language: str | None, tokens: list[int], offset: float) -> list[Any]:
        if isinstance(states, list):  # of a window that is settled
            return states
        return super()._timed(states, frames, language, tokens, offset)


def language_of(codes: Codes, language: str | None) -> str | None:
    """The model's code for ``language``, a code or an English name. UserError: the model does not know it."""
    if language is None:
        return None
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get(language.lower(), language)
    if not codes.languages:
        if nearest_language(code, ["en"]) is None:
            raise UserError(f"language is {language!r}, but the model knows only English; use a multilingual Whisper")
        return None
    found = nearest_language(code, codes.languages)
    if found is None:
        known = ", ".join(sorted(codes.languages))
        raise UserError(f"language is {language!r}, which the model does not know; expected one of: {known}")
    return found
