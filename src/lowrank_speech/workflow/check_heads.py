"""Check that heads, bases, losses and ways of adapting go together, before the first job. See ``workflow.checks``."""

from collections.abc import Mapping
from typing import Any

from lowrank_speech.workflow.config import Config, ConfigError, System, head, systems, training

FACTORS = ("rank", "fraction", "reduction")
"""Keys of a head that give it factors."""
TOKENS = "language-tokens"


def constrained(section: Mapping[str, Any] | None) -> bool:
    """Whether a head has matrices that the constraint keeps semi-orthogonal."""
    return has_factors(section) or (section or {}).get("classifier") == "orthonormal"


def has_factors(section: Mapping[str, Any] | None) -> bool:
    """Whether a head has factors."""
    return any((section or {}).get(key) is not None for key in FACTORS)


def check(config: Config, families: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first head that has no effect or cannot be trained."""
    for name, task in config["tasks"].items():
        if task["type"] != "lid" and task.get("head") is not None:
            raise ConfigError(f"tasks.{name}.head: only tasks of type lid have a classifier; remove it")
    spoken = [task for task in config["systems"]["tasks"] if config["tasks"][task]["type"] == "lid"]
    for name in config["systems"]["methods"]:
        if config["methods"][name].get("head") is not None and not spoken:
            raise ConfigError(
                f"methods.{name}.head: no task of the grid recognises languages, so it has no effect; remove it, or "
                f"add a task of type lid to systems.tasks"
            )
    for system in systems(config):
        if system.task in spoken:
            _check_system(config, system, families)


def _check_system(config: Config, system: System, families: Mapping[str, Any]) -> None:
    section, method, recipe = head(config, system), config["methods"][system.method], training(config, system)
    own = method.get("head") is not None
    where, name = f"methods.{system.method}.head" if own else f"tasks.{system.task}.head", "/".join(system)
    kind = (section or {}).get("kind", "pooled")
    if recipe.get("loss") == "aam" and (section or {}).get("classifier") != "cosine":
        raise ConfigError(
            f"training.loss: aam needs a head with classifier: cosine, but the head of the system {name} is {kind} "
            f"with another output layer; set {where}: {{kind: ecapa, classifier: cosine}}, or remove the loss"
        )
    if (section or {}).get("layers") == "weighted" and recipe.get("compile"):
        raise ConfigError(
            f"{where}.layers: weighted reads the states within the encoder, which compiled layers do not give; set "
            f"training.compile: false for the system {name}"
        )
    if kind != TOKENS:
        return
    family = config["bases"][system.base]["family"]
    if families[family]["recognises_by"] != "seq2seq":
        raise ConfigError(
            f"{where}: {TOKENS} are those of Whisper's decoder, but bases.{system.base} is a {family} model; leave it "
            f"out of the grid, or choose another head"
        )
    if method["adapt"] == "head":
        raise ConfigError(
            f"{where}: {TOKENS} has no weights of its own, so methods.{system.method} with adapt: head would train "
            f"nothing; set adapt: none, full or lora"
        )
