"""Calibration: run a dense model over some utterances and collect the second moments of its layers' inputs.

The model sees one utterance at a time, so padding does not count, nor do frames of Whisper's window beyond the
utterance. Whisper's decoder is calibrated on its own output (greedy search). The stage and the command share this code.
"""

import logging
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from tqdm import tqdm

from lowrank_speech.artefact import atomic
from lowrank_speech.features.batches import Loader, segment
from lowrank_speech.features.inputs import RATE, inputs_of
from lowrank_speech.lang.codes import nearest_language
from lowrank_speech.lang.select import SetAside, fits_window, require
from lowrank_speech.lowrank.moments import Moments
from lowrank_speech.models.layers import dense_layers
from lowrank_speech.models.speech import SpeechModel

log = logging.getLogger(__name__)


def calibrate(
    model: SpeechModel,
    folder: Path,
    cuts: Iterable[Any],
    what: str | Path,
    out: Path,
    layers: str | Sequence[str],
    utterances: int,
    seed: int,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Compute the moments of ``layers`` over some of ``cuts`` on the device of ``model``, and write them to ``out``.

    ``folder``: the model's folder; ``what``: the source of the cuts, for messages; ``utterances``: how many cuts
    ``seed`` draws, whatever their order; ``seconds``: cut them to at most this length. Returns ``utterances`` (ids),
    ``seconds_speech``, ``frames`` (by layer) and ``set_aside``. Raises UserError if no cut is usable.
    """
    chosen, set_aside = dense_layers(model, layers), SetAside()
    cuts = _draw(cuts, what, model, utterances, seed, seconds, set_aside)
    loader = Loader(inputs_of(folder))
    device = next(model.parameters()).device
    moments = Moments(chosen)
    with moments.hooked(), torch.no_grad():
        for cut in tqdm(cuts, desc="calibrate", unit="utterance", disable=None):
            batch = loader.collate([cut])
            language = nearest_language(cut.supervisions[0].language if cut.supervisions else None, model.languages)
            model.observe(batch["features"].to(device), batch["lengths"].to(device), cut, language, moments)
    with atomic(out) as temporary:
        moments.save(temporary)
    speech = sum(cut.duration for cut in cuts)
    frames = min(moments.count.values())
    log.info("%d layers, %d utterances, %.1f s, at least %d frames", len(chosen), len(cuts), speech, frames)
    widest = max(layer.in_features for layer in chosen.values())
    if frames < widest:
        log.warning(
            "%d frames are too few for layers of up to %d inputs: their second moments lack full rank; use more "
            "utterances",
            frames, widest,
        )  # fmt: skip
    return {
        "utterances": [cut.id for cut in cuts],
        "seconds_speech": round(speech, 3),
        "frames": dict(moments.count),
        "set_aside": [list(row) for row in set_aside.rows],
    }


def _draw(
    cuts: Iterable[Any],
    what: str | Path,
    model: SpeechModel,
    utterances: int,
    seed: int,
    seconds: float | None,
    set_aside: SetAside,
) -> list[Any]:
    """Draw ``utterances`` of the usable cuts."""
    cuts = sorted(segment(CutSet(cuts), seconds, seed), key=lambda cut: cut.id)
    random.Random(seed).shuffle(cuts)
    usable = []
    for cut in list(fits_window(cuts, model.window_seconds, set_aside)):  # a list, to set aside all that do not fit
        if len(usable) == utterances:
            break
        if not getattr(cut, "has_features", False) and cut.sampling_rate != RATE:
            cut = cut.resample(RATE)
        if model.frames_of(cut) < 1:
            set_aside.add(cut.id, "shorter than one frame", f"{cut.duration:.3f} s")
        else:
            usable.append(cut)
    require(usable, f"calibrate: {what}", set_aside)
    if len(usable) < utterances:
        log.warning("%s has only %d usable utterances, %d were requested", what, len(usable), utterances)
    return usable
