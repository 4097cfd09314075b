"""Language scores: log-likelihoods from the classifier's posteriors and priors, up to a constant for each segment.

By Bayes' rule, log p(language | x) - log prior(language) equals log p(x | language) up to a constant, which does not
affect the metrics of ``scoring.lid``. Without the division by the priors, a classifier that was trained on unbalanced
data would favour the languages that are frequent in training.
"""

from collections.abc import Callable
from typing import Any, Literal

from lowrank_speech.decoding.base import Decoding, Hypothesis
from lowrank_speech.settings import key, settings

READS = "model"


@settings
class Settings(Decoding):
    """Scores of a language classifier."""

    kind: Literal["scores"] = key("scores", "the log-likelihood of each language")
    priors: bool = key(True, "divide the posteriors by the shares of the languages in training")


def open(source: Any, lang: Any, settings: Settings) -> Callable[[dict[str, Any]], list[Hypothesis]]:
    """Decoder for the network ``source``; see ``decoding.base``. ``lang`` is not used."""
    import torch

    labels = source.model.meta.labels
    priors = source.model.meta.priors if settings.priors else None

    def decode(batch: dict[str, Any]) -> list[Hypothesis]:
        logits = source.model.class_logits(batch["features"], batch["lengths"])
        scores = logits.double().log_softmax(-1).cpu()
        if priors:
            scores = scores - torch.tensor(priors, dtype=torch.float64).log()
        result = []
        for row in scores.tolist():
            best = max(range(len(row)), key=row.__getitem__)
            result.append(Hypothesis((best,), labels[best], row[best], scores=tuple(row)))
        return result

    return decode
