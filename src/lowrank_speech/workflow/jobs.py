"""The jobs of an experiment and what each one waits for, without Snakemake: for ``status`` and ``plan``.

The same graph as in ``workflow/rules``, with manifests as nodes; a test compares both. Standard library only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from lowrank_speech.workflow.config import (
    DEV,
    MEAN_LOGMEL,
    Split,
    System,
    backend_decoder,
    calibrate_key,
    calibrated,
    calibrated_results,
    factorise_key,
    fused,
    lang_splits,
    lm_dev,
    lm_splits,
    overlaps,
    results,
    splits_used,
    start_share,
    systems,
    task_splits,
    teacher,
    untranscribed,
)
from lowrank_speech.workflow.paths import Layout
from lowrank_speech.workflow.slices import Slices


@dataclass(frozen=True)
class Job:
    """One job: its stage, its wildcards in the order of the path, the manifest that it writes, its log."""

    stage: str
    names: tuple[tuple[str, str], ...]
    manifest: str
    log: str
    needs: tuple[str, ...] = field(default=(), compare=False)
    """Manifests that it waits for."""

    @property
    def wildcards(self) -> Any:
        """An object with the wildcards as attributes, as ``Slices`` takes it."""
        return SimpleNamespace(**dict(self.names))

    @property
    def what(self) -> str:
        """The stage and the names in the path, such as ``train wav2vec2/asr/full``."""
        return " ".join(filter(None, (self.stage, "/".join(value for _, value in self.names))))


def jobs(slices: Slices, layout: Layout) -> list[Job]:
    """All jobs that the report needs, each after those that it waits for."""
    graph, found = _Graph(slices, layout), {}

    def visit(job: Job) -> str:
        if job.manifest not in found:
            needs = tuple(dict.fromkeys(visit(other) for other in graph.needs(job)))
            found[job.manifest] = Job(job.stage, job.names, job.manifest, job.log, needs)
        return job.manifest

    visit(graph.job("report"))
    return list(found.values())


class _Graph:
    def __init__(self, slices: Slices, layout: Layout):
        self.slices, self.config, self.layout = slices, slices.config, layout

    def job(self, stage: str, *values: str) -> Job:
        """The job of a stage with the values of its wildcards, in the order of its path."""
        split = values[-1] if stage in ("corpus", "features") else None
        folder = getattr(self.layout, stage)(*(values[:-1] if split else values))
        names = tuple(zip(WILDCARDS[stage], values, strict=True))
        return Job(stage, names, f"{folder}/{split or stage}.json", self.layout.log(folder, split or stage))

    def needs(self, job: Job) -> Iterator[Job]:
        yield from getattr(self, f"_{job.stage}")(job.wildcards)

    # -- what each stage waits for: the inputs of its rule -------------------------------------------------------------

    def _corpus(self, _: Any) -> Iterator[Job]:
        return iter(())

    def _overlap(self, names: Any) -> Iterator[Job]:
        for splits in overlaps(self.config, names.task).values():
            yield from self._speech(splits)

    def _lang(self, names: Any) -> Iterator[Job]:
        yield from self._speech(lang_splits(self.config, names.lang))

    def _lm(self, names: Any) -> Iterator[Job]:
        yield self.job("lang", self.config["lms"][names.lm]["lang"])
        yield from self._speech([*lm_splits(self.config, names.lm), *lm_dev(self.config, names.lm)])

    def _graph(self, names: Any) -> Iterator[Job]:
        yield self.job("lang", names.lang)
        if named := self.slices.graph(names).cfg["lm"]:
            yield self.job("lm", named)

    def _base(self, names: Any) -> Iterator[Job]:
        base = self.config["bases"][names.base]
        if pretrain := base.get("pretrain"):
            yield from self._speech(Split(pretrain["corpus"], pretrain[key]) for key in ("train", "dev"))
            yield self.job("lang", base["lang"])

    def _features(self, names: Any) -> Iterator[Job]:
        yield self.job("corpus", names.corpus, names.split)
        if self.config["bases"][names.base]["features"] != "waveform":
            yield self.job("base", names.base)

    def _calibrate(self, names: Any) -> Iterator[Job]:
        yield self.job("base", names.base)
        yield self._calibration_features(names.base)

    def _factorise(self, names: Any) -> Iterator[Job]:
        methods = self.config["methods"].values()
        method = next(m for m in methods if m.get("factorise") and _low_rank(m) == names.factorisation)
        yield self.job("base", names.base)
        if calibrated(method):
            yield self.job("calibrate", names.base, calibrate_key(method["factorise"]))
        if self.slices.tries(method["factorise"]):
            yield self._calibration_features(names.base)

    def _train(self, names: Any) -> Iterator[Job]:
        system = System(names.base, names.task, names.method)
        method = self.config["methods"][system.method]
        yield self._start(system)
        splits = [*task_splits(self.config, system.task).values(), *untranscribed(self.config, system)]
        yield from (self._heard(system, split) for split in splits)
        yield from self._tokens(system)
        if method.get("distil") is not None:
            other = teacher(self.config, system)
            yield self.job("base", system.base) if other is None else self.job("train", *other)
        if start_share(method) is not None and calibrated(method):
            yield self.job("calibrate", system.base, calibrate_key(method["factorise"]))

    def _emissions(self, names: Any) -> Iterator[Job]:
        yield self.job("train", names.base, names.task, names.method)
        yield self._tested(names)

    def _tune(self, names: Any) -> Iterator[Job]:
        dev = SimpleNamespace(**vars(names), test=DEV)
        yield from self._decoding(dev)

    def _decode(self, names: Any) -> Iterator[Job]:
        yield from self._decoding(names)
        if self.slices.tunes(names):
            yield self.job("tune", names.base, names.task, names.method, names.decoder)

    def _backend(self, names: Any) -> Iterator[Job]:
        yield from self._fused(names, DEV)

    def _apply(self, names: Any) -> Iterator[Job]:
        yield self.job("backend", names.base, names.task, names.method, names.backend)
        yield from self._fused(names, names.test)

    def _score(self, names: Any) -> Iterator[Job]:
        stage = "apply" if names.decoder in self.config["backends"] else "decode"
        yield self.job(stage, names.base, names.task, names.method, names.decoder, names.test)

    def _report(self, _: Any) -> Iterator[Job]:
        config = self.config
        yield from self._speech(splits_used(config))
        yield from (self.job("overlap", task) for task in config["systems"]["tasks"])
        for system in systems(config):
            yield self.job("base", system.base)
            yield self._start(system)
            yield self.job("train", *system)
        for result in results(config, self.slices.schema):
            yield self.job("decode", *result)
            yield self.job("score", *result)
        for result in calibrated_results(config):
            yield self.job("backend", *result[:4])
            yield self.job("score", *result)

    # -- pieces --------------------------------------------------------------------------------------------------------

    def _speech(self, splits: Any) -> Iterator[Job]:
        return (self.job("corpus", *split) for split in splits)

    def _tokens(self, names: Any) -> Iterator[Job]:
        if self.config["tasks"][names.task]["type"] == "asr":
            yield self.job("lang", self.config["bases"][names.base]["lang"])

    def _start(self, system: System) -> Job:
        method = self.config["methods"][system.method]
        if method.get("factorise") is None:
            return self.job("base", system.base)
        return self.job("factorise", system.base, _low_rank(method))

    def _calibration_features(self, base: str) -> Job:
        section = self.config["calibrate"]
        return self.job("features", base, section["corpus"], section["split"])

    def _tested(self, names: Any) -> Job:
        return self._heard(names, self.slices.split(names))

    def _heard(self, names: Any, split: Split) -> Job:
        """What a system reads of a split: the features of its base, or samples (control)."""
        if self.config["methods"][names.method].get("control") == MEAN_LOGMEL:
            return self.job("corpus", *split)
        return self.job("features", names.base, *split)

    def _fused(self, names: Any, test: str) -> Iterator[Job]:
        """The decodings of the systems that a back end reads."""
        decoder = backend_decoder(self.config, names.task, names.backend)
        own = System(names.base, names.task, names.method)
        return (self.job("decode", *system, decoder, test) for system in fused(self.config, own, names.backend))

    def _decoding(self, names: Any) -> Iterator[Job]:
        yield self.job("train", names.base, names.task, names.method)
        yield self._tested(names)
        yield from self._tokens(names)
        yield from (self.job(*made) for made in self.slices.resources(names).values())
        if self.slices.reads_emissions(names):
            yield self.job("emissions", names.base, names.task, names.method, names.test)


def _low_rank(method: Any) -> str:
    return factorise_key(method["factorise"], start_share(method))


_SYSTEM = ("base", "task", "method")
WILDCARDS = {
    "corpus": ("corpus", "split"),
    "overlap": ("task",),
    "lang": ("lang",),
    "lm": ("lm",),
    "graph": ("lang", "graph"),
    "base": ("base",),
    "features": ("base", "corpus", "split"),
    "calibrate": ("base", "calibration"),
    "factorise": ("base", "factorisation"),
    "train": _SYSTEM,
    "emissions": (*_SYSTEM, "test"),
    "tune": (*_SYSTEM, "decoder"),
    "decode": (*_SYSTEM, "decoder", "test"),
    "backend": (*_SYSTEM, "backend"),
    "apply": (*_SYSTEM, "backend", "test"),
    "score": (*_SYSTEM, "decoder", "test"),
    "report": (),
}
"""Stage -> the wildcards in the path of its manifest."""
