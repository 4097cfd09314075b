"""``--help`` of the stages: every config key with its type, default and meaning."""

import importlib
import pkgutil
from typing import Literal

import pytest

from lowrank_speech import stages
from lowrank_speech.schemas import Schemas
from lowrank_speech.settings import REQUIRED, key, settings
from lowrank_speech.stages import common
from lowrank_speech.stages.keys import keys_of
from lowrank_speech.training.config import TrainConfig

SHARED = ("common", "decoding", "keys", "task")
STAGES = sorted(module.name for module in pkgutil.iter_modules(stages.__path__) if module.name not in SHARED)


@settings
class Inner:
    depth: int = key(3, "how deep")


@settings
class Outer:
    name: str = key(REQUIRED, "what it is called")
    kind: Literal["a", "b"] = key("a", "which")
    sizes: tuple[float, ...] = key((), "how large")
    inner: Inner | None = key(None, "the inside")


def described(cls):
    return dict(keys_of(Schemas().of(cls)))


def test_keys_have_their_path_type_default_and_meaning():
    assert described(Outer) == {
        "name": "text; required: what it is called",
        "kind": 'a | b; default "a": which',
        "sizes": "list; default []: how large",
        "inner": "section: the inside",
        "inner.depth": "whole number; default 3: how deep",
    }


@pytest.mark.parametrize("name", STAGES)
def test_help_lists_the_keys_of_the_slice(name, capsys):
    stage = importlib.import_module(f"lowrank_speech.stages.{name}")
    with pytest.raises(SystemExit) as end:
        stage.main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    cfg, _, runtime = shown.partition("keys of --cfg:")[2].partition("keys of --runtime:")
    for listed, cls in ((cfg, stage.Config), (runtime, getattr(stage, "Runtime", common.NoRuntime))):
        assert {line.split()[0] for line in listed.splitlines() if line} == set(described(cls))


def test_every_key_of_every_stage_has_a_meaning():
    for name in STAGES:
        stage = importlib.import_module(f"lowrank_speech.stages.{name}")
        for cls in (stage.Config, getattr(stage, "Runtime", common.NoRuntime)):
            assert [path for path, said in described(cls).items() if ": " not in said] == []


def test_defaults_are_those_of_the_class():
    keys = described(TrainConfig)
    assert keys["batch_seconds"].startswith(f"number; default {TrainConfig().batch_seconds}: ")
