"""Factorise a dense model on speech in any format that people have: calibrate, hold some utterances out, factorise.

The commands ``factorise`` and ``compress`` share this code; the stages calibrate and factorise do the same in two jobs.
"""

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.factorising.calibration import MOST, calibrate
from lowrank_speech.factorising.model import factorise_model
from lowrank_speech.factorising.speech import speech_of
from lowrank_speech.factorising.utterances import held_out, seen_again
from lowrank_speech.lowrank.recipe import Factorise
from lowrank_speech.models.speech import SpeechModel


@dataclass(frozen=True)
class Calibration:
    """Speech to calibrate on: ``path`` in a format of ``factorising.speech``.

    ``utterances``: how many to draw (None: as many as needed); ``trial``: how many further ones measure the result;
    ``cuts``: what ``read`` found there.
    """

    path: Path
    utterances: int | None
    trial: int
    cuts: Sequence[Any]

    @classmethod
    def read(cls, path: Path, utterances: int | None, trial: int, seed: int) -> "Calibration":
        """Raises UserError if there is no recording that can be opened."""
        return cls(path, utterances, trial, list(speech_of(path, (utterances or MOST) + trial, seed)))


def factorise_on(
    model: SpeechModel,
    folder: Path,
    recipe: Factorise,
    out: Path,
    speech: Calibration | None,
    moments: Path | None = None,
    seed: int = 1,
    source: str = "",
) -> dict[str, Any]:
    """Factorise ``model`` (of ``folder``) into the folder ``out``; see ``factorising.model.factorise_model``.

    ``source``: the name of the model for messages, if it is not ``folder``.
    With ``speech``, the result also has the key ``calibration``: what ``factorising.calibration.calibrate`` returned,
    and as ``trial`` the ids of the utterances that measured the result.
    """
    tried, again, found = [], [], None
    with contextlib.ExitStack() as until_done:
        if speech is not None:
            # Beside the result: several gigabytes for a large model.
            out.parent.mkdir(parents=True, exist_ok=True)
            scratch = until_done.enter_context(tempfile.TemporaryDirectory(dir=out.parent, prefix=".moments-"))
            moments, gradients = Path(scratch) / "moments.safetensors", recipe.init == "two-sided"
            where = (model, folder, speech.cuts, speech.path)
            found = calibrate(*where, moments, recipe.layers, speech.utterances, seed, gradients=gradients)
            seen = len(found["utterances"])
            tried = held_out(*where, speech.trial, seen, seed) if speech.trial else []
            again = seen_again(*where, seen, seed) if recipe.sequential else []
        try:
            result = factorise_model(model, recipe, out, folder, moments, seed, tried, again)
        except ValueError as error:
            raise UserError(f"{source or folder}: {error}") from error
    if found is None:
        return result
    return result | {"calibration": found | {"trial": [example.cut.id for example in tried]}}
