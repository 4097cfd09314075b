"""Progressive truncation: a training starts with larger ranks and reaches the planned ones in several steps.

    truncation = Truncation(model, settings, moments)     # model.meta.target: the ranks to reach
    truncation.due(step, steps)                           # how many truncations precede the update number ``step``
    truncation.apply(number, optimiser, ranks)            # truncate as after so many of them
    truncation.fit(number, optimiser)                     # only the shapes, to load a state into

The optimiser's state is projected, not reset. The gradients of the new factors are linear in those of the old ones, so
momentum carries over exactly, and AdamW's squares as for independent entries. After a reset, AdamW would take steps of
full size in every direction without a warm-up, just after the model was changed.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowrank_speech.errors import UserError
from lowrank_speech.lowrank.linear import LowRankLinear
from lowrank_speech.lowrank.moments import MomentsFile
from lowrank_speech.lowrank.structure import low_rank_layers
from lowrank_speech.lowrank.truncate import Truncated, ranks_after, resize, truncate_layer
from lowrank_speech.lowrank.truncate_settings import Progressive
from lowrank_speech.models.speech import SpeechModel
from lowrank_speech.training.process.distributed import Ranks

log = logging.getLogger(__name__)


class Truncation:
    """Truncates the low-rank layers of ``model`` from their present ranks to those of ``model.meta.target``.

    ``moments``: file of the second moments of the layers' inputs (stage calibrate), by which truncations are weighted;
    None: plain truncations. Raises UserError if the model has no target, or one that does not fit its layers, or if the
    moments lack a layer.
    """

    def __init__(self, model: SpeechModel, settings: Progressive, moments: Path | None = None):
        self.model, self.settings = model, settings
        # An embedding has its rank from the start.
        every = low_rank_layers(model.body)
        self.layers = {name: layer for name, layer in every.items() if isinstance(layer, LowRankLinear)}
        self.start = {name: layer.rank for name, layer in self.layers.items()}
        target = model.meta.target or {}
        self.final = {name: rank for name, rank in target.items() if name in self.layers or name not in every}
        if not self.final:
            raise UserError(
                "progressive: the model has no ranks to reach; factorise it with `start`, or remove progressive"
            )
        wrong = [name for name in self.final if self.start.get(name, 0) < self.final[name]]
        if wrong or self.start.keys() != self.final.keys():
            name = (wrong or sorted(self.start.keys() ^ self.final.keys()))[0]
            raise UserError(
                f"progressive: the layer {name!r} has the rank {self.start.get(name)} and shall get "
                f"{self.final.get(name)}; make the factorised model again"
            )
        self.moments = None
        if moments is not None:
            try:
                self.moments = MomentsFile(moments)
            except ValueError as error:
                raise UserError(f"progressive: {error}") from error
            if missing := [name for name in self.final if name not in self.moments]:
                raise UserError(f"progressive: {moments} has no moments of the layer {missing[0]!r}; calibrate it")

    @property
    def stages(self) -> int:
        """The number of truncations."""
        return self.settings.stages

    def due(self, step: int, steps: int) -> int:
        """How many truncations precede the update number ``step`` (from 0) of ``steps``; all precede the last one."""
        last = max(steps - 1, 0)
        at = (min(round(self.settings.share * steps * i / self.stages), last) for i in range(1, self.stages + 1))
        return sum(step >= first for first in at)

    def ranks(self, number: int) -> dict[str, int]:
        """Layer name -> rank after ``number`` truncations."""
        return ranks_after(number, self.stages, self.start, self.final, self.settings.schedule)

    def fit(self, number: int, optimiser: Any) -> None:
        """Give the layers uninitialised factors of the shapes after ``number`` truncations."""
        wanted, new = self.ranks(number), {}
        for name, layer in self.layers.items():
            if layer.rank != wanted[name]:
                before = _weights(layer)
                resize(layer, wanted[name])
                new |= zip(before, _weights(layer), strict=True)
        _exchange(optimiser, new)
        self.model.plan = wanted

    @torch.no_grad()
    def apply(self, number: int, optimiser: Any, ranks: Ranks) -> None:
        """Truncate to the ranks after ``number`` truncations, and project the state of ``optimiser``.

        All processes compute the same, and then take the first one's values, because rounding may differ.
        """
        wanted, new, changed = self.ranks(number), {}, []
        state = optimiser.state
        for name, layer in self.layers.items():
            if layer.rank == wanted[name]:
                continue
            moment = mean = None
            if self.moments is not None:
                moment, mean = self.moments[name], self.moments.mean(name)
            before = first, second = _weights(layer)
            found = truncate_layer(layer, wanted[name], moment, mean)
            new |= zip(before, _weights(layer), strict=True)
            changed += [*_weights(layer), *([] if layer.bias is None else [layer.bias])]
            if first in state and second in state:
                changed += _project(found, state[first], state[second])
        _exchange(optimiser, new)
        self.model.plan = wanted
        ranks.copy_from_first(changed)
        log.info(
            "truncation %d of %d: ranks %d to %d, %d parameters",
            *(number, self.stages, min(wanted.values()), max(wanted.values()), self.model.parameters_total()),
        )


def _weights(layer: LowRankLinear) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.first.weight, layer.second.weight


def _exchange(optimiser: Any, new: dict[nn.Parameter, nn.Parameter]) -> None:
    """Exchange parameters in the groups and the state of an optimiser, or of each of several (``MultiOptimizer``)."""
    for part in getattr(optimiser, "parts", [optimiser]):
        for group in part.param_groups:
            group["params"][:] = [new.get(p, p) for p in group["params"]]
        for before, after in new.items():
            if before in part.state:
                part.state[after] = part.state.pop(before)


def _project(found: Truncated, first: dict[str, Any], second: dict[str, Any]) -> list[torch.Tensor]:
    """Project the optimiser's state of both factors, in place; returns the new tensors."""
    changed = []
    for name, project in (
        ("exp_avg", found.gradients),
        ("exp_avg_sq", found.squares),
        ("momentum_buffer", found.gradients),
    ):
        if first.get(name) is not None and second.get(name) is not None:
            first[name], second[name] = project(first[name], second[name])
            changed += [first[name], second[name]]
    return changed
