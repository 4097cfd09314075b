"""Calibration: run a dense model over some utterances and collect the second moments of its layers' inputs.

Neither padding nor frames of Whisper's window beyond the utterance count. Whisper's decoder reads its own output
(``factorising.utterances``). With ``gradients``, the second moments of the gradients of the layers' outputs are
collected too, for ``init: two-sided``. The gradient is that of the log probability of a label that is drawn from the
model's own output distribution, so its second moment is the Fisher information, and no transcript is needed. For a
model without a head it is that of the encoder states in a random direction. The stage and the command share this code.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
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

LEAST, MOST = 64, 512
"""How many utterances calibration sees if no number is given."""
ENOUGH = 2
"""Frames per input that each layer should see. A decoder has one frame for each token: with 64 utterances of Whisper
tiny, moments of its feed-forward layers lack full rank, and factors diverge from the dense model nine times as far."""


def calibrate(
    model: SpeechModel,
    folder: Path,
    cuts: Iterable[Any],
    what: str | Path,
    out: Path,
    layers: str | Sequence[str],
    utterances: int | None,
    seed: int,
    seconds: float | None = None,
    gradients: bool = False,
) -> dict[str, Any]:
    """Compute the moments of ``layers`` over some of ``cuts`` on the device of ``model``, and write them to ``out``.

    ``folder``: the model's folder; ``what``: the source of the cuts, for messages; ``utterances``: how many cuts
    ``seed`` draws, whatever their order (None: ``LEAST``, and more until each layer has seen ``ENOUGH`` times as many
    frames as it has inputs, up to ``MOST``); ``seconds``: cut them to at most this length; ``gradients``: see the
    module. Returns ``utterances`` (ids), ``seconds_speech``, ``frames`` (by layer) and ``set_aside``. Raises UserError
    if no cut is usable, or a gradient is not finite.
    """
    chosen, set_aside = dense_layers(model, layers), SetAside()
    drawn = draw(cuts, what, model, utterances or MOST, seed, seconds, set_aside)
    if len(drawn) < (utterances or LEAST):
        asked = utterances or f"at least {LEAST}"
        log.warning("%s has only %d usable utterances, %s were requested", what, len(drawn), asked)
    tables = [name for name, layer in chosen.items() if isinstance(layer, nn.Embedding)]
    moments = Moments(observed(model, chosen), gradients, diagonal=tables)
    needs_decoder = any("decoder." in name for name in chosen) or gradients
    generator, used = torch.Generator().manual_seed(seed), []
    written: list[int] = []
    for example in examples(model, folder, drawn, needs_decoder):
        observe(model, example, moments, generator)
        used.append(example.cut)
        if example.tokens is not None:
            written += example.tokens[0].tolist()
        if utterances is None and len(used) >= LEAST and not _starved(moments, chosen, ENOUGH):
            break
    others = {f"{n}.tokens": torch.bincount(torch.tensor(written), minlength=len(chosen[n].weight)) for n in tables}
    with atomic(out) as temporary:
        moments.save(temporary, others | {"utterances": torch.tensor(len(used))})
    speech = sum(cut.duration for cut in used)
    log.info(
        "%d layers, %d utterances, %.1f s, at least %d frames",
        len(chosen), len(used), speech, min(moments.count.values()),
    )  # fmt: skip
    if starved := _starved(moments, chosen, 1):
        name = starved[0]
        log.warning(
            "%d frames are too few for the %d inputs of %s (and %d other layers): their second moments lack full rank, "
            "so the factors fit only this speech; use more utterances",
            moments.count[name], chosen[name].weight.shape[1], name, len(starved) - 1,
        )  # fmt: skip
    return {
        "utterances": [cut.id for cut in used],
        "seconds_speech": round(speech, 3),
        "frames": dict(moments.count),
        "set_aside": [list(row) for row in set_aside.rows],
    }


def _starved(moments: Moments, layers: Mapping[str, nn.Module], times: int) -> list[str]:
    """The layers that have seen fewer than ``times`` as many frames as they have inputs."""
    return [name for name, layer in layers.items() if moments.count[name] < times * layer.weight.shape[1]]


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
