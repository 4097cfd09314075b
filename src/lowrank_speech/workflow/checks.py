"""Checks what a schema cannot: that names refer to something, and that settings go together.

Everything that can be known from the config alone is refused here, before the first job runs.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lowrank_speech.workflow.config import WISHES, Config, ConfigError, System, calibrated, systems, training
from lowrank_speech.workflow.schema import nearest

FEATURES = {"wav2vec2": ("conv", "waveform"), "w2v-bert": ("fbank", "waveform"), "whisper": ("logmel", "waveform")}
"""Family -> kinds of features that it eats."""

RECIPE = {"warmup": 0.1, "hold": 0.4, "precision": "fp32", "frozen_dtype": "fp32", "compile": False}
"""training/config.py's defaults of keys that go together with others; a test holds them against it."""

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")


def check(config: Config) -> None:
    """ConfigError on the first cross reference that leads nowhere or combination that cannot work."""
    for name in config.get("langs", ()):
        _check_lang(config, name)
    for name in config["bases"]:
        _check_base(config, name)
    for name in config["tasks"]:
        _check_task(config, name)
    for name in config["methods"]:
        _check_method(config, name)
    if "calibrate" in config:
        _known_split(config, "calibrate", config["calibrate"], "split")
    for section in ("bases", "tasks", "methods"):
        for name in config["systems"][section]:
            _known(f"systems.{section}", name, config[section])
    for system in systems(config):
        _check_system(config, system)


def _known(where: str, value: str, legal: Iterable[str], what: str = "") -> None:
    if value not in legal:
        shown = ", ".join(legal) or "nothing: none is defined"
        raise ConfigError(f"{where}: {value!r} is none of {what}{shown}{nearest(value, legal)}")


def _known_split(config: Config, where: str, section: Mapping[str, Any], key: str) -> None:
    """``section[key]`` must be a split of ``section["corpus"]``."""
    corpus = section["corpus"]
    _known(f"{where}.corpus", corpus, config["corpora"])
    _known(f"{where}.{key}", section[key], config["corpora"][corpus]["splits"], f"the splits of corpora.{corpus}: ")


def _check_lang(config: Config, name: str) -> None:
    lang, where = config["langs"][name], f"langs.{name}"
    for corpus in lang.get("corpora", ()):
        _known(f"{where}.corpora", corpus, config["corpora"])
        for split in lang["splits"]:
            _known_split(config, where, {"corpus": corpus, "splits": split}, "splits")
            for task_name, task in config["tasks"].items():
                if task["corpus"] == corpus and split in (task["dev"], task["test"]):
                    role = "test" if split == task["test"] else "dev"
                    raise ConfigError(
                        f"{where}.splits: {split!r} is the {role} split of tasks.{task_name}; token sets are made from "
                        f"training transcripts only: take it out"
                    )


def _check_base(config: Config, name: str) -> None:
    base, where = config["bases"][name], f"bases.{name}"
    family = base["family"]
    if base["features"] not in FEATURES[family]:
        raise ConfigError(
            f"{where}.features: {base['features']!r} does not fit the family {family}; it takes "
            f"{' or '.join(FEATURES[family])}"
        )
    if base["features"] == "waveform" and base.get("features_dtype"):
        raise ConfigError(
            f"{where}.features_dtype: waveforms are not stored; remove the key or take features: {FEATURES[family][0]}"
        )
    if base.get("lang") is not None:
        _known(f"{where}.lang", base["lang"], config.get("langs", {}))
    own = _lang_kind(config, name) == "whisper"
    if own and family != "whisper":
        raise ConfigError(
            f"{where}.lang: {base['lang']!r} is Whisper's own tokenizer; a {family} model needs kind char or "
            f"sentencepiece"
        )
    if base.get("window") is not None:
        _check_window(base, where)
    if base["source"] != "scratch":
        for key in ("model", "front_end", "pretrain"):
            if base.get(key) is not None:
                raise ConfigError(f"{where}.{key}: this belongs to source: scratch, not to {base['source']!r}")
        return
    if family == "w2v-bert":
        raise ConfigError(f"{where}.source: scratch makes wav2vec2 and whisper; w2v-bert needs a hub name or a folder")
    for key in ("lang", "pretrain"):
        if base.get(key) is None:
            raise ConfigError(f"{where}.{key}: source: scratch needs it")
    if own:
        raise ConfigError(f"{where}.lang: a base from scratch needs a token set of kind char or sentencepiece")
    pretrain = base["pretrain"]
    for key in ("train", "dev"):
        _known_split(config, f"{where}.pretrain", pretrain, key)
    _check_apart(f"{where}.pretrain", pretrain, ("train", "dev"))
    _check_recipe(pretrain, f"{where}.pretrain", f"the pretraining of {name}")
    if pretrain.get("factor_sgd") is not None:
        raise ConfigError(
            f"{where}.pretrain.factor_sgd: a base from scratch has no factors; set it for methods that factorise"
        )
    for task_name, task in config["tasks"].items():
        if task["corpus"] == pretrain["corpus"] and pretrain["train"] == task["test"]:
            raise ConfigError(
                f"{where}.pretrain.train: {pretrain['train']!r} is the test split of tasks.{task_name}: its results "
                f"would mean nothing; take another one"
            )


def _check_window(base: Mapping[str, Any], where: str) -> None:
    family, seconds = base["family"], base["window"]
    if family != "whisper":
        raise ConfigError(f"{where}.window: {family} models have none, they take utterances as they are: remove it")
    if base["source"] == "scratch":
        raise ConfigError(f"{where}.window: for source: scratch set model.max_source_positions (20 ms each) instead")
    if not (0 < seconds < 1e6 and abs(seconds * 50 - round(seconds * 50)) < 1e-6):
        raise ConfigError(f"{where}.window: {seconds!r} is no multiple of 0.02 s, Whisper's step")


def _lang_kind(config: Config, base: str) -> str | None:
    lang = config["bases"][base].get("lang")
    return None if lang is None else config["langs"][lang]["kind"]


def _check_task(config: Config, name: str) -> None:
    task, where = config["tasks"][name], f"tasks.{name}"
    for key in ("train", "dev", "test"):
        _known_split(config, where, task, key)
    _check_apart(where, task, ("train", "dev", "test"))
    if task["type"] == "asr" and task.get("languages"):
        raise ConfigError(f"{where}.languages: classes belong to type: lid; remove the key")


def _check_apart(where: str, section: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for i, key in enumerate(keys):
        for other in keys[:i]:
            if section[key] == section[other]:
                raise ConfigError(f"{where}.{key}: {section[key]!r} is the {other} split already; take another one")


def _check_method(config: Config, name: str) -> None:
    method, where = config["methods"][name], f"methods.{name}"
    if method["adapt"] == "lora" and method.get("lora") is None:
        raise ConfigError(f"{where}.lora: adapt: lora needs it, for example {{rank: 8, alpha: 16}}")
    if method["adapt"] != "lora" and method.get("lora") is not None:
        raise ConfigError(f"{where}.lora: it has no effect with adapt: {method['adapt']}; remove it or set adapt: lora")
    factorise = method.get("factorise")
    if method.get("constraint") is not None and (factorise is None or method["adapt"] != "full"):
        raise ConfigError(
            f"{where}.constraint: it holds the first factors semi-orthogonal in full fine-tuning: it needs `factorise` "
            f"and adapt: full"
        )
    if factorise is None:
        return
    given = [key for key in WISHES if factorise.get(key) is not None]
    if len(given) != 1:
        raise ConfigError(
            f"{where}.factorise: give exactly one of {', '.join(WISHES)}; given: {', '.join(given) or 'none'}"
        )
    if factorise.get("allocate") and given == ["energy"]:
        raise ConfigError(
            f"{where}.factorise.allocate: energy decides the rank layer by layer; it does not go with that"
        )
    if calibrated(method) and "calibrate" not in config:
        raise ConfigError(
            f"{where}.factorise.init: activation needs the section `calibrate`, for example "
            f"calibrate: {{corpus: {next(iter(config['corpora']))}, split: train}}"
        )


def _check_system(config: Config, system: System) -> None:
    base, task = config["bases"][system.base], config["tasks"][system.task]
    if task["type"] == "asr" and base.get("lang") is None:
        raise ConfigError(
            f"bases.{system.base}.lang: the task {system.task} recognises speech and needs a token set; name one of "
            f"{', '.join(config.get('langs', {})) or 'langs (none is defined)'}"
        )
    recipe = training(config, system)
    _check_recipe(recipe, "training", f"the system {'/'.join(system)}")
    _check_factor_sgd(config, system, recipe)
    changed = [key for key in ("speed", "noise", "reverberation") if recipe.get(key) not in (None, [])]
    if changed and base["features"] != "waveform":
        raise ConfigError(
            f"training.{changed[0]}: it changes samples, and the system {'/'.join(system)} reads stored features "
            f"({base['features']}); set bases.{system.base}.features: waveform, or leave it out"
        )
    if recipe.get("train_front_end") and (base["features"] != "waveform" or base["family"] != "wav2vec2"):
        raise ConfigError(
            f"training.train_front_end: the system {'/'.join(system)} reads what a frozen front end gave, or has none; "
            f"set bases.{system.base}.features: waveform (the family wav2vec2 alone has such a front end)"
        )


def _check_recipe(recipe: Mapping[str, Any], where: str, whose: str) -> None:
    """What training/config.py would refuse of keys together, once everything before the training has run."""
    full = RECIPE | recipe

    def told(*keys: str) -> str:
        return " and ".join(f"{k}: {str(full[k]).lower()}{'' if k in recipe else ' (its default)'}" for k in keys)

    if full["warmup"] + full["hold"] > 1:
        raise ConfigError(
            f"{where}.{'warmup' if 'warmup' in recipe else 'hold'}: {whose} has {told('warmup', 'hold')}; they are "
            f"shares of all steps, at most 1 together"
        )
    if full["frozen_dtype"] not in ("fp32", full["precision"]):
        raise ConfigError(
            f"{where}.frozen_dtype: {whose} has {told('frozen_dtype', 'precision')}; frozen weights are held in fp32 "
            f"or in what is computed in: set precision: {full['frozen_dtype']}"
        )
    if full["precision"] == "fp16" and full.get("device") == "cpu":
        raise ConfigError(
            f"{where}.precision: {whose} has {told('precision', 'device')}; fp16 is for CUDA alone: take bf16 or fp32, "
            f"or device: cuda"
        )
    if full.get("compile_buckets") is not None and not full["compile"]:
        raise ConfigError(
            f"{where}.compile_buckets: {whose} has {told('compile_buckets', 'compile')}; set compile: true, or leave "
            f"compile_buckets out"
        )
    for section, key in (("noise", "snr"), ("reverberation", "rt60"), ("reverberation", "direct")):
        span = (recipe.get(section) or {}).get(key)
        if span is not None and span[0] > span[1]:
            raise ConfigError(f"{where}.{section}.{key}: {whose} has {span}; give the lowest and the highest value")
    noise = recipe.get("noise") or {}
    if noise.get("kinds") == [] and noise.get("folder") is None:
        raise ConfigError(
            f"{where}.noise.kinds: {whose} has neither kinds nor a folder; name one of white, pink, brown, hum"
        )


def _check_factor_sgd(config: Config, system: System, recipe: Mapping[str, Any]) -> None:
    """``factor_sgd`` needs factors that train. A base from a folder may have some already, which the stage sees."""
    if recipe.get("factor_sgd") is None:
        return
    method, source = config["methods"][system.method], config["bases"][system.base]["source"]
    if method["adapt"] != "full":
        why = f"with adapt: {method['adapt']} no factors train"
    elif method.get("factorise") is None and (source == "scratch" or _HUB_NAME.fullmatch(source)):
        why = f"methods.{system.method} does not factorise"
        if source != "scratch":
            why += f", and {source} is a name on the hub; if it is a folder, write ./{source}"
    else:
        return
    raise ConfigError(
        f"training.factor_sgd: the system {'/'.join(system)} has no factors for it ({why}); set it in the training of "
        f"methods with factorise and adapt: full, or methods.{system.method}.training.factor_sgd: null"
    )
