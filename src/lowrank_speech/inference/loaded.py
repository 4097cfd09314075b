"""A trained model in Python: ``load(name)``.

from lowrank_speech import load

model = load("exp/mine:wav2vec2/asr/lowrank")      # or a model folder, or openai/whisper-base
model.transcribe("a.wav").text
model.transcribe(["a.wav", "b.mp3"])               # in batches; results in the same order
model.transcribe((samples, 8000)).words            # NumPy array or tensor, and its sampling rate
model.logits(samples)                              # CTC: log probabilities (frames, tokens)

load("exp/mine:whisper/lid/full").identify("a.wav").probabilities
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from lowrank_speech.decoding.registry import DEFAULT, TYPES
from lowrank_speech.errors import UserError
from lowrank_speech.inference.decoders import Request, recogniser
from lowrank_speech.inference.languages import Identifier
from lowrank_speech.inference.naming import Found, find
from lowrank_speech.inference.network import Network, open_network
from lowrank_speech.inference.resampling import resampled
from lowrank_speech.inference.results import Identification, Transcript
from lowrank_speech.inference.running import run
from lowrank_speech.inference.sound import BLOCK, RATE, open_sound

Samples: TypeAlias = np.ndarray | Tensor
One: TypeAlias = str | Path | Samples | tuple[Samples, int]
Audio: TypeAlias = One | list[One]
SAMPLES = "the samples"


def load(
    name: str | Path,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    dtype: str | torch.dtype = "fp32",
    revision: str | None = None,
) -> "Model":
    """Load a trained or published model.

    ``name``: a system of an experiment (exp/mine:base/task/method), a model folder, or a hub name (``revision``: its
    commit, tag or branch). ``device``: auto is CUDA if there is one. ``dtype``: fp32 or bf16. UserError: there is no
    such model, or a file of it is missing.
    """
    found = find(name, revision)
    return Model(found, open_network(found, device, dtype))


class Model:
    """A model that transcribes, or recognises languages; see ``load``.

    Errors that a person can fix are ``lowrank_speech.errors.UserError`` with one line.
    """

    rate = RATE
    """Sampling rate of the model's input; everything else is resampled."""

    def __init__(self, found: Found, network: Network):
        self.found, self.network = found, network
        self._recogniser: tuple[Request, Any] | None = None
        self._identifier: tuple[Any, Identifier] | None = None

    def __repr__(self) -> str:
        return f"Model({self.found.name!r}: {self.network.model.family}, {self.network.task}, {self.network.device})"

    @property
    def tokens(self) -> list[str]:
        """CTC: the symbol of each column of ``logits``; the first one is the blank."""
        if self.network.task != "ctc":
            raise UserError(f"{self.found.name} is not a CTC model; only these have a symbol for each column of logits")
        return list(self.network.lang.tokens.symbols)

    @property
    def languages(self) -> list[str]:
        """The languages that the model knows: its classes, or those that it can be told to transcribe."""
        if self.network.task == "classify":
            return list(self.network.model.meta.labels)
        if self.network.task == "seq2seq":
            return list(self.network.model.languages) or ["en"]
        return list(self.network.lang.languages) if self.network.lang is not None else []

    @overload
    def transcribe(self, audio: One, rate: int | None = None, **options: Any) -> Transcript: ...

    @overload
    def transcribe(self, audio: list[One], rate: int | None = None, **options: Any) -> list[Transcript]: ...

    def transcribe(
        self,
        audio: Audio,
        rate: int | None = None,
        *,
        language: str | None = None,
        task: Literal["transcribe", "translate"] = "transcribe",
        decoder: str = DEFAULT["asr"],
        options: Mapping[str, Any] | None = None,
        lm: str | Path | None = None,
        graph: str | Path | None = None,
        rescore_lm: str | Path | None = None,
        words: bool = False,
        batch_seconds: float = 60.0,
    ) -> Transcript | list[Transcript]:
        """Transcribe a recording, or each of a list.

        ``audio``: a path, samples (T,) or (T, channels) with their ``rate``, or a pair (samples, rate). ``language``:
        a code; Whisper detects it if it is None. ``decoder``: a kind (docs/stages.md), ``options``: its keys; ``lm``,
        ``graph``, ``rescore_lm``: the language models and the graph that it reads. ``words``: times of words from
        Whisper (CTC models always give them). UserError: a recording cannot be read, or the model does not transcribe.
        """
        request = Request(language, task, decoder, dict(options or {}), lm, graph, rescore_lm, words, batch_seconds)
        return self._run(audio, rate, self.recogniser(request), batch_seconds)

    @overload
    def identify(self, audio: One, rate: int | None = None, **options: Any) -> Identification: ...

    @overload
    def identify(self, audio: list[One], rate: int | None = None, **options: Any) -> list[Identification]: ...

    def identify(
        self,
        audio: Audio,
        rate: int | None = None,
        *,
        languages: Sequence[str] | None = None,
        backend: str | Path | None = None,
        batch_seconds: float = 60.0,
    ) -> Identification | list[Identification]:
        """The language of a recording, or of each of a list.

        ``audio``: as for ``transcribe``. ``languages``: choose between these; None: all that the model knows.
        ``backend``: file of a trained back end that calibrates; None: that of the system, if there is one; ``none``.
        A multilingual published Whisper does it by its language tokens. UserError: as for ``transcribe``.
        """
        return self._run(audio, rate, self.identifier(languages, backend), batch_seconds)

    def logits(self, samples: Samples, rate: int = RATE) -> Tensor:
        """What the network says about short samples (T,), as float32 on the CPU.

        CTC: log probabilities (frames, tokens) of ``tokens``; language recognition: of ``languages``, (languages,).
        UserError: it is a Whisper that transcribes, whose outputs depend on the text before, or there are too few
        samples.
        """
        if TYPES.get(self.network.task) is None or self.network.task == "seq2seq":
            raise UserError(
                f"{self.found.name} has no logits of its own: a decoder's outputs depend on the text before; use "
                f"transcribe"
            )
        inputs = self.network.input(torch.cat(list(_Array(samples, rate).blocks())))
        with torch.inference_mode():
            features, lengths = self.network.batch([inputs])
            if self.network.task == "classify":
                return self.network.model.class_logits(features, lengths).float().log_softmax(-1)[0].cpu()
            logits, frames = self.network.model.ctc_logits(features, lengths)
            return logits.float().log_softmax(-1)[0, : int(frames[0])].cpu()

    # -- what the commands use, too

    def recogniser(self, request: Request) -> Any:
        """What transcribes as ``request`` says; the last one is kept."""
        if self._recogniser is None or self._recogniser[0] != request:
            self._recogniser = request, recogniser(self.network, request)
        return self._recogniser[1]

    def identifier(self, languages: Sequence[str] | None = None, backend: str | Path | None = None) -> Identifier:
        """What recognises languages; the last one is kept."""
        key = None if languages is None else tuple(languages), backend
        if self._identifier is None or self._identifier[0] != key:
            from lowrank_speech.inference.backends import backend_of

            self._identifier = key, Identifier(self.network, languages, backend_of(self.found, backend))
        return self._identifier[1]

    def _run(self, audio: Audio, rate: int | None, recogniser: Any, batch_seconds: float) -> Any:
        many = isinstance(audio, list)
        items = audio if many else [audio]
        opened = [(i, lambda one=one: _opened(one, rate)) for i, one in enumerate(items)]
        results: list[Any] = [None] * len(items)
        for outcome in run(opened, recogniser, batch_seconds):
            if isinstance(outcome.result, UserError):
                raise UserError(str(outcome.result).removeprefix(f"{outcome.key}: ")) from outcome.result
            results[outcome.key] = outcome.result
        return results if many else results[0]


def _opened(one: Any, rate: int | None) -> Any:
    if isinstance(one, str | Path):
        return open_sound(one)
    if isinstance(one, tuple) and len(one) == 2:
        return _Array(*one)
    if rate is None:
        raise UserError("the sampling rate of the samples is missing; give rate=, or a pair (samples, rate)")
    return _Array(one, rate)


class _Array:
    """Samples in memory, as ``sound.Sound``."""

    name = None
    notes = ()

    def __init__(self, samples: Any, rate: int):
        if not isinstance(rate, int | np.integer) or not 100 <= rate <= 10_000_000:
            raise UserError(f"rate is {rate!r}; give the sampling rate as a whole number, such as 16000")
        found = torch.as_tensor(np.asarray(samples) if not isinstance(samples, Tensor) else samples).detach().cpu()
        if found.dim() == 2:
            found = _scaled(found).mean(dim=int(found.shape[0] > found.shape[1]))
        if found.dim() != 1 or found.is_complex():
            raise UserError(f"samples have the shape {tuple(found.shape)}; expected (T,) or (T, channels)")
        self._samples, self._rate = _scaled(found), int(rate)
        if not len(found):
            raise UserError("there are no samples")
        if not torch.isfinite(self._samples).all():
            raise UserError("some samples are NaN or infinite")
        self.seconds = len(found) / rate

    def blocks(self) -> Iterator[Tensor]:
        return resampled(self._samples.split(BLOCK), self._rate, RATE)


def _scaled(samples: Tensor) -> Tensor:
    """float32; whole numbers are of the full range of their type."""
    if samples.is_floating_point() or samples.is_complex():
        return samples if samples.is_complex() else samples.float()
    limits = torch.iinfo(samples.dtype)
    half = (limits.max - limits.min + 1) / 2
    return ((samples.double() - (0 if limits.min < 0 else half)) / half).float()
