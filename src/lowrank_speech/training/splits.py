"""The cuts of a split that a model can use, and how their samples are changed; for pretraining and adaptation."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.features.augment import Augmentation
from lowrank_speech.features.batches import segment
from lowrank_speech.features.store import load_cuts
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.select import SetAside, fits_window, possible_ctc
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import TrainConfig


@dataclass
class Split:
    """A split's cuts, as often as they are asked for. ``recipe``: of the training split, whose speed may change."""

    path: Path
    recipe: TrainConfig | None
    segment: Any = None
    seed: int | None = None

    def cuts(self, model: SpeechModel, set_aside: SetAside) -> Iterator[Any]:
        """The cuts that fit the model's window, one by one. UserError: stored features cannot be augmented."""
        cuts = segment(load_cuts(self.path, lazy=True), self.segment.seconds if self.segment else None, self.seed)
        slowest = min(self.recipe.speed, default=1.0) if self.recipe else 1.0
        for cut in fits_window(cuts, model.window_seconds, set_aside, slowest):
            if self.recipe and self.recipe.changes_samples and getattr(cut, "has_features", False):
                raise UserError(
                    f"{self.path} has stored features, which speed, noise and reverberation cannot change: take "
                    f"features: waveform, or leave these out"
                )
            # No second is too short for a model; asking costs time on long corpora.
            if cut.duration < 1.0 and self._frames(model, cut) < 1:
                set_aside.add(cut.id, "too short", f"{cut.duration:.3f} s, less than one frame of the model")
                continue
            yield cut

    def _frames(self, model: SpeechModel, cut: Any) -> int:
        """The encoder frames of a cut, at the highest speed."""
        fastest = max(self.recipe.speed, default=1.0) if self.recipe else 1.0
        return model.frames_of(cut if fastest <= 1.0 else cut.perturb_speed(fastest))

    def possible(self, cuts: Iterable[Any], model: SpeechModel, lang: Lang, set_aside: SetAside) -> Iterator[Any]:
        """The cuts whose CTC target fits their frames, at the highest speed too."""
        return possible_ctc(cuts, lang, partial(self._frames, model), set_aside)


def augmentation(recipe: TrainConfig) -> Augmentation | None:
    """What the recipe changes in the samples of training utterances; None: nothing."""
    return Augmentation(recipe.speed, recipe.noise, recipe.reverberation) if recipe.changes_samples else None
