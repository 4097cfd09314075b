"""Sequential calibration: the layers of a block are calibrated on what the factorised blocks before it give them.

All blocks are calibrated on the dense model by default, so a later layer is fitted to inputs that it will not see. Here
the model is run once for each block: hooks collect the moments of its layers, which are then replaced by their product
at the plan's rank. The decoder still reads the dense model's transcripts.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from lowrank_speech.factorising.calibration import observe
from lowrank_speech.factorising.utterances import Example
from lowrank_speech.lowrank.layer_factors import Statistics, as_before, nested_of
from lowrank_speech.lowrank.moments import Moments, MomentsFile
from lowrank_speech.lowrank.structure import Dense
from lowrank_speech.models.layers import observed
from lowrank_speech.models.speech import SpeechModel

BLOCK = re.compile(r"(.*\.layers\.\d+)\.")


def sequential_statistics(
    model: SpeechModel,
    layers: Mapping[str, Dense],
    plan: Mapping[str, int],
    init: str,
    examples: Sequence[Example],
    folder: Path,
    seed: int = 0,
    exact: Sequence[int] = (),
) -> Statistics:
    """The statistics of the layers of ``plan``, block by block; ``folder`` gets a file for each block.

    ``model`` is as before afterwards. See ``lowrank.factorise`` for the other arguments.
    """
    wanted = {name: layer for name, layer in layers.items() if name in plan}
    files: dict[str, MomentsFile] = {}
    generator = torch.Generator().manual_seed(seed)
    with as_before(wanted.values()):
        for number, block in enumerate(tqdm(list(blocks(wanted)), desc="blocks", unit="block", disable=None)):
            chosen = {name: wanted[name] for name in block}
            tables = [name for name, layer in chosen.items() if isinstance(layer, nn.Embedding)]
            moments = Moments(observed(model, chosen), gradients=init == "two-sided", diagonal=tables)
            for example in examples:
                observe(model, example, moments, generator)
            path = folder / f"block{number}.safetensors"
            moments.save(path)
            file = MomentsFile(path)
            for name, layer in chosen.items():
                nested_of(name, layer, init, Statistics.of(file), exact).put(layer, plan[name])
            files |= dict.fromkeys(block, file)
    return Statistics(_Joined(files), _Joined(files, "means"), _Joined(files, "outputs"))


def blocks(names: Mapping[str, Any]) -> Iterator[list[str]]:
    """The names in their order, grouped by encoder or decoder layer."""
    groups: dict[str, list[str]] = {}
    for name in names:
        found = BLOCK.match(name)
        groups.setdefault(found[1] if found else name, []).append(name)
    yield from groups.values()


class _Joined(Mapping):
    """Name -> tensor, or its ``part``, from the file that has the layer."""

    def __init__(self, files: Mapping[str, MomentsFile], part: str | None = None):
        self._files, self._part = files, part

    def __getitem__(self, name: str) -> torch.Tensor:
        file = self._files[name]
        return (getattr(file, self._part) if self._part else file)[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._files if self._part is None or name in getattr(self._files[name], self._part))

    def __len__(self) -> int:
        return sum(1 for _ in self)
