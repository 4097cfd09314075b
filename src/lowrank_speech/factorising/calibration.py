"""Calibration: run a dense model over some utterances and collect the second moments of its layers' inputs.

Neither padding nor frames of Whisper's window beyond the utterance count. Whisper's decoder reads its own output
(``factorising.utterances``). With ``gradients``, the second moments of the gradients of the layers' outputs are
collected too, for ``init: two-sided``. The gradient is that of the log probability of a label that is drawn from the
model's own output distribution, so its second moment is the Fisher information, and no transcript is needed. For a
model without a head it is that of the encoder states in a random direction. The stage and the command share this code.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_speech.artefact import atomic
from lowrank_speech.errors import UserError
from lowrank_speech.factorising.utterances import Example, draw, examples
from lowrank_speech.lang.select import SetAside
from lowrank_speech.lowrank.moments import Moments
from lowrank_speech.models.layers import dense_layers, observed
from lowrank_speech.models.speech import SpeechModel

log = logging.getLogger(__name__)


def calibrate(
    model: SpeechModel,
    folder: Path,
    cuts: Iterable[Any],
    what: str | Path,
    out: Path,
    layers: str | Sequence[str],
    utterances: int,
    seed: int,
    seconds: float | None = None,
    gradients: bool = False,
) -> dict[str, Any]:
    """Compute the moments of ``layers`` over some of ``cuts`` on the device of ``model``, and write them to ``out``.

    ``folder``: the model's folder; ``what``: the source of the cuts, for messages; ``utterances``: how many cuts
    ``seed`` draws, whatever their order; ``seconds``: cut them to at most this length; ``gradients``: see the module.
    Returns ``utterances`` (ids), ``seconds_speech``, ``frames`` (by layer) and ``set_aside``. Raises UserError if no
    cut is usable, or a gradient is not finite.
    """
    chosen, set_aside = dense_layers(model, layers), SetAside()
    cuts = draw(cuts, what, model, utterances, seed, seconds, set_aside)
    tables = [name for name, layer in chosen.items() if isinstance(layer, nn.Embedding)]
    moments = Moments(observed(model, chosen), gradients, diagonal=tables)
    needs_decoder = any("decoder." in name for name in chosen) or gradients
    generator = torch.Generator().manual_seed(seed)
    written: list[int] = []
    for example in examples(model, folder, cuts, needs_decoder):
        observe(model, example, moments, generator)
        if example.tokens is not None:
            written += example.tokens[0].tolist()
    counts = {
        f"{name}.tokens": torch.bincount(torch.tensor(written), minlength=len(chosen[name].weight)) for name in tables
    }
    with atomic(out) as temporary:
        moments.save(temporary, counts)
    speech = sum(cut.duration for cut in cuts)
    frames = min(moments.count.values())
    log.info("%d layers, %d utterances, %.1f s, at least %d frames", len(chosen), len(cuts), speech, frames)
    widest = max(layer.weight.shape[1] for layer in chosen.values())
    if frames < widest:
        log.warning(
            "%d frames are too few for layers of up to %d inputs: their second moments lack full rank; use more "
            "utterances",
            frames, widest,
        )  # fmt: skip
    return {
        "utterances": [cut.id for cut in cuts],
        "seconds_speech": round(speech, 3),
        "frames": dict(moments.count),
        "set_aside": [list(row) for row in set_aside.rows],
    }


def observe(model: SpeechModel, example: Example, moments: Moments, generator: torch.Generator) -> None:
    """Let ``moments`` see the model at one utterance; ``generator`` draws the labels, if it wants gradients."""
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with moments.hooked(), moments.masked(model.masks(example.cut)), torch.set_grad_enabled(moments.gradients):
            outputs = model.outputs(example.features, example.lengths, example.tokens)
            if moments.gradients:
                _backward(model, outputs, example, generator)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _backward(model: SpeechModel, outputs: Tensor, example: Example, generator: torch.Generator) -> None:
    """The backward pass from ``outputs`` (N, V) or (N, D) of one utterance; see the module."""
    if not torch.isfinite(outputs).all():
        raise UserError(f"calibrate: {example.cut.id}: the model's output is not finite; listen to the recording")
    if model.has_logits:
        shares = outputs.detach().float().softmax(-1).cpu()
        labels = torch.multinomial(shares, 1, generator=generator).squeeze(1).to(outputs.device)
        loss = nn.functional.cross_entropy(outputs, labels, reduction="sum")
    else:
        direction = torch.randn(outputs.shape, generator=generator).to(outputs)
        loss = (outputs * direction).sum()
    try:
        loss.backward()
    except ValueError as error:  # from a hook of the moments
        raise UserError(
            f"calibrate: {example.cut.id}: {error}; leave the utterance out, or use another init"
        ) from error
