"""``--help`` of the stages: every key of the slice, with its type and default."""

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Literal

import pytest

from lowrank_speech import stages
from lowrank_speech.stages import common
from lowrank_speech.stages.keys import keys_of
from lowrank_speech.training.config import TrainConfig

STAGES = sorted(
    module.name for module in pkgutil.iter_modules(stages.__path__) if module.name not in ("common", "keys")
)


@dataclass(frozen=True)
class Inner:
    depth: int = 3


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    sizes: tuple[float, ...] = ()
    inner: Inner | None = None


def test_keys_have_their_path_type_and_default():
    assert dict(keys_of(Outer)) == {
        "name": "text; required",
        "kind": 'a | b; default: "a"',
        "sizes": "list of number; default: []",
        "inner": "section; default: null",
        "inner.depth": "whole number; default: 3",
    }


@pytest.mark.parametrize("name", STAGES)
def test_help_lists_the_keys_of_the_slice(name, capsys):
    stage = importlib.import_module(f"lowrank_speech.stages.{name}")
    with pytest.raises(SystemExit) as end:
        stage.main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert {line.split()[0] for line in shown.partition("keys of --cfg:")[2].splitlines() if line} == {
        path for path, _ in keys_of(stage.Config)
    }


def test_keys_of_a_training_can_be_given_as_they_are_listed():
    defaults = {path: what for path, what in keys_of(TrainConfig) if "." not in path}
    assert defaults["batch_seconds"] == f"number; default: {TrainConfig().batch_seconds}"
    assert common.from_json(TrainConfig, {"epochs": 10}) == TrainConfig()
