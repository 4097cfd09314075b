"""Language scores: log-likelihoods up to a constant per segment, from the classifier's posteriors and its priors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lowrank_speech.models.speech import SpeechModel


def scores(model: SpeechModel, features: Tensor, lengths: Tensor, priors: Sequence[float] | None) -> Tensor:
    """(B, N) float64: log p(language | x) - log prior(language); None or empty: the log posteriors as they are.

    By Bayes this is log p(x | language) up to a term that no cost of ``scoring.lid`` sees. Without it a classifier
    trained on unbalanced data carries the training shares into the test.
    """
    posteriors = model.class_logits(features, lengths).double().log_softmax(-1).cpu()
    if priors:
        posteriors = posteriors - torch.tensor(priors, dtype=torch.float64).log()
    return posteriors
