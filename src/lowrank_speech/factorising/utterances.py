"""Draw the utterances that a dense model is calibrated on, and let it transcribe them.

The model sees one utterance at a time, so padding does not count. A decoder reads what the dense model itself writes
(greedy search), so calibration needs no transcripts.
"""

import logging
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lhotse import CutSet
from torch import Tensor
from tqdm import tqdm

from lowrank_speech.features.batches import Loader, segment
from lowrank_speech.features.inputs import RATE, inputs_of
from lowrank_speech.lang.codes import nearest_language
from lowrank_speech.lang.select import SetAside, fits_window, require
from lowrank_speech.models.speech import SpeechModel

log = logging.getLogger(__name__)


class Example(NamedTuple):
    """One utterance as the model reads it: features (1, ...), their length (1,), and the decoder's tokens (1, L).

    ``seen``: whether calibration has seen it.
    """

    cut: Any
    features: Tensor
    lengths: Tensor
    tokens: Tensor | None
    seen: bool = False


def draw(
    cuts: Iterable[Any],
    what: str | Path,
    model: SpeechModel,
    utterances: int,
    seed: int,
    seconds: float | None,
    set_aside: SetAside,
    last: bool = False,
) -> list[Any]:
    """Draw up to ``utterances`` of the usable cuts by ``seed``, whatever their order; ``last``: those drawn last.

    ``what``: the source of the cuts, for messages; ``seconds``: cut them to at most this length. Raises UserError if no
    cut is usable.
    """
    cuts = sorted(segment(CutSet(cuts), seconds, seed), key=lambda cut: cut.id)
    random.Random(seed).shuffle(cuts)
    usable = []
    fitting = list(fits_window(cuts, model.window_seconds, set_aside))  # a list, to set aside all that do not fit
    for cut in reversed(fitting) if last else fitting:
        if len(usable) == utterances:
            break
        if not getattr(cut, "has_features", False) and cut.sampling_rate != RATE:
            cut = cut.resample(RATE)
        if model.frames_of(cut) < 1:
            set_aside.add(cut.id, "shorter than one frame", f"{cut.duration:.3f} s")
        else:
            usable.append(cut)
    require(usable, f"calibrate: {what}", set_aside)
    return usable


def held_out(
    model: SpeechModel,
    folder: Path,
    cuts: Iterable[Any],
    what: str | Path,
    number: int,
    seen: int,
    seed: int,
    seconds: float | None = None,
) -> list[Example]:
    """Up to ``number`` utterances that calibration, which saw ``seen``, did not see: those that ``seed`` draws last.

    The tokens and directions of the utterances that calibration saw are kept best, so on those every low-rank model
    looks better than it is. If there are too few utterances, some of those are used, with a warning, and are ``seen``.
    """
    drawn = draw(cuts, what, model, seen + number, seed, seconds, SetAside(), last=True)
    if len(drawn) < seen + number:
        log.warning(
            "%s has only %d usable utterances, of which calibration saw %d: losses look too small; give it more, or "
            "calibrate on fewer",
            what, len(drawn), seen,
        )  # fmt: skip
    unseen = max(len(drawn) - seen, 0)  # the utterances that calibration saw are drawn last
    found = examples(model, folder, drawn[:number], transcribe=True)
    return [example._replace(seen=place >= unseen) for place, example in enumerate(found)]


def seen_again(
    model: SpeechModel,
    folder: Path,
    cuts: Iterable[Any],
    what: str | Path,
    seen: int,
    seed: int,
    seconds: float | None = None,
) -> list[Example]:
    """The ``seen`` utterances that calibration with the same ``seed`` and ``seconds`` saw."""
    drawn = draw(cuts, what, model, seen, seed, seconds, SetAside())
    return list(examples(model, folder, drawn, transcribe=True))


@torch.no_grad()
def examples(model: SpeechModel, folder: Path, cuts: Iterable[Any], transcribe: bool) -> Iterator[Example]:
    """The ``cuts`` as the dense ``model`` (of ``folder``) reads them, on its device.

    ``transcribe``: whether the decoder is needed, so that the model has to write what it reads.
    """
    loader, device = Loader(inputs_of(folder)), next(model.parameters()).device
    for cut in tqdm(cuts, desc="calibrate", unit="utterance", disable=None):
        batch = loader.collate([cut])
        features, lengths, tokens = batch["features"].to(device), batch["lengths"].to(device), None
        if transcribe:
            language = nearest_language(cut.supervisions[0].language if cut.supervisions else None, model.languages)
            tokens = model.greedy(features, lengths, cut, language)
        yield Example(cut, features, lengths, tokens)
