"""What the decoders of language systems share: log-likelihoods from a classifier's logits.

By Bayes' rule, log p(language | x) - log prior(language) equals log p(x | language) up to a constant, which does not
affect the metrics of ``scoring.lid``. Without the division by the priors, a classifier that was trained on unbalanced
data would favour the languages that are frequent in training.

Open set: segments in none of the model's languages count as one more class, ``out_of_set``. A classifier knows nothing
of it, so its likelihood is the mean of the others, and it never decides. A back end, trained on dev segments of other
languages, learns what it looks like.
"""

import math
from collections.abc import Sequence
from typing import Any

from lowrank_speech.decoding.base import Decoding, Hypothesis
from lowrank_speech.errors import UserError
from lowrank_speech.settings import key, settings


@settings
class LanguageDecoding(Decoding):
    """Keys of every decoder of language systems."""

    priors: bool = key(True, "divide the posteriors by the shares of the languages in training")
    out_of_set: str | None = key(
        None, "open set: label of the segments in other languages than the model's; null: these are set aside"
    )


def labels_of(source: Any, settings: LanguageDecoding) -> list[str]:
    """The labels of the scores. UserError: the out-of-set label is one of the model's languages."""
    labels = list(source.model.meta.labels)
    if settings.out_of_set is None:
        return labels
    if settings.out_of_set in labels:
        raise UserError(
            f"decoder.out_of_set: {settings.out_of_set!r} is a language of the model; choose a label for all others"
        )
    return [*labels, settings.out_of_set]


def hypotheses(logits: Any, source: Any, settings: LanguageDecoding) -> list[Hypothesis]:
    """One hypothesis for each row of ``logits`` (B, N), with the scores of ``labels_of``."""
    import torch

    labels, priors = labels_of(source, settings), source.model.meta.priors if settings.priors else None
    scores = logits.double().log_softmax(-1).cpu()
    if priors:
        scores = scores - torch.tensor(priors, dtype=torch.float64).log()
    if settings.out_of_set is not None:
        mean = scores.logsumexp(-1, keepdim=True) - math.log(scores.shape[1])
        scores = torch.cat([scores, mean], 1)
    return [_best(row, labels) for row in scores.tolist()]


def _best(row: Sequence[float], labels: Sequence[str]) -> Hypothesis:
    best = max(range(len(row)), key=row.__getitem__)
    return Hypothesis((best,), labels[best], row[best], scores=tuple(row))
