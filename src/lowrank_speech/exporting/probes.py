"""Compare an export with its model: the same utterances through both.

    wanted = reference(model, folder)          before the model is changed
    compared(wanted, outputs, TOLERANCE, "...")  metrics; UserError if the outputs differ

The utterances are seeded noise of three lengths whose loudness changes as that of syllables. Outputs are log
probabilities (N, V): of the frames (CTC), of the classes, or of a decoder's next tokens, after those that the model
itself writes and some random ones; or the encoder states (N, D) of a model without a head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lowrank_speech.errors import UserError
from lowrank_speech.features.inputs import RATE, inputs_of
from lowrank_speech.models.speech import SpeechModel

MORE = 8  # random tokens after those that a decoder writes itself, which may be few
SEED = 0
SECONDS = (1.0, 0.55, 0.8)
SYLLABLES = 4  # in a second


@dataclass(frozen=True)
class Reference:
    """What a model computes: for each utterance samples (T,), features (F, ...), tokens (1, L) of a decoder or None,
    and outputs (N, V)."""

    waves: list[Tensor]
    features: list[Tensor]
    tokens: list[Tensor | None]
    outputs: list[Tensor]


def waves_for(model: SpeechModel) -> list[Tensor]:
    """The utterances, shorter if the model's window is."""
    generator = torch.Generator().manual_seed(SEED)
    found, most = [], min(1.0, model.window_seconds or 1.0)
    for seconds in SECONDS:
        samples = int(RATE * seconds * most)
        loudness = torch.sin(math.pi * SYLLABLES * torch.arange(samples) / RATE).square()
        found.append(0.2 * loudness * torch.randn(samples, generator=generator))
    return found


def log_probs(model: SpeechModel, features: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Log probabilities (N, V) or states (N, D) of one utterance with ``features`` (F, ...)."""
    outputs = model.outputs(features[None], torch.tensor([len(features)]), tokens)
    return outputs.log_softmax(-1) if model.has_logits else outputs


@torch.inference_mode()
def reference(model: SpeechModel, folder: str | Path) -> Reference:
    """The outputs of ``model``, the model in ``folder``."""
    inputs, found = inputs_of(folder), Reference([], [], [], [])
    for wave in waves_for(model):
        features = inputs.of(wave)
        cut = SimpleNamespace(duration=len(wave) / RATE)
        tokens = model.greedy(features[None], torch.tensor([len(features)]), cut, None)
        if tokens is not None:
            tokens = _longer(model, tokens)
        found.waves.append(wave)
        found.features.append(features)
        found.tokens.append(tokens)
        found.outputs.append(log_probs(model, features, tokens))
    return found


def _longer(model: SpeechModel, tokens: Tensor) -> Tensor:
    """``tokens`` (1, L) and some random ones, at most as many as the decoder has positions."""
    generator = torch.Generator().manual_seed(SEED)
    more = torch.randint(0, model.config.vocab_size, (1, MORE), generator=generator)
    return torch.cat([tokens[:, : model.decoder_positions - MORE], more], 1)


@torch.inference_mode()
def outputs_of(model: SpeechModel, wanted: Reference) -> list[Tensor]:
    """The outputs of another model for the same features and tokens."""
    return [log_probs(model, *given) for given in zip(wanted.features, wanted.tokens, strict=True)]


def compared(wanted: Reference, found: Sequence[Tensor], tolerance: float, what: str) -> dict[str, Any]:
    """How much ``found`` differs: ``largest_difference``, ``outputs`` (rows that were compared), and ``same_best``, the
    share of rows with the same best symbol.

    Raises UserError if a difference is above ``tolerance``, or another symbol is the best one where that cannot come
    from such a difference. ``what``: the export, for the message.
    """
    largest, rows, same, wrong = 0.0, 0, 0, 0
    for expected, actual in zip(wanted.outputs, found, strict=True):
        if expected.shape != actual.shape:
            raise UserError(
                f"{what} has outputs of the shape {tuple(actual.shape)}, but the model's are {tuple(expected.shape)}: "
                f"the export is wrong and was not kept"
            )
        if not torch.isfinite(actual).all():
            raise UserError(f"{what} computes values that are not finite: the export is wrong and was not kept")
        largest = max(largest, float((expected - actual).abs().max()))
        equal = expected.argmax(-1) == actual.argmax(-1)
        best, second = expected.topk(2, -1).values.unbind(-1) if expected.shape[-1] > 1 else (expected[:, 0], 0.0)
        rows, same = rows + len(equal), same + int(equal.sum())
        wrong += int((~equal & (best - second > 2 * tolerance)).sum())
    if not largest <= tolerance or wrong:
        raise UserError(
            f"{what} differs from the model by {largest:.2g} (at most {tolerance:g} was expected) and has another best "
            f"symbol in {wrong} of {rows} rows: the export is wrong and was not kept"
        )
    return {"largest_difference": largest, "outputs": rows, "same_best": same / rows}


def divergence(wanted: Reference, found: Sequence[Tensor]) -> float:
    """The mean Kullback-Leibler divergence of the rows of ``found`` from the model's, in nats."""
    rows = [(p.double().exp() * (p.double() - q.double())).sum(-1) for p, q in zip(wanted.outputs, found, strict=True)]
    return float(torch.cat(rows).mean())
