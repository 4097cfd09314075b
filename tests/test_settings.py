"""Settings classes: valid values, invalid values and their messages."""

import dataclasses
import math
import pickle

import pytest

from lowrank_speech.errors import UserError
from lowrank_speech.settings import REQUIRED, Count, Positive, Range, Share, key, read, resolved, settings


@settings
class Noise:
    snr: Range = key((5.0, 20.0), "lowest and highest signal-to-noise ratio, dB")
    probability: Share = key(0.5, "share of the utterances that get noise")


@settings
class Recipe:
    epochs: Count = key(REQUIRED, "passes over the training set")
    lr: Positive = key(1e-4, "peak learning rate")
    warmup: Share = key(0.1, "share of the steps")
    hold: Share = key(0.4, "share of the steps")
    noise: Noise | None = key(None, "noise added to the samples")
    layers: str | tuple[str, ...] = key("ffn", "which layers")
    for_: str = key("ctc", "kind of model", alias="for")

    def __post_init__(self) -> None:
        if self.warmup + self.hold > 1:
            raise ValueError(f"warmup is {self.warmup}, hold {self.hold}; together they must be at most 1")


def test_values_and_defaults():
    found = read(Recipe, {"epochs": 3, "lr": 1, "layers": ["a", "b"], "noise": {"snr": [1, 2]}, "for": "seq2seq"})
    assert found == Recipe(epochs=3, lr=1.0, layers=("a", "b"), noise=Noise(snr=(1.0, 2.0)), for_="seq2seq")
    assert resolved(read(Recipe, {"epochs": 3})) == {
        "epochs": 3, "lr": 1e-4, "warmup": 0.1, "hold": 0.4, "noise": None, "layers": "ffn", "for": "ctc",
    }  # fmt: skip
    assert read(Recipe, resolved(found)) == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": 1, "lrr": 2}, "train: unknown key 'lrr' (did you mean 'lr'?); known keys: epochs, for, hold, "),
        (
            {"epochs": 1, "noise": {"snrr": 2}},
            "train.noise: unknown key 'snrr' (did you mean 'snr'?); known keys: ",
        ),
        ({}, "train: the key 'epochs' is missing"),
        ({"epochs": 0}, "train.epochs is 0; it must be at least 1"),
        ({"epochs": 1, "lr": 0}, "train.lr is 0; it must be above 0"),
        ({"epochs": 2.0}, "train.epochs: expected a whole number, got 2.0"),
        ({"epochs": True}, "train.epochs: expected a whole number, got True"),
        ({"epochs": 1, "lr": "1e-4"}, "train.lr: expected a number, got '1e-4'"),
        ({"epochs": 1, "layers": 5}, "train.layers: expected text, got 5"),
        ({"epochs": 1, "noise": {"snr": [9, 1]}}, "train.noise.snr is [9.0, 1.0]; give the lowest value first"),
        ({"epochs": 1, "noise": 5}, "train.noise: expected a mapping, got 5"),
        ({"epochs": 1, "hold": 1}, "train: warmup is 0.1, hold 1.0; together they must be at most 1"),
    ],
)
def test_refusals_name_key_value_and_remedy(given, said):
    with pytest.raises(UserError) as refused:
        read(Recipe, given, "train")
    assert str(refused.value).startswith(said)
    assert "\n" not in str(refused.value)


def test_in_python_a_refusal_is_a_value_error_of_one_line():
    with pytest.raises(ValueError, match=r"^lr is nan; it must be finite$"):
        Recipe(epochs=1, lr=math.nan)
    with pytest.raises(ValueError, match=r"^warmup is 0.9, hold 0.4; together"):
        dataclasses.replace(Recipe(epochs=1), warmup=0.9)


def test_settings_are_frozen_compare_and_pickle():
    recipe = Recipe(epochs=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.lr = 1.0
    assert pickle.loads(pickle.dumps(recipe)) == recipe
