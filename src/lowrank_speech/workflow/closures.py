"""The code hash of a job: it covers the modules that its stage imports, without those that this job cannot run.

A job runs one family of models, one head, one decoder and one kind of corpus, so its hash leaves out the modules of the
others, and of other ways of adapting. Every hash leaves out the error messages of settings, the keys in help texts, and
the workflow itself. The generated schema lists the modules of each kind (``modules``).
"""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from lowrank_speech import fingerprints
from lowrank_speech.fingerprints import PACKAGE
from lowrank_speech.workflow.check_heads import has_factors
from lowrank_speech.workflow.config import MEAN_LOGMEL, System, head, untranscribed
from lowrank_speech.workflow.slices import NAMES, Slices

WORDS = ("settings_errors", "schemas", "stages.keys", "workflow")
"""Modules that never affect a result."""
LORA = ("lowrank.lora", "lowrank.adapter", "lowrank.product", "models.adapters")
TRUNCATION = ("training.truncation", "lowrank.truncate")
DISTILLATION = ("training.losses.distil", "training.losses.untranscribed", "training.data.untranscribed")
ONLY_ASR = ("asr", "tokens", "oracle", "aligned", "exchange")
"""Modules of the stage score for recognition."""
ANY_MODEL = ("base", "features", "calibrate", "factorise", "train", "emissions", "tune", "decode", "export")
"""Stages that load models."""
ADAPTED = ("train", "emissions", "tune", "decode", "export")
"""Stages whose models have the head of the task."""

_KNOWN: WeakKeyDictionary[Slices, dict[tuple[str, ...], str]] = WeakKeyDictionary()


def code_hash(stage: str, slices: Slices, wildcards: Any) -> str:
    """Hex sha256 of the code that a job of ``stage`` runs; ``wildcards`` name its artefact."""
    key = (stage, *(getattr(wildcards, name) for name in NAMES[stage]))
    known = _KNOWN.setdefault(slices, {})
    if key not in known:
        left_out = tuple(sorted(f"{PACKAGE}.{name}" for name in unused(stage, slices, wildcards)))
        known[key] = fingerprints.code_hash(f"{PACKAGE}.stages.{stage}", without=left_out)
    return known[key]


def unused(stage: str, slices: Slices, wildcards: Any) -> set[str]:
    """Modules (relative to the package) that the stage imports but this job does not run."""
    found = set(WORDS)
    if stage in ANY_MODEL:
        family = slices.config["bases"][wildcards.base]["family"]
        found |= _others(slices, "families", {family})
        found |= _others(slices, "heads", _heads(stage, slices, wildcards))
        computed = {facts["features"][0] for facts in slices.schema["families"].values()} - {"conv"}
        found |= {f"features.{kind}" for kind in computed - {slices.schema["families"][family]["features"][0]}}
    match stage:
        case "corpus":
            found |= _others(slices, "corpora", {slices.config["corpora"][wildcards.corpus]["kind"]})
        case "lang":
            found |= set() if slices.config["langs"][wildcards.lang]["kind"] == "sentencepiece" else {"lang.pieces"}
        case "lm":
            found.add("lang.pieces")  # only trains token sets
        case "base":
            found |= _of_base(slices, wildcards)
        case "factorise":
            found |= _of_factorise(slices, wildcards)
        case "train":
            found |= _of_train(slices, wildcards)
        case "tune" | "decode":
            if stage == "tune":
                found.discard("schemas")  # it decides which keys can be tuned
            kind = slices.config["decoders"][wildcards.decoder]["kind"]
            task = slices.model_task(wildcards)
            found |= _others(slices, "decoders", {f"{kind}.{task}"})
            if stage == "decode":
                found |= _of_decode(task, slices.decode(wildcards).cfg["task"].get("channel"))
            read = slices.resources(wildcards)
            if not any(stage == "lm" for stage, *_ in read.values()):
                found.add("lang.lm")
            if "graph" not in read:
                found.add("lang.graphs")
        case "graph":
            if not slices.graph(wildcards).cfg["lm"]:
                found.add("lang.lm")
        case "backend":
            found |= _others(slices, "backends", {slices.config["backends"][wildcards.backend]["kind"]})
        case "score":
            asr = slices.config["tasks"][wildcards.task]["type"] == "asr"
            found |= {f"scoring.{name}" for name in (("lid", "detection") if asr else ONLY_ASR)}
        case "export":
            found |= _others(slices, "exports", {wildcards.form})
    return found


def _of_decode(task: str, channel: str | None) -> set[str]:
    """Only recognition has tokens, and only Whisper's come with the model."""
    if task == "classify":
        return {"decoding.symbols"} | (set() if channel else {"features.channel"})
    found = {"decoding.language.posteriors", "features.channel"}
    return found if task == "seq2seq" else found | {"models.text", "models.whisper_vocabulary"}


def _of_factorise(slices: Slices, wildcards: Any) -> set[str]:
    section = slices.factorise(wildcards).cfg["factorise"]
    found = set() if section["allocate"] else {"lowrank.allocate"}
    return found if section["sequential"] else found | {"factorising.sequential"}


def _of_base(slices: Slices, wildcards: Any) -> set[str]:
    base = slices.config["bases"][wildcards.base]
    if base["source"] != "scratch":
        return {"training", "features", "lang.select", "models.scratch", "models.gabor"}
    cfg, family = slices.base(wildcards).cfg, slices.schema["families"][base["family"]]
    task = family["recognises_by"]
    gabor = set() if family["front_end"] and cfg["front_end"] == "gabor" else {"models.gabor"}
    never = {
        "models.sources",
        "features.crops",
        "features.channel",
        *LORA,
        *TRUNCATION,
        "lowrank.constraint",
        *DISTILLATION,
    }
    return never | gabor | _recipe(slices, task, cfg["pretrain"])


def _of_train(slices: Slices, wildcards: Any) -> set[str]:
    cfg = slices.train(wildcards).cfg
    found = set() if cfg["adapt"] == "lora" else set(LORA)
    if cfg.get("constraint", {"mode": "none"})["mode"] == "none":
        found.add("lowrank.constraint")
    if slices.model_task(wildcards) != "classify":
        found |= {"training.classifier", "lang.spoken"}
    if not (cfg["task"].get("segment") or {}).get("crop"):
        found.add("features.crops")
    found |= _of_controls(cfg)
    if not has_factors(cfg.get("head")):
        found.add("training.head_ranks")
    if not cfg.get("progressive"):
        found |= set(TRUNCATION)
    if not cfg.get("distil"):
        found |= set(DISTILLATION)
    elif not untranscribed(slices.config, System(wildcards.base, wildcards.task, wildcards.method)):
        found |= set(DISTILLATION[1:])
    recipe = slices.recipe(System(wildcards.base, wildcards.task, wildcards.method))
    return found | _recipe(slices, slices.model_task(wildcards), cfg.get("training") or recipe)


def _of_controls(cfg: Mapping[str, Any]) -> set[str]:
    """What only controls, and tasks with a channel, run."""
    found = set() if cfg.get("control") == "shuffled-labels" else {"training.data.shuffled"}
    if cfg.get("control") != MEAN_LOGMEL:
        found |= {"training.control", "models.mean_logmel"}
    return found if cfg["task"].get("channel") else found | {"features.channel"}


def _recipe(slices: Slices, task: str, recipe: Mapping[str, Any]) -> set[str]:
    """Losses and augmentations that a training on models of ``task`` does not use."""
    own = recipe.get("loss") or slices.schema["losses"][task]
    beside = {key.removesuffix("_weight") for key, value in recipe.items() if key.endswith("_weight") and value}
    found = _others(slices, "losses", {own} | beside)
    if not (recipe.get("speed") or recipe.get("noise") or recipe.get("reverberation")):
        found.add("features.augment")
    if not recipe.get("spec_augment"):
        found.add("training.data.masks")
    return found


def _heads(stage: str, slices: Slices, wildcards: Any) -> set[str]:
    """Heads that the models of a job may have. A published base may have any head."""
    base, of_task = slices.config["bases"][wildcards.base], slices.schema["heads"]
    tasks = {slices.model_task(wildcards)} if stage in ADAPTED else set()
    if stage == "train" or stage not in ADAPTED:
        if base["source"] != "scratch":
            return set(slices.schema["modules"]["heads"])
        tasks.add(slices.schema["families"][base["family"]]["recognises_by"])
    found = {of_task[task] for task in tasks if task in of_task}
    if "classify" in tasks and "method" in NAMES[stage]:
        own = head(slices.config, System(wildcards.base, wildcards.task, wildcards.method))
        found = found - {of_task["classify"]} | {own["kind"]} if own else found
    return found


def _others(slices: Slices, kinds: str, used: set[str]) -> set[str]:
    """The modules of all ``kinds`` except those that are used."""
    return {module for name, module in slices.schema["modules"][kinds].items() if name not in used}
