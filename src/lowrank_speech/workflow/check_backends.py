"""Check back ends before the first job. See ``workflow.checks``."""

from lowrank_speech.workflow.check_names import known
from lowrank_speech.workflow.config import (
    DEFAULT_DECODERS,
    Config,
    ConfigError,
    backend_decoder,
    backends,
    decoders,
    fused,
    head,
    systems,
)

TOKENS = "language-tokens"
EMBEDDINGS = "embeddings"


def check(config: Config) -> None:
    """Raise ConfigError for the first back end that does not exist, or cannot read what it should."""
    defined = config.get("backends") or {}
    for name in config["tasks"]:
        own = config["tasks"][name].get("backends")
        if own and config["tasks"][name]["type"] != "lid":
            raise ConfigError(f"tasks.{name}.backends: only tasks of type lid have back ends; remove it")
        for backend in own or ():
            known(f"tasks.{name}.backends", backend, defined)
    taken = {*DEFAULT_DECODERS.values(), *(config.get("decoders") or {})}
    if twice := sorted(taken & set(defined)):
        raise ConfigError(
            f"backends.{twice[0]}: a decoder has this name, and results would have the same folder; rename the back end"
        )
    for task in config["systems"]["tasks"]:
        for backend in backends(config, task):
            _check(config, task, backend)


def _check(config: Config, task: str, backend: str) -> None:
    section, where, grid = config["backends"][backend], f"backends.{backend}", config["systems"]
    decoder = backend_decoder(config, task, backend)
    known(f"{where}.decoder", decoder, decoders(config, task), f"the decoders of tasks.{task}: ")
    for name in section.get("systems") or ():
        base, _, method = name.rpartition("/")
        if base:
            known(f"{where}.systems", base, grid["bases"], "systems.bases: ")
        known(f"{where}.systems", method, grid["methods"], "systems.methods: ")
    kind = ((config.get("decoders") or {}).get(decoder) or {}).get("kind", decoder)
    if section.get("on") != EMBEDDINGS:
        return
    if kind != EMBEDDINGS:
        raise ConfigError(
            f"{where}.decoder: {decoder!r} is of kind {kind}, which writes no embeddings; define a decoder "
            f"{{kind: embeddings}}, name it in tasks.{task}.decoders, and here"
        )
    for system in systems(config):
        if system.task == task:
            for one in fused(config, system, backend):
                if ((head(config, one) or {}).get("kind")) == TOKENS:
                    raise ConfigError(
                        f"{where}.on: the head {TOKENS} of methods.{one.method} has no embeddings; use on: scores"
                    )
