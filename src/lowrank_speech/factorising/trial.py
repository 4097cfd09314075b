"""Measure what low ranks cost: a model with some layers at a low rank, against the dense model.

    dense = Reference(model, examples)
    Trial(dense, layers, init, seen).divergence({"encoder.layers.0.fc1": 128})    # all other layers stay dense
    dense.divergence(load_model(factorised))                                      # a finished model

The divergence is the mean Kullback-Leibler divergence of the outputs, in nats per token (per frame with CTC) on the
dense model's own transcripts; without a head it is the mean squared error of the encoder states over their power. It
needs no transcripts of people, and is 0 for the dense model.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lowrank_speech.factorising.utterances import Example
from lowrank_speech.lowrank.layer_factors import Statistics, as_before, check_seen, nested_of
from lowrank_speech.lowrank.structure import Dense
from lowrank_speech.models.speech import SpeechModel


class Divergence(NamedTuple):
    """``loss``: see the module. ``agreement``: share of the outputs whose most likely symbol is the dense model's; None
    for encoder states."""

    loss: float
    agreement: float | None


class Reference:
    """The outputs of the dense ``model`` on ``examples``."""

    def __init__(self, model: SpeechModel, examples: Sequence[Example]):
        self.model, self.examples = model, list(examples)
        with torch.inference_mode():
            self._states = [model.states(e.features, e.lengths) for e in self.examples]
            self._outputs = [self._of(model, i, from_states=True) for i in range(len(self.examples))]

    @torch.inference_mode()
    def divergence(self, model: SpeechModel, from_states: bool = False) -> Divergence:
        """The divergence of ``model``, which has the same outputs. ``from_states``: its encoder is the dense one."""
        loss, same, number = 0.0, 0.0, 0
        for i, expected in enumerate(self._outputs):
            found = self._of(model, i, from_states)
            if model.has_logits:
                wide = (found.double(), expected.double())
                loss += float(nn.functional.kl_div(*wide, log_target=True, reduction="sum"))
                same += float((found.argmax(-1) == expected.argmax(-1)).sum())
            else:
                loss += float((found - expected).square().sum() / expected.square().mean()) / expected.shape[-1]
            number += len(expected)
        return Divergence(loss / number, same / number if model.has_logits else None)

    def _of(self, model: SpeechModel, i: int, from_states: bool) -> Tensor:
        """Log probabilities or encoder states of example ``i``."""
        example = self.examples[i]
        states = self._states[i] if from_states else model.states(example.features, example.lengths)
        found = model.outputs_of(*states, example.tokens)
        return found.float().log_softmax(-1) if model.has_logits else found


class Trial:
    """Tries low ranks for ``layers`` (name -> module) of the dense model, whose outputs are in ``dense``.

    ``init``, ``seen``, ``exact``: see ``lowrank.factorise``. Holds the factors of all layers at full rank, which
    together are about as large as their weights. Leaves the model as it was.
    """

    def __init__(
        self,
        dense: Reference,
        layers: Mapping[str, Dense],
        init: str,
        seen: Statistics | None = None,
        exact: Sequence[int] = (),
    ):
        self.dense, self.layers, seen = dense, dict(layers), seen or Statistics()
        check_seen(layers, init, seen)
        self._nested = {
            name: nested_of(name, layer, init, seen, exact)
            for name, layer in tqdm(layers.items(), desc="factors", unit="layer", disable=None)
        }

    def divergence(self, ranks: Mapping[str, int]) -> Divergence:
        """The divergence with the layers of ``ranks`` at their ranks, and all others dense."""
        model = self.dense.model
        with as_before(self.layers[name] for name in ranks):
            for name, rank in ranks.items():
                self._nested[name].put(self.layers[name], rank)
            return self.dense.divergence(model, from_states=all(model.after_encoder(name) for name in ranks))
