"""What the stages decode and tune share: a system, a decoder and cuts -> hypotheses."""

import argparse
from pathlib import Path
from typing import Any

from lowrank_speech.artefact import read_cost
from lowrank_speech.decoding import registry, resources
from lowrank_speech.decoding.base import Hypothesis, Runtime, Unusable
from lowrank_speech.errors import UserError
from lowrank_speech.settings import read
from lowrank_speech.stages import common
from lowrank_speech.stages.task import Cut, Task


def add_inputs(parser: argparse.ArgumentParser, cuts: str) -> None:
    """The options of the inputs; ``cuts`` describes which cuts are decoded."""
    parser.add_argument("--model", type=Path, help="model folder of the system")
    parser.add_argument("--emissions", type=Path, help="folder of the stage emissions, for decoders that read it")
    parser.add_argument("--cuts", required=True, type=Path, help=f"{cuts} with features, .jsonl.gz")
    parser.add_argument("--lang", type=Path, help="recognition: folder of the stage lang")
    for name in resources.NAMES:
        stage = resources.MADE_BY[name]
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=Path, help=f"for decoders that read it: folder of the stage {stage}"
        )


class Work:
    """Runs a decoder over cuts. ``stage`` names the running stage in messages; ``cut``: decode pieces of the cuts."""

    def __init__(
        self,
        stage: str,
        arguments: argparse.Namespace,
        task: Task,
        decoder: dict[str, Any],
        runtime: Runtime,
        cut: Cut | None = None,
    ):
        for flag in ("model", "emissions", "cuts"):
            if (path := getattr(arguments, flag)) is not None:
                common.existing(path, f"--{flag}")

        from lhotse import CutSet

        from lowrank_speech.decoding.sources import Clock
        from lowrank_speech.features.batches import piece, segment
        from lowrank_speech.features.store import load_cuts
        from lowrank_speech.lang.select import SetAside, long_enough, one_supervision

        kind = decoder.get("kind", registry.DEFAULT[task.type])
        self.stage, self.arguments = stage, arguments
        self.source = self._source(task.type, kind, runtime.device)
        self.module = registry.module(kind, self.source.task)
        self.settings = read(self.module.Settings, {"kind": kind, **decoder}, "decoder")
        given = {name: getattr(arguments, name) for name in resources.NAMES}
        self.source.resources = resources.load(given, self.settings, stage)
        self.set_aside, self.clock = SetAside(), Clock(self.source.device)
        cuts = load_cuts(arguments.cuts)
        if task.channel is not None:
            from lowrank_speech.features.channel import through

            cuts = CutSet(through(cuts, task.channel, arguments.cuts)).to_eager()
        if cut is None:
            cuts = segment(cuts, task.segment.seconds if task.segment else None)
        else:
            if cut.shorter == "set-aside":
                cuts = long_enough(cuts, cut.seconds, self.set_aside)
            cuts = (piece(one, cut.seconds, cut.seed if cut.place == "random" else None) for one in cuts)
        cuts = one_supervision(cuts, self.set_aside)
        self.cuts = list(self.source.usable(cuts, arguments.cuts, self.set_aside, self.settings.any_length))

    def _source(self, type: str, kind: str, device: str) -> Any:
        """What the decoder reads: the stored emissions, if they are given and it can read them, else the model."""
        from lowrank_speech.decoding.sources import Network, Stored

        model, emissions = self.arguments.model, self.arguments.emissions
        stored = Stored(emissions, device) if emissions is not None else None
        if stored is not None and registry.module(kind, stored.task).READS == "emissions":
            return stored
        if model is None:
            raise UserError(f"{self.stage}: the decoder {kind} needs the model; give its folder as --model")
        network = Network(model, device)
        if registry.TYPES.get(network.task) != type:
            wanted = {"asr": "recognition", "lid": "classification"}[type]
            raise UserError(
                f"{self.stage}: {network.folder} is a model for {network.task}, not for {wanted}; give another model"
            )
        if registry.module(kind, network.task).READS == "emissions":
            raise UserError(
                f"{self.stage}: the decoder {kind} reads a folder of the stage emissions; give it as --emissions"
            )
        return network

    def transcribed(self) -> tuple[Any, list[Any]]:
        """The token set, and the cuts that have a usable transcript. UserError: no such cut, or no token set."""
        from lowrank_speech.lang.load import Lang
        from lowrank_speech.lang.select import require, usable_text

        if self.arguments.lang is None:
            raise UserError(f"{self.stage}: a recognition task needs --lang")
        lang = Lang.load(common.existing(self.arguments.lang, "--lang"))
        cuts = list(usable_text(self.cuts, lang, self.set_aside))
        require(cuts, f"{self.stage}: {self.arguments.cuts}", self.set_aside)
        return lang, cuts

    def decoded(self, cuts: list[Any], lang: Any, settings: Any) -> list[tuple[Any, Hypothesis]]:
        """(cut, hypothesis) of every cut, sorted by id. Sets aside those that the decoder cannot take (``Unusable``).

        UserError: the decoder can take none.
        """
        from lowrank_speech.lang.select import require

        decoder = self.module.open(self.source, lang, settings)
        batches = self.source.batches(sorted(cuts, key=lambda cut: cut.id), settings.batch_seconds)
        found = []
        for batch, hypotheses in self.clock.over(batches, decoder):
            found += zip(batch["cuts"], hypotheses, strict=True)
        found.sort(key=lambda pair: pair[0].id)
        for cut, result in found:
            if isinstance(result, Unusable):
                self.set_aside.add(cut.id, result.reason, result.detail)
        usable = [(cut, result) for cut, result in found if not isinstance(result, Unusable)]
        require(usable, f"{self.stage}: {self.arguments.cuts}", self.set_aside)
        return usable

    def earlier_costs(self) -> dict[str, float | None]:
        """``frontend_rtf`` and ``network_rtf``: what earlier stages spent per second of speech; None: not known."""
        cuts = self.arguments.cuts
        features = cuts.with_name(cuts.name.removesuffix(".jsonl.gz") + ".json")
        found = {"frontend_rtf": read_cost(features).get("frontend_rtf"), "network_rtf": 0.0}
        if self.source.reads == "emissions":
            found["network_rtf"] = read_cost(self.arguments.emissions / "emissions.json").get("rtf")
        return found
