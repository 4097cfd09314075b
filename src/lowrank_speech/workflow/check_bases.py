"""Check token sets and bases before the first job. See ``workflow.checks``."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lowrank_speech import published
from lowrank_speech.workflow.check_names import check_apart, known, known_split, roles_of
from lowrank_speech.workflow.config import (
    Config,
    ConfigError,
    Split,
    lang_splits,
)

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
POSITIONS = 50
"""Positions of Whisper's encoder in a second."""


def check_lang(config: Config, name: str) -> None:
    where, roles = f"langs.{name}", roles_of(config)
    for corpus in config["langs"][name].get("corpora", ()):
        known(f"{where}.corpora", corpus, config["corpora"])
    for split in lang_splits(config, name):
        known_split(config, where, split, "splits")
        if split in roles:
            raise ConfigError(
                f"{where}.splits: {split.split!r} is {roles[split]}; token sets may only read training transcripts: "
                f"remove it"
            )


def check_base(config: Config, name: str, families: Mapping[str, Any]) -> None:
    base, where = config["bases"][name], f"bases.{name}"
    family = base["family"]
    kinds = families[family]["features"]
    if base["features"] not in kinds:
        raise ConfigError(
            f"{where}.features: {base['features']!r} does not fit the family {family}; it takes {' or '.join(kinds)}"
        )
    if base["features"] == "waveform" and base.get("features_dtype"):
        raise ConfigError(
            f"{where}.features_dtype: waveforms are not stored; remove the key or use features: {kinds[0]}"
        )
    if base.get("lang") is not None:
        known(f"{where}.lang", base["lang"], config.get("langs", {}))
    own = lang_kind(config, name) == "whisper"
    if own and not families[family]["tokenizer"]:
        raise ConfigError(
            f"{where}.lang: {base['lang']!r} is Whisper's own tokenizer; a {family} model needs kind char or "
            f"sentencepiece"
        )
    if base.get("window") is not None:
        _check_window(base, where, families)
    if base["source"] == "scratch":
        _check_scratch(config, name, own, families)
        return
    for key in ("model", "front_end", "pretrain"):
        if base.get(key) is not None:
            raise ConfigError(f"{where}.{key} is only for source: scratch, but source is {base['source']!r}; remove it")
    _check_source(base, where)
    if families[family]["tokenizer"] and base.get("lang") is not None and not own and has_own_tokens(base["source"]):
        raise ConfigError(
            f"{where}.lang: {base['lang']!r} is of kind {lang_kind(config, name)}, but the published Whisper "
            f"{base['source']} has its own tokens; name a token set of kind whisper"
        )


def _check_scratch(config: Config, name: str, own: bool, families: Mapping[str, Any]) -> None:
    base, where = config["bases"][name], f"bases.{name}"
    if not families[base["family"]]["scratch"]:
        able = [family for family, facts in families.items() if facts["scratch"]]
        raise ConfigError(
            f"{where}.source: scratch supports only {' and '.join(able)}; {base['family']} needs a hub name or a folder"
        )
    for key in ("lang", "pretrain"):
        if base.get(key) is None:
            raise ConfigError(f"{where}.{key} is missing; source: scratch needs it")
    if own:
        raise ConfigError(f"{where}.lang: a base from scratch needs a token set of kind char or sentencepiece")
    pretrain, roles = base["pretrain"], roles_of(config)
    splits = {key: Split(pretrain["corpus"], pretrain[key]) for key in ("train", "dev")}
    for key, split in splits.items():
        known_split(config, f"{where}.pretrain", split, key)
        if roles.get(split, "").startswith("the test"):
            raise ConfigError(
                f"{where}.pretrain.{key}: {split.split!r} is {roles[split]}, whose results would be meaningless; "
                f"choose another split"
            )
    check_apart(f"{where}.pretrain", splits)
    if pretrain.get("factor_sgd") is not None:
        raise ConfigError(
            f"{where}.pretrain.factor_sgd: a base from scratch has no factors; set it for methods that factorise"
        )


def _check_window(base: Mapping[str, Any], where: str, families: Mapping[str, Any]) -> None:
    family, seconds = base["family"], base["window"]
    if not families[family]["window"]:
        raise ConfigError(f"{where}.window: {family} models take utterances of any length; remove the key")
    if base["source"] == "scratch":
        raise ConfigError(f"{where}.window: for source: scratch set model.max_source_positions (20 ms each) instead")
    if not (0 < seconds < 1e6 and abs(seconds * POSITIONS - round(seconds * POSITIONS)) < 1e-6):
        raise ConfigError(f"{where}.window: {seconds!r} is not a multiple of 0.02 s, Whisper's step")
    own = _model_config(base["source"]).get("max_source_positions")
    if own is None and base["source"].startswith("openai/whisper-"):
        own = 30 * POSITIONS
    if own is not None and seconds * POSITIONS > own:
        raise ConfigError(
            f"{where}.window: {seconds:g} s is longer than the window of {base['source']}, {own / POSITIONS:g} s; "
            f"lower it, or remove the key"
        )


def _check_source(base: Mapping[str, Any], where: str) -> None:
    source = base["source"]
    folder = published.local(source)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{where}.source: the folder {folder} has no config.json; name a model folder")
    elif published.is_name(source):
        if published.is_set():  # else it may be set only where the jobs run; see experiment.outside.lost_bases
            raise ConfigError(f"{where}.source: {published.missing(source)}")
    elif not _HUB_NAME.fullmatch(source):
        raise ConfigError(
            f"{where}.source: {source} is neither an existing folder nor a hub name (owner/name); correct it"
        )


def _model_config(source: str) -> Mapping[str, Any]:
    """The config.json of a local model folder; empty for a hub name, or if the file cannot be read."""
    try:
        return json.loads((published.local(source) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def has_own_tokens(source: str) -> bool:
    """Whether a Whisper has its own tokenizer: it comes from the hub, or from a folder of another program."""
    return not (_model_config(source).get("lowrank_speech") or {}).get("lang_sha256")


def lang_kind(config: Config, base: str) -> str | None:
    lang = config["bases"][base].get("lang")
    return None if lang is None else config["langs"][lang]["kind"]


def on_the_hub(source: str) -> bool:
    return bool(_HUB_NAME.fullmatch(source)) and not Path(source).is_dir()
