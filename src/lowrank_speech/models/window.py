"""Shorten Whisper's window of 30 s, so that it encodes less padding.

inputs   a model of the family whisper, a window in seconds, the model's folder
outputs  the model with only the first rows of its encoder's positional table; matching preprocessor files

    shorten(model, 10.0)
    save_model(model, out, copy_from=folder, files=preprocessor(model, folder))

The sinusoids of a position do not depend on the number of positions. The cut table is therefore that of a model built
with the short window, and the result is a plain Hugging Face folder. On an input padded to the short window, it
computes the same as the long model with a cut table. On an input padded to 30 s, the long model computes something
else, because encoder and decoder attend to the padding: transformers' encoder does not take a mask, and its decoder
does not pass one to the cross-attention. Generation settings do not include the window: transformers reads
``max_source_positions``.
Source: transformers/models/whisper (modeling_whisper.py, feature_extraction_whisper.py, generation_whisper.py), 5.x.
"""

import json
import logging
from pathlib import Path
from typing import Any

from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.models.files import PREPROCESSOR
from lowrank_speech.models.preprocessor import preprocessor_files, section
from lowrank_speech.models.registry import FAMILIES
from lowrank_speech.models.speech import SpeechModel

log = logging.getLogger(__name__)

POSITIONS = 50  # encoder positions per second
RATE, FRAMES = 16_000, 100  # samples and log-mel frames in a second


def shorten(model: SpeechModel, seconds: float) -> bool:
    """Cut the window of ``model`` (in place) to ``seconds``, a multiple of 0.02; returns whether it changed.

    Raises UserError if the model has no window, or a shorter one.
    """
    if not FAMILIES[model.family].window:
        raise UserError(f"window: {model.family} models have no window; remove the key")
    positions, own = round(seconds * POSITIONS), model.config.max_source_positions
    if positions > own:
        raise UserError(
            f"window is {seconds:g} s, but the model's is {own / POSITIONS:g} s; set a shorter one, or remove the key"
        )
    if positions == own:
        return False
    encoder = model.body.encoder
    table = encoder.embed_positions.weight
    encoder.embed_positions = nn.Embedding.from_pretrained(table.detach()[:positions].clone(), freeze=True)
    for part in (encoder, getattr(model.body, "decoder", None)):
        if part is not None:
            part.max_source_positions = positions
    model.config.max_source_positions = positions
    return True


def extractor(model: SpeechModel) -> Any:
    """Transformers' WhisperFeatureExtractor for the model's window, rounded up to whole seconds."""
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=model.config.num_mel_bins, chunk_length=_chunk(model))


def preprocessor(model: SpeechModel, folder: Path) -> dict[str, str]:
    """Name -> text of the preprocessor files of ``folder``, changed to the window of ``model``; at least one file.

    The extractor only supports whole seconds: other windows are rounded up there, with a warning.
    """
    chunk = _chunk(model)
    if model.window != chunk * FRAMES:
        log.warning(
            "the window of %g s is not a whole number of seconds, so transformers' WhisperFeatureExtractor pads to "
            "%d s; call it with max_length=%d",
            model.window / FRAMES,
            chunk,
            model.window * RATE // FRAMES,
        )
    files = {}
    for file, content in preprocessor_files(folder).items():
        section(file, content).update(chunk_length=chunk, n_samples=chunk * RATE, nb_max_frames=chunk * FRAMES)
        files[file.name] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return files or {PREPROCESSOR[0]: extractor(model).to_json_string()}


def _chunk(model: SpeechModel) -> int:
    return -(-model.window // FRAMES)
