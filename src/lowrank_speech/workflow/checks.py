"""Check what a schema cannot: that names exist, that settings go together, that test data do not leak.

These checks run before the first job. They look at the config, and at the local folders that it names. They take the
config as it was written; ``experiment.check`` then reads every section with the class of its stage.
"""

from collections.abc import Mapping
from typing import Any

from lowrank_speech.workflow import check_backends, check_heads
from lowrank_speech.workflow.check_bases import check_base, check_lang
from lowrank_speech.workflow.check_decoding import check_decoders, check_lm, check_resources
from lowrank_speech.workflow.check_methods import check_loss, check_method, check_system
from lowrank_speech.workflow.check_names import check_apart, known, known_split, roles_of
from lowrank_speech.workflow.config import (
    DEFAULT_DECODERS,
    DEV,
    Config,
    ConfigError,
    Split,
    System,
    decoders,
    model_task,
    systems,
    task_splits,
    tests,
    training,
)
from lowrank_speech.workflow.schema import Schema

ONE_LANGUAGE = ("digits", "atco2", "folder", "librispeech", "long")
"""Kinds of corpus in which all utterances have one language."""


def check(config: Config, schema: Schema) -> None:
    """Raise ConfigError for the first unknown name or invalid combination of settings."""
    for name in config.get("langs", ()):
        check_lang(config, name)
    for name in config.get("lms", ()):
        check_lm(config, name)
    for name in config["bases"]:
        check_base(config, name, schema["families"])
        if (recipe := config["bases"][name].get("pretrain")) is not None:
            where, task = f"bases.{name}.pretrain", schema["families"][config["bases"][name]["family"]]["recognises_by"]
            check_loss(where, f"the base {name}", recipe, task, schema)
    for name in config["tasks"]:
        _check_task(config, name, schema)
    for name in config["methods"]:
        check_method(config, name)
    if "calibrate" in config:
        _check_calibrate(config)
    for section in ("bases", "tasks", "methods"):
        for name in config["systems"][section]:
            known(f"systems.{section}", name, config[section])
    against = (config.get("report") or {}).get("against")
    if against is not None:
        known("report.against", against, config["systems"]["methods"], "systems.methods: ")
    for system in systems(config):
        _check_channel(config, system)
        check_system(config, system, schema["families"])
        check_decoders(config, system, schema)
        task = model_task(config, schema, system.base, system.task)
        check_loss("training", f"the system {'/'.join(system)}", training(config, system), task, schema)
    check_heads.check(config, schema["families"])
    check_backends.check(config)


def _check_task(config: Config, name: str, schema: Schema) -> None:
    task, where = config["tasks"][name], f"tasks.{name}"
    for key, split in task_splits(config, name).items():
        known_split(config, where, split, key)
    form = isinstance(task["test"], Mapping)
    for test, split in tests(config, name).items():
        known_split(config, f"{where}.test.{test}" if form else where, split, "split" if form else "test")
    check_apart(where, task_splits(config, name))
    for test, split in tests(config, name).items():
        at = f"{where}.test.{test}" if form else f"{where}.test"
        for key, other in task_splits(config, name).items():
            if split == other:
                raise ConfigError(f"{at}: {split.split!r} is already the {key} split; choose another split")
        if form and test == DEV:
            raise ConfigError(f"{at}: the name dev is reserved for results on the dev split; rename the test set")
    if form:
        for test, of in task["test"].items():
            _check_piece(f"{where}.test.{test}", task["type"], of)
    if task["type"] == "asr":
        if task.get("channel") is not None:
            raise ConfigError(f"{where}.channel: only tasks of type lid take this key; remove it")
        if task.get("allow_shared"):
            raise ConfigError(f"{where}.allow_shared: only tasks of type lid refuse shared speakers; remove it")
        if task.get("languages"):
            raise ConfigError(f"{where}.languages: only tasks of type lid take this key; remove it")
        if any((task.get("segment") or {}).get(key) is not None for key in ("seconds", "crop")):
            raise ConfigError(
                f"{where}.segment: it would cut the audio, but not the transcript; only tasks of type lid take this key"
            )
    elif len(task.get("languages") or ("", "")) < 2:
        raise ConfigError(f"{where}.languages: {task['languages']} has only one language; name at least two")
    else:
        _check_spoken(config, name)
    defined = {**{decoder: {} for decoder in DEFAULT_DECODERS.values()}, **config.get("decoders", {})}
    for decoder in decoders(config, name):
        known(f"{where}.decoders", decoder, defined)
        kind = defined[decoder].get("kind", decoder)
        if task["type"] not in schema["decoders"][kind]["types"]:
            fit = [n for n, d in defined.items() if task["type"] in schema["decoders"][d.get("kind", n)]["types"]]
            raise ConfigError(
                f"{where}.decoders: {decoder!r} is of kind {kind}, which does not decode tasks of type {task['type']}; "
                f"{'expected one of: ' + ', '.join(fit) if fit else 'define another one under decoders'}"
            )
        check_resources(config, decoder)


def _check_channel(config: Config, system: System) -> None:
    """Refuse a channel for a base whose features are stored: it changes samples."""
    channel, features = (config["tasks"][system.task].get("channel"), config["bases"][system.base]["features"])
    if channel is not None and features != "waveform":
        raise ConfigError(
            f"tasks.{system.task}.channel: {channel} changes samples, but bases.{system.base} has stored features "
            f"({features}); set bases.{system.base}.features: waveform, or remove the channel"
        )


def _check_piece(where: str, kind: str, test: Mapping[str, Any]) -> None:
    """Refuse pieces of utterances in recognition, and keys of pieces without a length."""
    if test.get("seconds") is None:
        if key := next((key for key in ("place", "shorter") if key in test), None):
            raise ConfigError(f"{where}.{key}: it has no effect without `seconds`; add the length, or remove {key}")
    elif kind == "asr":
        raise ConfigError(
            f"{where}.seconds: it would cut the audio, but not the transcript; only tasks of type lid take this key"
        )


def _check_spoken(config: Config, name: str) -> None:
    """Refuse corpora for language recognition that have only one language according to the config."""
    task = config["tasks"][name]
    corpus = config["corpora"][task["corpus"]]
    given = corpus.get("languages") or ()
    if len(given) == 1:
        raise ConfigError(
            f"tasks.{name}.corpus: {task['corpus']} has one language, {next(iter(given))}; language recognition needs "
            f"two or more"
        )
    if corpus["kind"] in ONE_LANGUAGE:
        raise ConfigError(f"tasks.{name}.corpus: {task['corpus']} has one language; language recognition needs two")


def _check_calibrate(config: Config) -> None:
    section = config["calibrate"]
    split = Split(section["corpus"], section["split"])
    known_split(config, "calibrate", split, "split")
    roles = roles_of(config)
    if roles.get(split, "").startswith("the test"):
        raise ConfigError(
            f"calibrate.split: {split.split!r} is {roles[split]}; factors must not be fitted to test data: choose a "
            f"training split"
        )
