"""What the losses of language classifiers share: labels, their checks, and the dev metric (error rate)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowrank_speech.errors import UserError
from lowrank_speech.lang.select import Languages, Reason, known_or_reason
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.losses.loss import Errors, Loss, Utterance

IGNORE = -100  # torch's ignore_index


class Classification(Loss):
    """Targets are the languages of utterances. Subclasses have ``forward``."""

    tasks = ("classify",)
    wants_labels = True

    def prepare(self, utterance: Utterance) -> str | Reason | None:
        """The language's code. An auxiliary loss takes the set of languages from the training cuts."""
        labels = self.materials.labels
        return known_or_reason(utterance.language, labels) if labels or not self.auxiliary else utterance.language

    def untranscribed(self, tokens: Sequence[int] | None) -> None:
        return None  # nobody said which language it is

    def check(self, languages: Languages) -> None:
        labels = self.materials.labels
        if self.auxiliary:
            return
        missing = [label for label in labels if not languages.counts[label]]
        if missing:
            raise UserError(
                f"train: the training cuts have no utterance in {missing[0]!r}, one of the task's languages; add some, "
                f"or remove it from `languages`"
            )
        if len(labels) < 2:
            raise UserError(
                f"train: language recognition needs at least two languages, but the training cuts have "
                f"{', '.join(labels) or 'none'}; add cuts of another language"
            )

    def collate(self, targets: Sequence[str | None]) -> Tensor:
        """Label indices (B,) int64 of the languages; IGNORE if the language is None."""
        index = {label: i for i, label in enumerate(self.materials.labels)} | {None: IGNORE}
        return torch.tensor([index[language] for language in targets])

    def units(self, target: Tensor, frames: Callable[[], Tensor]) -> int:
        return len(target)

    def logits(self, model: SpeechModel, states: Tensor, frames: Tensor, target: Tensor) -> Tensor:
        return model.head_logits(states, frames)

    def predicted(self, target: Tensor, frames: Tensor, size: int) -> Tensor:
        return torch.ones(len(target), dtype=torch.bool, device=frames.device)

    def errors(self, logits: Tensor, frames: Tensor, target: Tensor) -> Errors:
        """Count the utterances whose target differs from the argmax of ``logits`` (B, labels)."""
        return Errors(int((logits.argmax(-1).cpu() != target).sum()), len(target))
