"""A Whisper whose window is shorter than the published 30 s, and which encodes less padding.

inputs   a model of the family whisper, a window in seconds, the folder that the model came from
outputs  the model with the first rows of its encoder's positional table; the preprocessor files that say so

    shorten(model, 10.0)
    save_model(model, out, copy_from=folder, files=preprocessor(model, folder))

The sinusoids of a position do not depend on how many follow it. The cut table is therefore that of a model built with
the short window, and the result is a plain Hugging Face folder. On an input padded to the short window it computes what
the long model would with its table cut. On an input padded to 30 s the long model computes something else, because
encoder and decoder attend to the padding: transformers' encoder takes no mask, and its decoder passes none to the
cross-attention. Generation settings do not hold the window: transformers reads ``max_source_positions``.
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

POSITIONS = 50  # of the encoder, in a second
RATE, FRAMES = 16_000, 100  # samples and log-mel frames in a second


def shorten(model: SpeechModel, seconds: float) -> bool:
    """Cut the window of ``model`` (in place) to ``seconds``, a multiple of 0.02; whether that changed anything.

    UserError where the model has no window, or a shorter one.
    """
    if not FAMILIES[model.family].window:
        raise UserError(f"window: {model.family} models have none, they take utterances as they are: remove the key")
    positions, own = round(seconds * POSITIONS), model.config.max_source_positions
    if positions > own:
        raise UserError(
            f"window is {seconds:g} s, and the model has {own / POSITIONS:g} s; give less, or remove the key"
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
    """Name -> text of the preprocessor files of ``folder``, changed to the window of ``model``; one where it has none.

    The extractor knows only whole seconds: another window is rounded up there, with a warning.
    """
    chunk = _chunk(model)
    if model.window != chunk * FRAMES:
        log.warning(
            "the window of %g s is not a whole number of seconds: transformers' own WhisperFeatureExtractor pads to "
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
