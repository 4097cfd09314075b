"""Recognise the language of recordings: with a classifier, or with Whisper's own language tokens.

A recording longer than ``WINDOW`` seconds (or than the model's window) is cut into windows of equal length. Its
log-likelihoods are the means of those of its windows, so that they are as sharp as those of one window, for which a
back end was trained. Sums would treat the windows as independent evidence, and be far too sure.

Log-likelihoods become probabilities by equal priors; a trained back end calibrates them first.

T samples, N languages.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lowrank_speech.decoding import registry
from lowrank_speech.errors import UserError
from lowrank_speech.inference.network import Network
from lowrank_speech.inference.results import Identification
from lowrank_speech.inference.streaming import RATE, Samples, scan
from lowrank_speech.lang.codes import nearest_language
from lowrank_speech.models.heads.language_tokens import LanguageTokensSettings
from lowrank_speech.models.tasks import to_task

WINDOW = 30.0


class Identifier:
    """Recognises languages with ``network``.

    ``languages``: only these; None: all that the model knows. ``backend``: a trained ``backend.model.Backend``.
    UserError: the model is for something else, or does not know a language.
    """

    def __init__(self, network: Network, languages: Sequence[str] | None = None, backend: Any = None):
        if network.task == "seq2seq":
            network = _zero_shot(network)
        if network.task != "classify":
            what = "speech recognition" if network.task == "ctc" else "no task yet: it is a pretrained encoder"
            hint = "use `lowrank-speech transcribe`" if network.task == "ctc" else "train it for language recognition"
            raise UserError(f"{network.found.name} is a model for {what}; {hint}")
        self.network, self.backend = network, backend
        window = network.model.window_seconds
        self.longest = WINDOW if window is None else min(WINDOW, math.floor(window * 10) / 10)
        self.columns = list(network.model.meta.labels)
        keys: dict[str, Any] = {}
        if backend is not None:
            keys = self._for_backend(backend)
        settings = registry.module("scores", "classify").Settings(**keys)
        self._decode = registry.module("scores", "classify").open(network, None, settings)
        known = self.columns if backend is None else list(backend.languages)
        self._kept = _picked(known, languages, network.found.name)
        self._known = known

    def _for_backend(self, backend: Any) -> dict[str, Any]:
        """The decoder's keys for a back end: whether it expects a column for other languages."""
        if len(backend.inputs) != 1 or backend.on != "scores":
            what = "fuses several systems" if len(backend.inputs) != 1 else f"reads {backend.on}"
            raise UserError(f"the back end {what}; give one that calibrates the scores of one system")
        columns = list(backend.inputs[0].columns)
        extra = [name for name in columns if name not in self.columns]
        if len(extra) > 1 or set(columns) - set(extra) != set(self.columns):
            raise UserError(
                f"the back end is for {', '.join(columns)}, but the model knows {', '.join(self.columns)}; give the "
                f"back end of this system"
            )
        if extra:
            self.columns.append(extra[0])
        return {"out_of_set": extra[0]} if extra else {}

    @property
    def calibrated(self) -> bool:
        return self.backend is not None

    def input(self, samples: Tensor) -> Tensor:
        """The model's input for samples (T,). UserError: they are too few for a frame."""
        return self.network.input(samples)

    def short(self, inputs: Sequence[Tensor], seconds: Sequence[float]) -> list[Identification]:
        """Results of recordings of at most ``longest`` seconds."""
        return [self._result(row, length) for row, length in zip(self.scores(inputs), seconds, strict=True)]

    def scores(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The log-likelihoods (N,) float64 of each input."""
        features, lengths = self.network.batch(list(inputs))
        found = self._decode({"features": features, "lengths": lengths})
        return [torch.tensor(one.scores, dtype=torch.float64) for one in found]

    def long(self, sound: Any, progress: Callable[[float, float], None] = lambda done, total: None) -> Identification:
        """The result of a longer recording."""
        found = scan(sound)
        total, windows = 0, self.windows(found.samples)
        samples = Samples(sound)
        for start, end in windows:
            total = total + self.scores([self.input(samples.read(start, end))])[0] / len(windows)
            progress(end / RATE, found.seconds)
        return self._result(total, found.seconds)

    def windows(self, samples: int) -> list[tuple[int, int]]:
        """First and last samples of windows of equal length."""
        number = math.ceil(samples / (self.longest * RATE))
        edges = [round(samples * i / number) for i in range(number + 1)]
        return list(itertools.pairwise(edges))

    def _result(self, scores: Tensor, seconds: float) -> Identification:
        if self.backend is not None:
            order = [self.columns.index(name) for name in self.backend.inputs[0].columns]
            scores = torch.from_numpy(self.backend.apply(scores[order].numpy()[None])[0])
        probabilities = scores[[self._known.index(name) for name in self._kept]].softmax(-1).tolist()
        ranked = sorted(zip(self._kept, probabilities, strict=True), key=lambda pair: -pair[1])
        return Identification(ranked[0][0], dict(ranked), seconds, self.calibrated)


def _zero_shot(network: Network) -> Network:
    """Whisper's language tokens as a classifier."""
    known = list(network.model.languages)
    # English-only checkpoints may list languages, too.
    if not known or not getattr(network.model.hf.generation_config, "is_multilingual", True):
        raise UserError(
            f"{network.found.name} is an English-only Whisper, which knows no languages; use a multilingual one"
        )
    model, _ = to_task(network.model.to("cpu"), "classify", len(known), known, head=LanguageTokensSettings())
    return replace(network, model=model.to(network.device, network.dtype).eval(), lang=None)


def _picked(known: Sequence[str], languages: Sequence[str] | None, name: str) -> list[str]:
    """The ``languages`` of ``known`` that are asked for; None: all. UserError: the model does not know one."""
    if languages is None:
        return list(known)
    found = []
    for language in languages:
        nearest = nearest_language(language, known)
        if nearest is None:
            raise UserError(
                f"languages: {name} does not know {language!r}; expected some of: {', '.join(sorted(known))}"
            )
        found.append(nearest)
    found = list(dict.fromkeys(found))
    if len(found) < 2:
        raise UserError(f"languages is {', '.join(languages)}; name at least two, to choose from")
    return found
