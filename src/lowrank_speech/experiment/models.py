"""Checks the models that an experiment makes from scratch, and their factorisations, before anything runs.

Imports torch and transformers, so the workflow calls it only for bases that have not been made yet.
"""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from lowrank_speech.errors import UserError

# The smallest token set: with more tokens, the layers are a smaller share of the model.
TOKENS = SimpleNamespace(size=8, sot=1, eot=2, transcribe=3, no_timestamps=4, language_ids={"en": 5})


def check_scratch(config: Mapping[str, Any], bases: Iterable[str]) -> None:
    """Build those of ``bases`` that have ``source: scratch``, and plan what the methods of the grid factorise.

    ``config`` is resolved. UserError: the keys of ``model`` do not make a model, or a factorisation does not fit it. A
    reduction is checked on a model with few tokens, so the stage may still find that it is out of reach, by a little.
    """
    methods = {name: config["methods"][name].get("factorise") for name in config["systems"]["methods"]}
    for base in bases:
        if config["bases"][base]["source"] == "scratch":
            _check(base, config["bases"][base], {name: keys for name, keys in methods.items() if keys})


def _check(base: str, section: Mapping[str, Any], factorisations: Mapping[str, Mapping[str, Any]]) -> None:
    import torch

    from lowrank_speech.lowrank.plan import plan_ranks
    from lowrank_speech.lowrank.recipe import Factorise
    from lowrank_speech.lowrank.select import shapes_of
    from lowrank_speech.models.layers import dense_layers
    from lowrank_speech.models.scratch import from_scratch
    from lowrank_speech.settings import read

    try:
        with torch.device("meta"):
            model = from_scratch(section["family"], section["model"], TOKENS, 0, "random")
    except UserError as error:
        raise UserError(str(error).replace("bases.*", f"bases.{base}")) from error
    except Exception as error:  # transformers' and torch's constructors raise anything
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"bases.{base}.model: these keys do not make a model ({said}); correct them") from error
    for method, keys in factorisations.items():
        where, recipe = f"methods.{method}.factorise", read(Factorise, keys, f"methods.{method}.factorise")
        try:
            chosen = dense_layers(model, recipe.layers)
            if recipe.energy is None:  # which depends on the weights
                exact = len(model.special_tokens()) + recipe.exact_rows
                plan_ranks(shapes_of(chosen, exact), model.parameters_total(), **recipe.ranks())
        except (UserError, ValueError) as error:
            raise UserError(f"{where}: {error} (the base {base})") from error
