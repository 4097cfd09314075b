"""The cuts of the splits that a model can use, and how their samples are changed; for pretraining and adaptation."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.features.augment import Augmentation
from lowrank_speech.features.batches import segment
from lowrank_speech.features.kept import KeptCuts, keep
from lowrank_speech.features.store import fitting, load_cuts
from lowrank_speech.lang.load import Lang
from lowrank_speech.lang.select import (
    Languages,
    SetAside,
    fits_window,
    known_language,
    one_supervision,
    possible_ctc,
    require,
    usable_text,
    writable_text,
)
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import TrainConfig

SPLITS = ("train.jsonl", "dev.jsonl")


@dataclass
class Split:
    """A split's cuts, as often as they are asked for.

    ``what``: its name in messages; ``recipe``: of the training split, whose speed may change.
    """

    what: str
    path: Path
    recipe: TrainConfig | None
    segment: Any = None
    seed: int | None = None

    def cuts(self, model: SpeechModel, set_aside: SetAside) -> Iterator[Any]:
        """The cuts that fit the model's window, one by one. UserError: stored features cannot be augmented."""
        cuts = segment(load_cuts(self.path, lazy=True), self.segment.seconds if self.segment else None, self.seed)
        slowest = min(self.recipe.speed, default=1.0) if self.recipe else 1.0
        cuts = one_supervision(fitting(cuts, model.feature_size, self.path), set_aside)
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


@dataclass
class Usable:
    """The cuts of both splits that can be used, on disk. Processes may send it to each other.

    ``languages``: of the training cuts; ``labels``: those that language recognition tells apart.
    """

    train: KeptCuts
    dev: KeptCuts
    languages: Languages
    labels: list[str] = field(default_factory=list)


def recognition_cuts(
    splits: Sequence[Split], model: SpeechModel, lang: Lang, ctc: bool, folder: Path, set_aside: SetAside
) -> Usable:
    """The cuts with a text that can be learnt, by CTC too if ``ctc``, written to ``folder`` in one pass."""
    (train, dev), languages = splits, Languages()

    def chosen(split: Split) -> Iterator[Any]:
        cuts = writable_text(usable_text(split.cuts(model, set_aside), lang, set_aside), lang, set_aside)
        return split.possible(cuts, model, lang, set_aside) if ctc else cuts

    return _kept(splits, (languages.over(chosen(train)), chosen(dev)), languages, folder, set_aside)


def language_cuts(
    splits: Sequence[Split], model: SpeechModel, labels: Sequence[str], folder: Path, set_aside: SetAside
) -> Usable:
    """The cuts whose language is one of ``labels`` (by default: of those of the training cuts).

    UserError where a language has no training cut, and where there is one language alone.
    """
    (train, dev), labels, found, languages = splits, sorted(labels), Languages(), Languages()
    if not labels:  # a pass of its own: which languages there are decides what is set aside
        for _ in found.over(train.cuts(model, SetAside())):
            pass
        labels = sorted(found.counts)

    def known(split: Split) -> Iterator[Any]:
        return known_language(split.cuts(model, set_aside), labels, set_aside)

    usable = _kept(splits, (languages.over(known(train)), known(dev)), languages, folder, set_aside)
    missing = [label for label in labels if not languages.counts[label]]
    if missing:
        raise UserError(f"train: no training utterance in {missing[0]!r}, one of the languages to tell apart")
    if len(labels) < 2:
        raise UserError(f"train: language recognition needs two languages or more, the training cuts have {labels}")
    usable.labels = labels
    return usable


def _kept(
    splits: Sequence[Split], usable: Sequence[Iterable[Any]], languages: Languages, folder: Path, set_aside: SetAside
) -> Usable:
    kept = []
    for name, split, cuts in zip(SPLITS, splits, usable, strict=True):
        kept.append(keep(cuts, folder / name))
        require(kept[-1], f"{split.what}, {split.path}", set_aside)
    return Usable(*kept, languages)


def augmentation(recipe: TrainConfig) -> Augmentation | None:
    """What the recipe changes in the samples of training utterances; None: nothing."""
    return Augmentation(recipe.speed, recipe.noise, recipe.reverberation) if recipe.changes_samples else None
