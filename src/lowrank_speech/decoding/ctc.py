"""Greedy CTC decoding: the best symbol of each frame, repeats merged, blanks dropped."""

import torch
from torch import Tensor

from lowrank_speech.models.speech import SpeechModel

BLANK = 0


def collapse(path: Tensor) -> list[int]:
    """Frame-level symbols (F,) -> labels: adjacent repeats merged, blanks dropped."""
    merged = torch.unique_consecutive(path)
    return merged[merged != BLANK].tolist()


def greedy(model: SpeechModel, features: Tensor, lengths: Tensor) -> list[list[int]]:
    """Labels of each utterance of a batch; features and lengths as in ``training.batches``."""
    logits, frames = model.ctc_logits(features, lengths)
    best = logits.argmax(-1).cpu()
    return [collapse(row[:n]) for row, n in zip(best, frames.tolist(), strict=True)]
