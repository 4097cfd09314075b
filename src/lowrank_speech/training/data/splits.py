"""Select the cuts that a training can use, with their targets, and set the others aside before the first step."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from lowrank_speech.errors import UserError
from lowrank_speech.features.batches import segment
from lowrank_speech.features.kept import KeptCuts, keep
from lowrank_speech.features.store import fitting, load_cuts
from lowrank_speech.lang.select import TAIL, Languages, Reason, SetAside, fits_window, one_supervision, require
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.data.targets import with_targets
from lowrank_speech.training.losses.objective import Objective

SPLITS = ("train.jsonl", "dev.jsonl")


@dataclass
class Split:
    """A split, whose cuts can be read several times.

    ``what``: its name in messages; ``recipe``: only for the training split, whose speed may change; ``seconds``: cut
    utterances to at most this length, at a position drawn from ``seed`` (None: the middle); ``number``: of its usable
    cuts, once ``usable_cuts`` has seen them; ``crops``: the pieces that each epoch reads (``features.crops``);
    ``changes``: functions from cuts to other cuts, such as with other labels.
    """

    what: str
    path: Path
    recipe: TrainConfig | None
    seconds: float | None = None
    seed: int | None = None
    number: int = 0
    crops: Any = None
    changes: tuple[Callable[[Iterable[Any]], Iterator[Any]], ...] = ()

    def cuts(self, model: SpeechModel, set_aside: SetAside) -> Iterator[Any]:
        """Yield the cuts that fit the model's window. Raises UserError if they have stored features to augment."""
        window = model.window_seconds
        if self.crops is not None:
            self._check_crops(window)
            window = None  # pieces fit, however long the utterances are
        cuts = segment(load_cuts(self.path, lazy=True), self.seconds, self.seed)
        for change in self.changes:
            cuts = change(cuts)
        slowest = min(self.recipe.speed, default=1.0) if self.recipe else 1.0
        cuts = one_supervision(fitting(cuts, model.feature_size, self.path), set_aside)
        for cut in fits_window(cuts, window, set_aside, slowest):
            if self.recipe and self.recipe.changes_samples and getattr(cut, "has_features", False):
                raise UserError(
                    f"{self.path} has stored features, which speed, noise and reverberation cannot change; set "
                    f"features: waveform, or remove these keys"
                )
            shortest = cut if self.crops is None else self.crops.shortest(cut)
            # A second is long enough for every model. Asking the model costs time on long corpora.
            if shortest.duration < 1.0 and self.frames(model, shortest) < 1:
                detail = f"{shortest.duration:.3f} s, less than one frame of the model"
                if shortest.duration < cut.duration - 1e-6:
                    raise UserError(f"segment.crop: pieces may have {detail}; choose longer ones")
                set_aside.add(cut.id, "too short", detail)
                continue
            yield cut

    def _check_crops(self, window: float | None) -> None:
        """Raise UserError if the longest pieces do not fit the model's window."""
        slowest = min(self.recipe.speed, default=1.0) if self.recipe else 1.0
        if window is not None and self.crops.high > (window - TAIL) * min(slowest, 1.0):
            raise UserError(
                f"segment.crop: pieces of {self.crops.high:g} s do not fit the model's window of {window:g} s"
                f"{', at the lowest speed' if slowest < 1 else ''}; choose shorter ones"
            )

    def frames(self, model: SpeechModel, cut: Any) -> int:
        """Number of encoder frames of a cut, at the highest speed."""
        fastest = max(self.recipe.speed, default=1.0) if self.recipe else 1.0
        return model.frames_of(cut if fastest <= 1.0 else cut.perturb_speed(fastest))

    def usable(self, model: SpeechModel, objective: Objective, set_aside: SetAside) -> Iterator[Any]:
        """Yield the cuts that have a target for each loss, together with these targets."""
        frames = partial(self.frames, model)
        for cut in self.cuts(model, set_aside):
            found = objective.prepare(cut, frames)
            if isinstance(found, Reason):
                set_aside.add(cut.id, *found)
            else:
                yield with_targets(cut, found)


@dataclass
class Usable:
    """The usable cuts of both splits, on disk. Processes can send this object to each other.

    ``languages``: of the transcribed training cuts; ``labels``: the languages that the losses distinguish;
    ``untranscribed``: number of cuts of which only a teacher's terms count, the last ones of ``train``.
    """

    train: KeptCuts
    dev: KeptCuts
    languages: Languages
    labels: list[str]
    untranscribed: int = 0


def usable_cuts(
    splits: Sequence[Split],
    model: SpeechModel,
    objective: Objective,
    folder: Path,
    set_aside: SetAside,
    untranscribed: Iterable[Any] = (),
) -> Usable:
    """Write the usable cuts of the training and the dev split to ``folder`` in one pass.

    ``untranscribed``: cuts that the training uses too, after those of its split.

    Fills the objective's ``labels`` if the config does not name them. Raises UserError if a split has no usable cut, or
    if the training cuts do not suffice for a loss.
    """
    (train, dev), languages, labels = splits, Languages(), objective.labels
    if objective.task.wants_labels and not labels:  # needs its own pass: the labels decide which cuts can be used
        found = Languages()
        for _ in found.over(train.cuts(model, SetAside())):
            pass
        labels[:] = sorted(found.counts)

    def some(split: Split, cuts: Iterable[Any]) -> Iterator[Any]:
        split.number = 0
        for cut in cuts:
            split.number += 1
            yield cut
        require(range(split.number), f"{split.what}, {split.path}", set_aside)

    transcribed = some(train, languages.over(train.usable(model, objective, set_aside)))
    kept_train = keep(chain(transcribed, untranscribed), folder / SPLITS[0])
    if objective.wants_labels and not labels:
        labels[:] = languages.spoken()
    kept_dev = keep(some(dev, dev.usable(model, objective, set_aside)), folder / SPLITS[1])
    objective.check(languages)
    return Usable(kept_train, kept_dev, languages, list(labels), len(kept_train) - train.number)


def crops(lengths: tuple[float, float] | None, seed: int) -> Any:
    """The ``Crops`` of training utterances to ``lengths``, or None."""
    if lengths is None:
        return None
    # Imported here, so that the code hash of a training without crops can leave it out.
    from lowrank_speech.features.crops import Crops

    return Crops(*lengths, seed)


def through_channel(channel: str, path: Path) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """A function that sends the cuts of ``path`` through a ``channel``."""
    # Imported here, so that the code hash of a training without one can leave it out.
    from lowrank_speech.features.channel import through

    return partial(through, channel=channel, path=path)


def augmentation(recipe: TrainConfig) -> Any:
    """The ``Augmentation`` of training samples that the recipe asks for, or None."""
    if not recipe.changes_samples:
        return None
    # Imported here, so that the code hash of a training without augmentation can leave it out.
    from lowrank_speech.features.augment import Augmentation

    return Augmentation(recipe.speed, recipe.noise, recipe.reverberation)
