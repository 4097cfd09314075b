"""Read every section of a config with the class of its stage, so that rules about several keys are enforced before the
first job.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank_speech.backend import registry as backends
from lowrank_speech.corpora import registry as corpora
from lowrank_speech.decoding import registry as decoding
from lowrank_speech.decoding import tuning
from lowrank_speech.errors import UserError
from lowrank_speech.experiment.heads import check_heads
from lowrank_speech.experiment.outside import located
from lowrank_speech.lang.config import read as read_lang
from lowrank_speech.lang.graphs.settings import WITH_LEXICON
from lowrank_speech.lang.lm.config import LmSettings
from lowrank_speech.lowrank.constraint_settings import ConstraintSettings
from lowrank_speech.lowrank.lora_settings import LoraSettings
from lowrank_speech.lowrank.recipe import Factorise
from lowrank_speech.lowrank.truncate_settings import Progressive
from lowrank_speech.models.registry import FAMILIES
from lowrank_speech.scoring.options import ScoreOptions
from lowrank_speech.settings import read
from lowrank_speech.stages import report
from lowrank_speech.stages.task import Segment, Shared
from lowrank_speech.training.config import TrainConfig
from lowrank_speech.training.distil_settings import DistilSettings
from lowrank_speech.workflow.config import LMS, System, results, systems
from lowrank_speech.workflow.slices import Slices

METHOD_PARTS = {
    "factorise": Factorise,
    "constraint": ConstraintSettings,
    "lora": LoraSettings,
    "progressive": Progressive,
    "distil": DistilSettings,
}
"""The sections of a method, and their classes."""


def check(slices: Slices) -> None:
    """Raise a one-line ValueError if a class refuses its section. The schema has checked and resolved the config."""
    config = slices.config
    try:
        for name, section in config["corpora"].items():
            corpora.read(section, f"corpora.{name}")
        for name, section in config["langs"].items():
            own = {k: v for k, v in section.items() if k not in ("corpora", "splits")}
            read_lang(own, f"langs.{name}")
        for name, section in config["lms"].items():
            own = {k: v for k, v in section.items() if k not in ("lang", "corpora", "splits", "dev")}
            read(LmSettings, own, f"lms.{name}")
        for name, section in config["methods"].items():
            for part, cls in METHOD_PARTS.items():
                if section.get(part) is not None:
                    own = {k: v for k, v in section[part].items() if k != "untranscribed"}
                    read(cls, own, f"methods.{name}.{part}")
        for name, section in config["backends"].items():
            own = {k: v for k, v in section.items() if k not in ("decoder", "least")}
            backends.settings_of(own, f"backends.{name}")
        for name, section in config["tasks"].items():
            for part, cls in (("allow_shared", Shared), ("segment", Segment)):
                if section[part]:
                    read(cls, section[part], f"tasks.{name}.{part}")
        read(ScoreOptions, config["score"], "score")
        read(report.ReportConfig, config["report"], "report")
        check_heads(config)
        _check_jobs(slices)
        _check_decoders(slices)
        for name in config["systems"]["tasks"]:
            _check_languages(config, name)
    except UserError as error:
        raise ValueError(str(error)) from error


def _check_jobs(slices: Slices) -> None:
    """Check the recipes of the grid's bases and systems."""
    config, seen = slices.config, set()

    def once(cls: type, keys: Mapping[str, Any], where: str, whose: str) -> None:
        if (text := json.dumps([where, keys], sort_keys=True)) not in seen:
            seen.add(text)
            try:
                read(cls, keys, where)
            except UserError as error:
                raise UserError(f"{error} ({whose})") from error

    for name in config["systems"]["bases"]:
        if config["bases"][name]["source"] == "scratch":
            _check_tokens(config, name)
            found = slices.base(System(name, "", ""))
            where, whose = f"bases.{name}.pretrain", f"the pretraining of {name}"
            _check_device(where, found.cfg["pretrain"], found.runtime, whose)
            once(TrainConfig, found.cfg["pretrain"], where, whose)
    for system in systems(config):
        found = slices.train(system)
        if "training" not in found.cfg:
            continue  # the control mean-logmel has no recipe
        _check_device("training", found.cfg["training"], found.runtime, f"the system {'/'.join(system)}")
        once(TrainConfig, found.cfg["training"], "training", f"the system {'/'.join(system)}")


def _check_decoders(slices: Slices) -> None:
    """Check the decoders of the grid, the values that are tried for them, and the language models that they name."""
    seen = set()
    for result in results(slices.config, slices.schema):
        decoder, of = slices.decode(result).cfg["decoder"], slices.model_task(result)
        tune, where = slices.tunes(result), f"decoders.{result.decoder}"
        if (where, of) in seen:
            continue
        seen.add((where, of))
        cls = decoding.module(decoder["kind"], of).Settings
        read(cls, decoder, where)
        for _ in tuning.grid(cls, decoder, tune, where) if tune else ():
            pass
        if "graph" in slices.resources(result):
            _check_units(slices.config["lms"], decoder, where)


def _check_units(lms: Mapping[str, Any], decoder: Mapping[str, Any], where: str) -> None:
    """Refuse an n-gram in a graph, or for rescoring, over other units than the graph's."""
    words = decoder["graph"] in WITH_LEXICON
    for key in LMS:
        unit = lms[decoder[key]]["unit"] if decoder.get(key) else None
        if unit is not None and words != (unit == "word"):
            raise UserError(
                f"{where}.{key}: {decoder[key]!r} is over {unit}s, but the graph ({decoder['graph']}) is over "
                f"{'words' if words else 'tokens'}; name another model, or set graph: {'hg' if words else 'hlg'}"
            )


def _check_tokens(config: Mapping[str, Any], name: str) -> None:
    """Refuse a token set without a decoder's special symbols for a base from scratch that has a decoder."""
    base = config["bases"][name]
    lang = config["langs"][base["lang"]]
    if FAMILIES[base["family"]].recognises == "seq2seq" and lang["for"] != "seq2seq":
        raise UserError(
            f"bases.{name}.lang: {base['lang']!r} is for {lang['for']}, but {base['family']} has a decoder; set "
            f"langs.{base['lang']}.for: seq2seq, or name another token set"
        )


def _check_languages(config: Mapping[str, Any], name: str) -> None:
    """Raise UserError if, by the tables on the disk, a language recognition task would train on one language."""
    task = config["tasks"][name]
    section = config["corpora"][task["corpus"]]
    source = section["splits"][task["train"]].get("source")
    if task["type"] != "lid" or section["kind"] != "kaldi" or section["language"] is None:
        return
    try:
        _, root = located(section, "corpora")
    except UserError:
        return  # it is not here; see lost_corpora
    folder = Path(root, source)
    if folder.is_dir() and not (folder / "utt2lang").is_file():
        raise UserError(
            f"tasks.{name}.train: {folder} has no utt2lang, so all its utterances are in {section['language']!r}; "
            f"language recognition needs two languages"
        )


def _check_device(where: str, recipe: Mapping[str, Any], runtime: Mapping[str, Any], whose: str) -> None:
    if recipe["precision"] == "fp16" and runtime["device"] == "cpu":
        raise UserError(
            f"{where}: precision is fp16, but device is cpu; fp16 needs CUDA: set precision: bf16 or fp32, or device: "
            f"cuda ({whose})"
        )
