"""Calibration: a dense model runs over some utterances, and the second moments of its layers' inputs are kept.

One utterance at a time, so that no padding is seen; frames of Whisper's window beyond the utterance do not count.
Whisper's decoder is calibrated on what it recognises itself (greedy search). What the stage and the command share.
"""

import logging
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lowrank_speech.artefact import atomic
from lowrank_speech.errors import UserError
from lowrank_speech.features.batches import Loader, segment
from lowrank_speech.features.inputs import RATE, inputs_of
from lowrank_speech.features.store import load_cuts
from lowrank_speech.lang.select import SetAside, fits_window, require
from lowrank_speech.lowrank.moments import Moments
from lowrank_speech.models.factorising import dense_layers
from lowrank_speech.models.speech import SpeechModel

log = logging.getLogger(__name__)

# Bounds a decoder that does not find the end; people speak 3 to 5 tokens a second.
TOKENS_PER_SECOND = 10


def calibrate(
    model: SpeechModel,
    folder: Path,
    path: Path,
    out: Path,
    layers: str | tuple[str, ...],
    utterances: int,
    seed: int,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Write the moments of ``layers`` over some cuts of ``path`` to ``out``, on the device of ``model``.

    ``folder``: that of the model. ``utterances`` are drawn by ``seed``, whatever their order in the file; ``seconds``:
    they are cut to at most that. Returns ``utterances`` (ids), ``seconds_speech``, ``frames`` (by layer) and
    ``set_aside``. UserError where nothing is left.
    """
    chosen, set_aside = dense_layers(model, layers), SetAside()
    cuts = _draw(path, model, utterances, seed, seconds, set_aside)
    loader = Loader(inputs_of(folder, model.family, getattr(model.config, "num_mel_bins", 80)))
    device = next(model.parameters()).device
    moments = Moments(chosen)
    with moments.hooked(), torch.no_grad():
        for cut in tqdm(cuts, desc="calibrate", unit="utterance", disable=None):
            batch = loader.collate([cut])
            _forward(model, batch["features"].to(device), batch["lengths"].to(device), cut, moments)
    with atomic(out) as temporary:
        moments.save(temporary)
    speech = sum(cut.duration for cut in cuts)
    frames = min(moments.count.values())
    log.info("%d layers, %d utterances, %.1f s, %d frames at least", len(chosen), len(cuts), speech, frames)
    widest = max(layer.in_features for layer in chosen.values())
    if frames < widest:
        log.warning(
            "%d frames for layers of up to %d inputs: their second moments lack full rank; use more utterances",
            frames, widest,
        )  # fmt: skip
    return {
        "utterances": [cut.id for cut in cuts],
        "seconds_speech": round(speech, 3),
        "frames": dict(moments.count),
        "set_aside": [list(row) for row in set_aside.rows],
    }


def _draw(
    path: Path, model: SpeechModel, utterances: int, seed: int, seconds: float | None, set_aside: SetAside
) -> list[Any]:
    """``utterances`` of the usable cuts."""
    try:
        cuts = sorted(segment(load_cuts(path), seconds, seed), key=lambda cut: cut.id)
    except (ValueError, OSError) as error:
        raise UserError(f"calibrate: {path} holds no Lhotse cuts: {error}") from error
    random.Random(seed).shuffle(cuts)
    usable = []
    for cut in list(fits_window(cuts, model.window_seconds, set_aside)):  # what does not fit is listed in full
        if len(usable) == utterances:
            break
        if not getattr(cut, "has_features", False) and cut.sampling_rate != RATE:
            cut = cut.resample(RATE)
        if model.frames_of(cut) < 1:
            set_aside.add(cut.id, "shorter than one frame", f"{cut.duration:.3f} s")
        else:
            usable.append(cut)
    require(usable, f"calibrate: {path}", set_aside)
    if len(usable) < utterances:
        log.warning("%s has %d usable cuts, fewer than the %d asked for", path, len(usable), utterances)
    return usable


def _forward(model: SpeechModel, features: Tensor, lengths: Tensor, cut: Any, moments: Moments) -> None:
    """Run ``model`` on one utterance so that every layer of ``moments`` sees its inputs."""
    if model.family != "whisper":
        model.states(features, lengths)
        return
    positions = model.config.max_source_positions
    mask = torch.arange(positions)[None, :] < model.frames_of(cut)
    with moments.masked({"*encoder_attn.[kv]_proj": mask, "*encoder.layers.*": mask}):
        if model.task != "seq2seq" or not any("decoder.layers." in name for name in moments.layers):
            model.states(features, lengths)
            return
        options = {}
        known = getattr(model.hf.generation_config, "lang_to_id", None) or {}
        if known:
            language = f"<|{cut.supervisions[0].language}|>" if cut.supervisions else None
            options = {"task": "transcribe", "language": language if language in known else None}
        model.hf.generate(
            input_features=model.pad_mel(features, lengths),
            num_beams=1,
            do_sample=False,
            return_timestamps=False,
            max_new_tokens=min(int(cut.duration * TOKENS_PER_SECOND) + 4, model.config.max_target_positions - 4),
            **options,
        )
