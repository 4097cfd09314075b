"""The slice of the config that each stage gets: exactly the keys that it uses, and so what makes it run again.

``slice_<stage>(config, wildcards)`` returns a mapping for ``--cfg``; ``wildcards`` has the attributes that name the
artefact (Snakemake's own, or anything alike). Values that the config does not give are left out: the stages'
dataclasses have the defaults.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lowrank_speech.workflow.config import (
    Config,
    System,
    calibrate_key,
    calibrated,
    corpora_used,
    factorise_key,
    systems,
    training,
)

# Keys that concern one type of task alone: the other type's systems do not run again for them.
ONLY = {
    "train": {"asr": ("ctc",), "lid": ()},
    "decode": {"asr": ("language", "max_new_tokens"), "lid": ("priors",)},
    "score": {
        "asr": ("characters", "confusions", "worst"),
        "lid": ("minimum", "eer", "eer_over", "p_target", "c_miss", "c_fa"),
    },
}

Slice = dict[str, Any]


def slice_corpus(config: Config, wildcards: Any) -> Slice:
    """Everything of the corpus; the seed draws its parts and its synthesis."""
    return {"seed": config["seed"], "corpus": config["corpora"][wildcards.corpus]}


def slice_lang(config: Config, wildcards: Any) -> Slice:
    """The token set's own keys; its corpora and splits come as files."""
    return {"seed": config["seed"], "lang": _without(config["langs"][wildcards.lang], ("corpora", "splits"))}


def slice_base(config: Config, wildcards: Any) -> Slice:
    """Source and window, and for `source: scratch` the model and the recipe of its pretraining."""
    base = config["bases"][wildcards.base]
    keys = ("family", "source", "revision", "window", "model", "front_end")
    result = {"seed": config["seed"], **_given(base, keys)}
    if base.get("pretrain") is not None:
        result["pretrain"] = _without(base["pretrain"], ("corpus", "train", "dev"))
    return result


def slice_features(config: Config, wildcards: Any) -> Slice:
    """What the base's family eats."""
    base = config["bases"][wildcards.base]
    return {"kind": base["features"], **({"dtype": base["features_dtype"]} if base.get("features_dtype") else {})}


def slice_calibrate(config: Config, wildcards: Any) -> Slice:
    """How to calibrate, and which layers: those of the factorise sections that share this calibration."""
    sections = (m["factorise"] for m in config["methods"].values() if calibrated(m))
    section = next(s for s in sections if calibrate_key(s) == wildcards.calibration)
    return {
        "seed": config["seed"],
        **_given(section, ("layers",)),
        **_without(config["calibrate"], ("corpus", "split")),
    }


def slice_factorise(config: Config, wildcards: Any) -> Slice:
    """The factorise section that the folder is named after."""
    sections = (m["factorise"] for m in config["methods"].values() if "factorise" in m)
    section = next(s for s in sections if factorise_key(s) == wildcards.factorisation)
    return {"seed": config["seed"], "factorise": section}


def slice_train(config: Config, wildcards: Any) -> Slice:
    """The task, the way of adapting, and the recipe with its overrides laid over each other."""
    system = _system(wildcards)
    method, kind = config["methods"][system.method], config["tasks"][system.task]["type"]
    return {
        "seed": method.get("seed", config["seed"]),
        "task": _task(config, system),
        **_given(method, ("adapt", "lora", "constraint")),
        "training": _concerning("train", kind, training(config, system)),
    }


def slice_decode(config: Config, wildcards: Any) -> Slice:
    """The task and how to decode it."""
    system = _system(wildcards)
    kind = config["tasks"][system.task]["type"]
    return {"task": _task(config, system), "decode": _concerning("decode", kind, config.get("decode", {}))}


def slice_score(config: Config, wildcards: Any) -> Slice:
    """The type of the task and how to score it."""
    kind = config["tasks"][wildcards.task]["type"]
    return {"seed": config["seed"], "type": kind, "score": _concerning("score", kind, config.get("score", {}))}


def slice_report(config: Config, wildcards: Any = None) -> Slice:
    """The title, the systems in their order (and where their low-rank model lies), the corpora to describe."""
    rows = []
    for system in systems(config):
        section = config["methods"][system.method].get("factorise")
        shared = {} if section is None else {"factorisation": factorise_key(section)}
        rows.append({**system._asdict(), "type": config["tasks"][system.task]["type"], **shared})
    result = {"experiment": config["experiment"], "systems": rows, "corpora": corpora_used(config)}
    return result | _given(config, ("report",))


def slice_export(config: Config, wildcards: Any) -> Slice:
    """The format, from the path that was asked for."""
    return {"format": wildcards.form}


def device(config: Config, stage: str, wildcards: Any) -> str | None:
    """The ``device`` in the slice of a stage that computes on one; None where it is left to the default."""
    return _recipe(config, stage, wildcards).get("device")


def processes(config: Config, stage: str, wildcards: Any) -> int:
    """How many processes share a training (``train`` or ``base``)."""
    return _recipe(config, stage, wildcards).get("processes", 1)


def ctc_backend(config: Config, stage: str, wildcards: Any) -> str | None:
    """The back end of CTC in the slice of ``train`` or ``base``; None where it is left to the default."""
    return _recipe(config, stage, wildcards).get("ctc", {}).get("backend")


def _recipe(config: Config, stage: str, wildcards: Any) -> Mapping[str, Any]:
    """The section that says how a stage computes."""
    if stage == "train":
        return slice_train(config, wildcards)["training"]
    if stage == "base":
        return config["bases"][wildcards.base].get("pretrain") or {}
    return config.get(stage, {})  # decode, calibrate


def _system(wildcards: Any) -> System:
    return System(wildcards.base, wildcards.task, wildcards.method)


def _task(config: Config, system: System) -> Slice:
    return _given(config["tasks"][system.task], ("type", "languages", "segment"))


def _concerning(stage: str, kind: str, section: Mapping[str, Any]) -> Slice:
    others = [key for other, keys in ONLY[stage].items() if other != kind for key in keys]
    return _without(section, others)


def _given(section: Mapping[str, Any], keys: Iterable[str]) -> Slice:
    return {key: section[key] for key in keys if section.get(key) is not None}


def _without(section: Mapping[str, Any], keys: Iterable[str]) -> Slice:
    return {key: value for key, value in section.items() if key not in set(keys)}
